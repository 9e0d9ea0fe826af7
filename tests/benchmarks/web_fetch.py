"""What `web_fetch` adds to a bare HTTP client, on pages of a real server on loopback, in one run.

Both make a connection for each page. The tool looks at the URL and its address, holds the limits, and makes a block.
"""

from __future__ import annotations

import http.server
import ssl
import statistics
import time
from collections.abc import Awaitable, Callable, Collection

import anyio
import httpx2

from corral.config_sections import WebSettings
from corral.domain.url import Url
from corral.domain.web import Source
from corral.tools.web_fetch import WebFetch
from tests.listening import served

NAME = "web_fetch over a bare HTTP client"
PAGES = 200
HTML_PAGES = 20
TEXT = b"A small page of text. " * 100
HTML = b"<!doctype html><title>Page</title>" + b"<p>A <b>small</b> page with <a href='/x'>a link</a>.</p>" * 200


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        kind, body = ("text/html", HTML) if self.path == "/html" else ("text/plain; charset=utf-8", TEXT)
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        return


def run() -> list[tuple[str, float, str, str]]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    with served(server):
        return anyio.run(_measure, f"http://127.0.0.1:{server.server_port}", backend_options={"use_uvloop": True})


async def _measure(base_url: str) -> list[tuple[str, float, str, str]]:
    tool = WebFetch(WebSettings(allowed_private=("127.0.0.1/32",)))
    limits = httpx2.Limits(max_keepalive_connections=0)
    async with httpx2.AsyncClient(trust_env=False, limits=limits, verify=ssl.create_default_context()) as client:

        async def bare() -> None:
            response = await client.get(f"{base_url}/text")
            assert response.content == TEXT

        async def fetched(path: str) -> None:
            reply = await tool.run({"url": f"{base_url}{path}"}, None, _nowhere)
            assert not reply.is_error

        # In turn, so that the machine's noise is the same for both.
        both = [(await _milliseconds(bare), await _milliseconds(lambda: fetched("/text"))) for _ in range(PAGES)]
        html = [await _milliseconds(lambda: fetched("/html")) for _ in range(HTML_PAGES)]
    await tool.close()
    plain, tools = (statistics.median(each) for each in zip(*both, strict=True))
    return [
        ("bare client, a page of text, p50", plain, "ms", "a new connection each time"),
        ("web_fetch, the same page, p50", tools, "ms", ""),
        ("web_fetch over the bare client, p50", tools - plain, "ms", "aim: \u2264 3"),
        ("web_fetch, a page of HTML, p50", statistics.median(html), "ms", "most of it is starting the converter"),
    ]


async def _milliseconds(action: Callable[[], Awaitable[None]]) -> float:
    start = time.perf_counter()
    await action()
    return (time.perf_counter() - start) * 1000


def _nowhere(url: Url) -> Collection[Source]:
    return ()
