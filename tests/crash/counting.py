"""Effects that can be counted: an MCP server and a web page that remember each token they were given."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from typing import NamedTuple

from mcp.server.mcpserver import MCPServer
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from tests.e2e.mcp_host import listening

PAGE_HOST = "counted.test"
"""The name under which sandboxes know the page."""


class Counting(NamedTuple):
    """Where the two are, and what they have counted."""

    mcp_url: str
    page_port: int
    noted: Counter[str]
    """Calls of the tool `note`, by token."""
    fetched: Counter[str]
    """Requests for the page, by token."""

    @property
    def toml(self) -> str:
        """What a server must be told so that its sandboxes reach the page."""
        return f'[egress]\nallowed_private = ["127.0.0.1/32"]\nhosts = {{ "{PAGE_HOST}" = "127.0.0.1" }}\n'

    def fetch(self, token: str) -> str:
        """A command that asks for the page once."""
        return f"curl -sS --fail --max-time 20 http://{PAGE_HOST}:{self.page_port}/{token}"


@contextmanager
def counting() -> Generator[Counting]:
    """Both, on loopback."""
    noted: Counter[str] = Counter()
    fetched: Counter[str] = Counter()
    server = MCPServer("counting")

    @server.tool()
    def note(token: str) -> str:
        """Note a token."""
        noted[token] += 1
        return f"noted {token}"

    async def page(request: Request) -> PlainTextResponse:
        token = request.path_params["token"]
        fetched[token] += 1
        return PlainTextResponse(f"fetched {token}")

    site = Starlette(routes=[Route("/{token}", page)])
    with listening(server.streamable_http_app()) as mcp_port, listening(site, lifespan=False) as page_port:
        yield Counting(f"http://127.0.0.1:{mcp_port}/mcp", page_port, noted, fetched)
