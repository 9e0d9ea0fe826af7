"""Pages, MCP servers and token endpoints through the operator's proxy: it is told addresses, which were judged here."""

from __future__ import annotations

import http.server
import socket
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from corral.config import load
from corral.config_sections import McpSettings, WebSettings
from corral.errors import MachineUnfit
from corral.outbound.transport import OutboundTransport
from corral.vaults.probing import Prober
from tests.contracts.test_web_fetch import at, reader
from tests.contracts.web_site import Site, site, tls_site
from tests.listening import pass_on, served

WAIT_SECONDS = 60
AUTHORIZATION = "Basic bWU6cEBzcw=="
REFUSED = "url_not_accessible: The operator's proxy opens no connection to 127.0.0.1."


class OperatorsProxy(http.server.ThreadingHTTPServer):
    """A proxy that opens tunnels to whatever it is told, and notes it."""

    daemon_threads = True

    def __init__(self) -> None:
        self.seen: list[tuple[str, str | None]] = []
        self.answer: bytes | None = None
        """What to say instead of opening a tunnel."""
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def port(self) -> int:
        return self.socket.getsockname()[1]


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_CONNECT(self) -> None:
        assert isinstance(self.server, OperatorsProxy)
        self.server.seen.append((self.path, self.headers["proxy-authorization"]))
        if self.server.answer is not None:
            self.wfile.write(self.server.answer)
            return
        host, _, port = self.path.rpartition(":")
        with socket.create_connection((host.strip("[]"), int(port))) as there:
            self.wfile.write(b"HTTP/1.1 200 Connection established\r\nvia: us\r\n\r\n")
            pass_on(self.connection, there, WAIT_SECONDS)

    def log_message(self, format: str, *args: object) -> None:
        return


@contextmanager
def operators_proxy() -> Generator[OperatorsProxy]:
    server = OperatorsProxy()
    with served(server):
        yield server


@pytest.fixture
def proxy() -> Iterator[OperatorsProxy]:
    with operators_proxy() as running:
        yield running


@pytest.fixture
def web() -> Iterator[Site]:
    with site() as running:
        yield running


@pytest.mark.requirement("F022")
def test_pages_come_through_the_proxy_which_is_told_addresses_only(
    proxy: OperatorsProxy, web: Site, tmp_path: Path
) -> None:
    named, name = f"http://me:p%40ss@127.0.0.1:{proxy.port}", "secure.example"
    hosts = {name: "127.0.0.1", "plain.example": "127.0.0.1"}
    assert reader(upstream_proxy=named, hosts=hosts).text(at(web, "/more", "plain.example")) == "more"
    assert web.seen == [(f"plain.example:{web.port}", "/more")]
    with tls_site(name, tmp_path) as (secure, authority):
        trusting = reader(upstream_proxy=named, hosts=hosts, ca_file=str(authority))
        assert trusting.text(f"https://{name}:{secure.port}/more") == "more"
        stranger = reader(upstream_proxy=named, hosts=hosts).failure(f"https://{name}:{secure.port}/more")
        assert "cannot be trusted" in stranger
        told = [f"127.0.0.1:{port}" for port in (web.port, secure.port, secure.port)]
    assert proxy.seen == [(place, AUTHORIZATION) for place in told]


@pytest.mark.requirement("F022")
def test_the_proxy_is_not_asked_for_what_is_refused_here(proxy: OperatorsProxy, web: Site) -> None:
    fetch = reader(
        upstream_proxy=f"127.0.0.1:{proxy.port}",
        hosts={"inside.example": "10.1.2.3"},
        upstream_proxy_not_for=("direct.example", "127.0.0.1"),
    )
    for url in ("http://169.254.169.254/", "http://inside.example/", "http://[::ffff:10.0.0.1]/"):
        assert fetch.failure(url).startswith("url_not_allowed: ")
    assert fetch.failure(at(web, "/redirect/http%3A%2F%2F169.254.169.254%2F")).startswith("url_not_allowed: ")
    assert fetch.text(at(web, "/more")) == "more"
    assert proxy.seen == []


@pytest.mark.requirement("F022")
@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\nand more",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n",
        b"",
        b"x" * 100_000,
    ],
)
def test_a_proxy_that_opens_nothing_is_said_so(proxy: OperatorsProxy, web: Site, answer: bytes) -> None:
    proxy.answer = answer
    assert reader(upstream_proxy=f"http://127.0.0.1:{proxy.port}").failure(at(web, "/more")) == REFUSED
    assert web.seen == []


@pytest.mark.requirement("F022")
def test_a_proxy_that_is_gone_is_said_so(web: Site) -> None:
    with operators_proxy() as gone:
        port = gone.port
    assert reader(upstream_proxy=f"http://127.0.0.1:{port}").failure(at(web, "/more")) == REFUSED


@pytest.mark.anyio
@pytest.mark.requirement("F030")
async def test_mcp_servers_and_token_endpoints_too(proxy: OperatorsProxy, web: Site) -> None:
    settings = McpSettings(upstream_proxy=f"http://127.0.0.1:{proxy.port}", denied=("10.0.0.0/8",))
    async with httpx2.AsyncClient(transport=OutboundTransport(settings), timeout=WAIT_SECONDS) as client:
        assert (await client.get(f"http://localhost:{web.port}/more")).text == "more"
        assert (await client.get(f"http://127.0.0.1:{web.port}/more")).text == "more"
        with pytest.raises(httpx2.ConnectError, match="denied"):
            await client.get("http://10.1.2.3/")
    assert web.seen[0] == (f"localhost:{web.port}", "/more")
    assert {place for place, _ in proxy.seen} <= {f"127.0.0.1:{web.port}", f"[::1]:{web.port}"}
    proxy.seen.clear()
    direct = McpSettings(upstream_proxy=f"http://127.0.0.1:{proxy.port}", upstream_proxy_not_for=("LocalHost",))
    prober = Prober(WAIT_SECONDS, direct)
    assert (await prober.post(f"http://LOCALHOST:{web.port}/more", headers={})).status == 501
    assert proxy.seen == []
    await prober.close()


def test_the_environments_proxy_is_used_where_the_operator_says_so(tmp_path: Path) -> None:
    environ = {"HTTPS_PROXY": "http://proxy.example:3128", "NO_PROXY": "localhost, .inner.example", "HOME": "/nowhere"}
    file = tmp_path / "corral.toml"
    file.write_text("[log]\nlevel = 'info'\n", encoding="utf-8")
    settings = load(environ=environ, file=file)
    assert (settings.web.upstream_proxy, settings.mcp.upstream_proxy) == (None, None)
    file.write_text(
        "[web]\nupstream_proxy = 'environment'\n[mcp]\nupstream_proxy = 'http://other:1'\n", encoding="utf-8"
    )
    settings = load(environ=environ, file=file)
    assert settings.web.upstream_proxy == "http://proxy.example:3128"
    assert settings.web.upstream_proxy_not_for == ("localhost", ".inner.example")
    assert (settings.mcp.upstream_proxy, settings.mcp.upstream_proxy_not_for) == ("http://other:1", ())
    file.write_text("[mcp]\nupstream_proxy = 'environment'\nupstream_proxy_not_for = ['*']\n", encoding="utf-8")
    assert load(environ=environ, file=file).mcp.upstream_proxy_not_for == ("*",)
    assert load(environ={"HOME": "/nowhere"}, file=file).mcp.upstream_proxy is None
    file.write_text("web = 5\n", encoding="utf-8")
    with pytest.raises(MachineUnfit):
        load(environ=environ, file=file)


@pytest.mark.parametrize("url", ["https://proxy.example", "socks5://proxy.example", "http://", "http://x:99999"])
def test_what_is_no_http_proxy_stops_the_server(url: str) -> None:
    with pytest.raises(ValueError, match=r"upstream_proxy|[Pp]ort"):
        WebSettings(upstream_proxy=url)
