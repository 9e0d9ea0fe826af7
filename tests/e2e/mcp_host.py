"""Real MCP servers for tests, by the official SDK's server side, on loopback; they remember who came with what."""

from __future__ import annotations

import asyncio
import base64
import gc
import socket
import threading
import warnings
from collections.abc import Generator
from contextlib import contextmanager

import uvicorn
from mcp.server.mcpserver import Context, Image, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from corral.serving import bind

WAIT_SECONDS = 30
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


class McpHost:
    """One server, and what has happened on it."""

    def __init__(self) -> None:
        self.token: str | None = None
        """What a request must bear; None lets everybody in."""
        self.seen: list[str | None] = []
        """The authorization header of each request."""
        self.ran: list[str] = []
        """Tools that were run, in order."""
        self.started = threading.Event()
        self.cancelled = threading.Event()
        self.port = 0

    @property
    def url(self) -> str:
        """Where it is, by streamable HTTP."""
        return f"http://127.0.0.1:{self.port}/mcp"

    def server(self) -> MCPServer:
        """Its tools."""
        server = MCPServer("tests")

        @server.tool()
        def add(a: int, b: int) -> str:
            """Add two numbers."""
            self.ran.append("add")
            return str(a + b)

        @server.tool()
        def secret() -> str:
            """Not for everybody."""
            self.ran.append("secret")
            return "hidden"

        @server.tool()
        def picture() -> Image:
            """A picture of one pixel."""
            return Image(data=PIXEL, format="png")

        @server.tool()
        def fail() -> str:
            """Fail."""
            raise ToolError("it is broken")

        @server.tool()
        def long() -> str:
            """Say much."""
            return "x" * 150_000

        @server.tool()
        async def wait() -> str:
            """Wait for ever."""
            self.started.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
            return "never"

        @server.tool()
        async def grow(ctx: Context) -> str:
            """Offer one tool more."""
            server.add_tool(late, name="late", description="Came later.")
            await ctx.session.send_tool_list_changed()
            return "grown"

        def late() -> str:
            return "I came later."

        return server

    def guarded(self, app: ASGIApp) -> ASGIApp:
        """Lets in who bears the token."""

        async def guard(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http":
                found = dict(scope["headers"]).get(b"authorization")
                self.seen.append(None if found is None else found.decode())
                if self.token is not None and self.seen[-1] != f"Bearer {self.token}":
                    return await _answer(send, 401)
            await app(scope, receive, send)

        return guard


async def _answer(send: Send, status: int) -> None:
    start: Message = {"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0")]}
    await send(start)
    await send({"type": "http.response.body", "body": b""})


@contextmanager
def listening(app: ASGIApp, *, lifespan: bool = True, listener: socket.socket | None = None) -> Generator[int]:
    """Serve an app on a port of loopback, in a thread."""
    listener = listener or bind("127.0.0.1", 0)
    ready = threading.Event()

    class Server(uvicorn.Server):
        async def startup(self, sockets: object = None) -> None:
            await super().startup([listener])
            ready.set()

    kind = "on" if lifespan else "off"
    server = Server(uvicorn.Config(app, log_config=None, lifespan=kind, ws="none", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])), daemon=True)
    thread.start()
    assert ready.wait(WAIT_SECONDS), "the server did not start"
    try:
        yield int(listener.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(WAIT_SECONDS)
        assert not thread.is_alive(), "the server did not stop"


@contextmanager
def mcp_host(*, events: bool = False) -> Generator[McpHost]:
    """A server that runs; with `events`, one of the old kind that speaks by server-sent events alone."""
    host = McpHost()
    server = host.server()
    app = server.sse_app() if events else server.streamable_http_app()
    with listening(host.guarded(app)) as port:
        host.port = port
        yield host
    if events:
        # The SDK's server leaves streams of this old kind open when it is stopped; that is not ours to report.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()
