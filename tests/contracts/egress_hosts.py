"""Hosts for sandboxes to reach or not to reach: real TLS servers on this machine's loopback, under names of their own.

The proxy knows their names by `[egress] hosts` and trusts their authority by `[egress] ca_file`, both of which are for
operators; nothing of the proxy is replaced.
"""

from __future__ import annotations

import base64
import gzip
import http.server
import ssl
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from corral.config_sections import EgressSettings
from corral.sandboxes.egress.authority import Authority, Pair, make_authority

ALLOWED, OTHER = "allowed.test", "other.test"
WAIT_SECONDS_MAX = 60
PIECE = bytes(64 * 1024)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_TRACE(self) -> None:
        assert isinstance(self.server, Host)
        self.server.authorizations.append(self.headers.get("authorization"))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    do_DELETE = do_TRACE

    def do_GET(self) -> None:
        assert isinstance(self.server, Host)
        self.server.seen.append(f"{self.headers['host']} {self.path}")
        self.server.authorizations.append(self.headers.get("authorization"))
        kind, _, value = self.path[1:].partition("/")
        if kind == "redirect":
            self.send_response(302)
            self.send_header("location", f"https://{value}")
            self.send_header("content-length", "0")
            self.end_headers()
        elif kind == "echo":
            self._echo_request(value)
        elif kind == "rude":
            self.close_connection = True
        elif kind == "bytes":
            self._answer(int(value))
        elif self.headers.get("upgrade") == "websocket":
            self._echo()
        else:
            self._answer_text(f"hello from {self.server.name}")

    def do_POST(self) -> None:
        if self.path.startswith("/echo/"):
            self._echo_request(self.path.removeprefix("/echo/"))
            return
        left = int(self.headers["content-length"])
        total = 0
        while left > 0:
            piece = self.rfile.read(min(left, len(PIECE)))
            left, total = left - len(piece), total + len(piece)
        self._answer_text(f"took {total}")

    def _echo_request(self, how: str) -> None:
        """Keep what came, and send it back: headers as a header and in the body, then the body."""
        assert isinstance(self.server, Host)
        body = self._body()
        self.server.received(Received(dict(self.headers.items()), body))
        said = "".join(f"{name}: {value}\n" for name, value in self.headers.items()).encode() + body
        if how == "base64":
            said = base64.b64encode(b"?" + body)
        self.send_response(200)
        if how in ("gzip", "br"):
            said = gzip.compress(said)
            self.send_header("content-encoding", how)
        self.send_header("x-echo", self.headers.get("authorization", ""))
        pieces = [said[at : at + 5] for at in range(0, len(said), 5)] if how == "pieces" else [said]
        self.send_header("transfer-encoding", "chunked") if how == "pieces" else self.send_header(
            "content-length", str(len(said))
        )
        self.end_headers()
        for piece in pieces:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece) if how == "pieces" else piece)
        if how == "pieces":
            self.wfile.write(b"0\r\n\r\n")

    def _body(self) -> bytes:
        if self.headers.get("transfer-encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("content-length", "0")))
        whole = bytearray()
        while size := int(self.rfile.readline(), 16):
            whole += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return bytes(whole)

    def _answer_text(self, text: str) -> None:
        self.send_response(200)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def _answer(self, count: int) -> None:
        self.send_response(200)
        self.send_header("content-length", str(count))
        self.end_headers()
        while count > 0:
            self.wfile.write(PIECE[:count])
            count -= len(PIECE)

    def _echo(self) -> None:
        """After the change of protocols, whatever comes goes back."""
        self.send_response_only(101)
        self.send_header("connection", "Upgrade")
        self.send_header("upgrade", "websocket")
        self.end_headers()
        self.close_connection = True
        while piece := self.connection.recv(len(PIECE)):
            self.connection.sendall(piece)

    def log_message(self, format: str, *args: object) -> None:
        return


class Received(NamedTuple):
    """A request to `/echo/`."""

    headers: dict[str, str]
    body: bytes


class Host(http.server.ThreadingHTTPServer):
    """One of them."""

    daemon_threads = True

    def __init__(self, name: str, context: ssl.SSLContext | None) -> None:
        self.name, self.seen = name, list[str]()
        self.authorizations = list[str | None]()
        self.requests: list[Received] = []
        self._news = threading.Condition()
        super().__init__(("127.0.0.1", 0), _Handler)
        if context is not None:
            self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)

    def received(self, request: Received) -> None:
        """Keep it."""
        with self._news:
            self.requests.append(request)
            self._news.notify_all()

    def wait_for(self, text: str) -> None:
        """Until a request comes with this in a header."""
        with self._news:
            assert self._news.wait_for(
                lambda: any(text in value for each in self.requests for value in each.headers.values()),
                WAIT_SECONDS_MAX,
            ), "no such request"

    def handle_error(self, request: object, client_address: object) -> None:
        return

    @property
    def port(self) -> int:
        """Where it listens."""
        return self.socket.getsockname()[1]


class Hosts(NamedTuple):
    """All of them."""

    allowed: Host
    other: Host
    plain: Host
    """Without TLS, under the allowed name."""
    authority: Path

    def settings(self, **changes: object) -> EgressSettings:
        """An operator's settings under which their addresses may be reached."""
        values: dict[str, object] = {
            "allowed_private": ("127.0.0.1/32",),
            "hosts": {
                ALLOWED: "127.0.0.1",
                OTHER: "127.0.0.1",
                "inner.test": "127.0.0.2",
                "meta.test": "169.254.169.254",
            },
            "ca_file": str(self.authority),
            "connect_seconds_max": 20.0,
        }
        return EgressSettings(**(values | changes))  # pyright: ignore[reportArgumentType]  # checked by the struct


@contextmanager
def hosts(directory: Path) -> Generator[Hosts]:
    """The servers, while the block runs."""
    pair = make_authority()
    authority = directory / "test-authority.pem"
    authority.write_text(pair.certificate, encoding="ascii")
    contexts = Authority(Pair(*pair), directory)
    servers = [Host(ALLOWED, contexts.context(ALLOWED)), Host(OTHER, contexts.context(OTHER)), Host("plain", None)]
    threads = [threading.Thread(target=server.serve_forever, args=(0.05,)) for server in servers]
    for thread in threads:
        thread.start()
    try:
        yield Hosts(servers[0], servers[1], servers[2], authority)
    finally:
        for server, thread in zip(servers, threads, strict=True):
            server.shutdown()
            thread.join()
            server.server_close()
