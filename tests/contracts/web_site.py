"""A web site for the web tools: a real server on loopback, polite under some paths and hostile under others."""

from __future__ import annotations

import base64
import gzip
import http.server
import ssl
import threading
import time
import zlib
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote

from corral.sandboxes.egress.authority import Authority, Pair, make_authority
from tests.listening import served

PIECE = b"x" * (64 * 1024)
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
PDF = b"%PDF-1.4\n1 0 obj\n<<>>\nendobj\ntrailer\n<<>>\n%%EOF\n"
ARTICLE = """<!doctype html><html><head><title>A page</title><style>p{}</style><script>evil()</script></head>
<body><nav><a href="/">Home</a></nav><h1>Heading</h1><p>Some <b>bold</b> words and <a href="/more">a link</a>.</p>
<table><tr><th>a</th><th>b</th></tr><tr><td>1</td><td>2</td></tr></table><p hidden>unseen</p></body></html>"""
BROKEN = b"<html><p>one<div <table><td>two</b></i><!-- x --><x y=\x00 z='><p>three</p><p>four<script>never</"
NESTED = b"<div>" * (1024 * 1024)

STATIC: Mapping[str, tuple[str, bytes]] = {
    "/": ("text/html", ARTICLE.encode()),
    "/more": ("text/plain; charset=utf-8", b"more"),
    "/json": ("application/json", b'{"a": [1, 2]}'),
    "/pixel": ("image/png", PIXEL),
    "/pdf": ("application/pdf", PDF),
    "/zip": ("application/zip", b"PK\x03\x04"),
    "/no-picture": ("image/png", b"<html>not a picture</html>"),
    "/no-pdf": ("application/pdf", b"not a PDF"),
    "/no-text": ("text/plain", b"\x7fELF\x00\x00\x00"),
    "/untyped": ("", b"<!doctype html><p>typed by nobody"),
    "/latin": ("text/plain; charset=iso-8859-1", "caf\xe9".encode("latin-1")),
    "/undeclared": ("text/plain", "caf\xe9 \x93".encode("latin-1")),
    "/russian": ("text/html", '<meta charset="windows-1251"><p>\u043f\u0440\u0438\u0432\u0435\u0442'.encode("cp1251")),
    "/japanese": ("text/html; charset=Shift_JIS", "<p>\u65e5\u672c\u8a9e".encode("shift_jis")),
    "/wide": ("text/plain", "\ufeffwide \u20ac".encode("utf-16-le")),
    "/no-charset": ("text/plain; charset=zip", "caf\xe9".encode()),
    "/broken": ("text/html", BROKEN),
    "/nested": ("text/html", NESTED),
    "/empty": ("text/html", b""),
    "/links": ("text/html", b"".join(b"<p>word %d <a href='/a%d'>link</a></p>" % (n, n) for n in range(20_000))),
    "/long": ("text/plain", b"0123456789" * 1_000),
    "/latest": ("text/plain; charset=utf-8", "\u20ac".encode() * 100),
}


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        assert isinstance(self.server, Site)
        self.server.seen.append((self.headers["host"], self.path))
        self.server.headers.append(dict(self.headers.items()))
        name, _, value = self.path[1:].partition("/")
        hostile: Mapping[str, Callable[[str], None]] = {
            "redirect": self._redirect,
            "loop": self._loop,
            "endless": self._endless,
            "bomb": self._bomb,
            "layers": self._layers,
            "drip": self._drip,
            "headers": self._headers,
            "status": self._status,
            "garbage": self._garbage,
            "cookie": self._cookie,
            "once": self._once,
        }
        if name in hostile:
            hostile[name](value)
        elif self.path in STATIC:
            self.answer(200, *STATIC[self.path])
        else:
            self.answer(404, "text/html", b"<p>No such page.")

    def answer(self, status: int, kind: str, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if kind:
            self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _redirect(self, value: str) -> None:
        self.answer(302, "text/plain", b"", location=unquote(value))

    def _loop(self, value: str) -> None:
        self.answer(302, "text/plain", b"", location=f"/loop/{int(value) + 1}")

    def _endless(self, value: str) -> None:
        """A page that never ends, of any type."""
        self.send_response(200)
        self.send_header("content-type", value)
        self.send_header("content-length", str(10 * 1024**3))
        self.end_headers()
        if value == "application/pdf":
            self.wfile.write(b"%PDF-1.4\n")
        while True:
            self.wfile.write(PIECE)

    def _bomb(self, value: str) -> None:
        """A gigabyte in a megabyte."""
        packer = zlib.compressobj(9, wbits=31 if value == "gzip" else 15)
        packed = b"".join(packer.compress(PIECE * 16) for _ in range(1024)) + packer.flush()
        self.answer(200, "text/plain; charset=utf-8", packed, content_encoding=value)

    def _layers(self, value: str) -> None:
        body = b"text"
        for _ in range(int(value)):
            body = gzip.compress(body)
        self.answer(200, "text/plain", body, content_encoding=", ".join(["gzip"] * int(value)))

    def _drip(self, value: str) -> None:
        """A byte now and then, for ever: of the body, or of the headers."""
        self.wfile.write(b"HTTP/1.1 200 OK\r\n" + (b"\r\n" if value == "body" else b"x-slow: "))
        while True:
            self.wfile.write(b"x")
            time.sleep(0.1)

    def _headers(self, value: str) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nx-huge: ")
        while True:
            self.wfile.write(PIECE)

    def _status(self, value: str) -> None:
        self.answer(int(value), "text/html", b"<h1>Sorry</h1><p>Not today.")

    def _garbage(self, value: str) -> None:
        self.wfile.write(b"SSH-2.0-OpenSSH_9.9\r\n")
        self.close_connection = True

    def _cookie(self, value: str) -> None:
        self.answer(302, "text/plain", b"", set_cookie="session=secret; path=/", location="/more")

    def _once(self, value: str) -> None:
        """The first visitor waits for ever."""
        assert isinstance(self.server, Site)
        visits = sum(path == self.path for _, path in self.server.seen)
        self.server.visited.set()
        if visits == 1:
            self._drip("body")
        self.answer(200, "text/plain", f"visit {visits}".encode())

    def log_message(self, format: str, *args: object) -> None:
        return


class Site(http.server.ThreadingHTTPServer):
    """The server, and what it was asked for."""

    daemon_threads = True

    def __init__(self, context: ssl.SSLContext | None) -> None:
        self.seen: list[tuple[str, str]] = []
        self.headers: list[dict[str, str]] = []
        self.visited = threading.Event()
        super().__init__(("127.0.0.1", 0), _Handler)
        if context is not None:
            self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)

    def handle_error(self, request: object, client_address: object) -> None:
        return

    @property
    def port(self) -> int:
        """Where it listens."""
        return self.socket.getsockname()[1]


@contextmanager
def site(context: ssl.SSLContext | None = None) -> Generator[Site]:
    """The server, while the block runs."""
    server = Site(context)
    with served(server):
        yield server


@contextmanager
def tls_site(name: str, directory: Path) -> Generator[tuple[Site, Path]]:
    """One with TLS under a name, and the authority to trust."""
    pair = make_authority()
    authority = directory / "authority.pem"
    authority.write_text(pair.certificate, encoding="ascii")
    with site(Authority(Pair(*pair), directory).context(name)) as server:
        yield server, authority
