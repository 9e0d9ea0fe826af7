"""One connection to one MCP server, by the official SDK: streamable HTTP, or server-sent events if it has only those.

The SDK's client belongs to the task that opened it, so a connection is a task of its own that opens it, says so, and
closes it when told; calls come from any other. Nothing here decides when to connect; that is `servers.py`.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Mapping
from typing import cast

import anyio
import httpx2
import structlog
from mcp import Client, MCPError
from mcp.client.session import IncomingMessage
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client
from mcp_types import CallToolResult, Implementation, ToolListChangedNotification
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

from corral.config_sections import McpSettings
from corral.domain.scrubbing import scrubbed
from corral.interfaces.mcp import McpTool
from corral.mcp.bearer import FindBearer, VaultAuth
from corral.mcp.limited import LimitedTransport
from corral.mcp.tools import Listed, usable

log = structlog.get_logger(__name__)

SINGLE_FAILURES = (
    httpx2.HTTPError,
    httpx2.InvalidURL,
    httpx2.SSEError,
    MCPError,
    OSError,
    RuntimeError,
    ValueError,
    anyio.BrokenResourceError,
    anyio.ClosedResourceError,
    anyio.EndOfStream,
)
"""What the SDK and what is below it raise for a server that is not there, lies, or breaks off."""
FAILURES = (*SINGLE_FAILURES, ExceptionGroup)
for _name in ("mcp", "client"):
    # The SDK logs tracebacks that quote what servers say, which may be a token; what is to be known is raised, too.
    logging.getLogger(_name).addHandler(logging.NullHandler())
    logging.getLogger(_name).propagate = False
CLIENT = Implementation(name="corral", version="1")
PAGES_MAX = 100
REASON_CHARACTERS_MAX = 300


class Refused(Exception):
    """The server cannot be used, and why, in a sentence without secrets."""

    def __init__(self, message: str, *, is_authentication: bool = False) -> None:
        super().__init__(message)
        self.message, self.is_authentication = message, is_authentication


class Connection:
    """A server that answers."""

    def __init__(self, server: str, url: str, find_bearer: FindBearer, settings: McpSettings) -> None:
        self.server, self._url, self._settings = server, url, settings
        self._auth = VaultAuth(find_bearer)
        self._client: Client | None = None
        self._closing = asyncio.Event()
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._tools: tuple[McpTool, ...] | None = None
        # The connection outlives the turn that opens it; `close` awaits it.
        self._serving = asyncio.create_task(self._serve(), name=f"mcp {server}")

    @property
    def lost(self) -> bool:
        """True once it is over; a new one must be opened."""
        return self._serving.done()

    async def ready(self) -> None:
        """Until the server has answered. Raises `Refused`."""
        await asyncio.shield(self._ready)

    async def tools(self) -> tuple[McpTool, ...]:
        """What the server offers; listed anew after it said that this has changed. Raises `Refused`."""
        if self._tools is None:
            try:
                with anyio.fail_after(self._settings.connect_seconds_max):
                    self._tools = usable(self.server, await self._list(), self._settings, self.hidden)
            except FAILURES as error:
                raise self._refused(error, "did not list its tools") from error
        return self._tools

    def forget_tools(self) -> None:
        """List them anew when they are next asked for."""
        self._tools = None

    async def call(self, name: str, arguments: Mapping[str, object]) -> CallToolResult:
        """Call a tool. Raises `Refused` when there is no result, however that comes about."""
        assert self._client is not None, "ready() comes first"
        try:
            with anyio.fail_after(self._settings.call_seconds_max):
                return await self._client.call_tool(name, dict(arguments))
        except TimeoutError as error:
            seconds = self._settings.call_seconds_max
            raise Refused(f"The MCP server `{self.server}` gave no result within {seconds:g} seconds.") from error
        except FAILURES as error:
            raise self._refused(error, "broke off the call") from error

    def hidden(self, text: str) -> str:
        """The text without tokens that the server was sent: it may have repeated one."""
        return scrubbed(text, self._auth.sent)

    async def close(self) -> None:
        """Say goodbye, within reason. Idempotent."""
        self._closing.set()
        done, _ = await asyncio.wait([self._serving], timeout=self._settings.close_seconds_max)
        if not done:
            self._serving.cancel()
            await asyncio.wait([self._serving])

    async def _list(self) -> list[Listed]:
        assert self._client is not None, "ready() comes first"
        found: list[Listed] = []
        cursor: str | None = None
        for _ in range(PAGES_MAX):
            page = await self._client.list_tools(cursor=cursor, cache_mode="bypass")
            found += [Listed(tool.name, tool.description or "", tool.input_schema) for tool in page.tools]
            cursor = page.next_cursor
            if cursor is None or len(found) >= self._settings.tools_max:
                break
        if len(found) > self._settings.tools_max:
            log.warning("mcp_tools_over_limit", server=self.server, listed=len(found))
        return found[: self._settings.tools_max]

    async def _serve(self) -> None:
        try:
            await self._serve_by_either()
        except FAILURES as error:
            if not self._ready.done():
                self._ready.set_exception(self._refused(error, "could not be reached"))
        finally:
            if not self._ready.done():
                self._ready.set_exception(Refused(f"The connection to the MCP server `{self.server}` was dropped."))
            # Whoever gave up waiting does not ask; asyncio would complain about that.
            self._ready.exception()

    async def _serve_by_either(self) -> None:
        try:
            async with self._http() as http:
                await self._serve_by(self._streamable(http))
        except FAILURES as error:
            if self._ready.done() or self._auth.refused is not None or not _has_http_refusal(error):
                raise
            # An older server: it answers a POST with 4xx and has its events elsewhere.
            try:
                await self._serve_by(self._events())
            except FAILURES:
                raise error from None

    async def _serve_by(self, client: Client) -> None:
        with anyio.move_on_after(self._settings.connect_seconds_max) as patience:
            async with client:
                # Its own task groups are inside this scope, so the scope stays and only its end goes away.
                patience.deadline = math.inf
                # The SDK would check results against schemas of the server's own making, on this very thread, and one
                # pattern in them can take for ever. The schema is the server's promise to itself; nobody here needs it.
                client.session.validate_tool_result = _unchecked
                self._client = client
                self._ready.set_result(None)
                await self._watch(client)
        if patience.cancelled_caught:
            raise TimeoutError

    async def _watch(self, client: Client) -> None:
        """Stay until the connection is to be closed. Since 2026 news must be asked for; before, it is just sent."""
        if client.protocol_version in MODERN_PROTOCOL_VERSIONS and client.server_capabilities.tools is not None:
            try:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._listen, client)
                    await self._closing.wait()
                    tasks.cancel_scope.cancel()
            except* SINGLE_FAILURES:
                # Not every server offers it; lists are read again at each turn anyway.
                await self._closing.wait()
        else:
            await self._closing.wait()

    async def _listen(self, client: Client) -> None:
        async with client.listen(tools_list_changed=True) as changes:
            async for _ in changes:
                self.forget_tools()

    def _streamable(self, http: httpx2.AsyncClient) -> Client:
        limit = self._settings.result_bytes_max
        transport = streamable_http_client(self._url, http_client=http, max_sse_event_size=limit)
        return Client(transport, client_info=CLIENT, message_handler=self._heard, cache=None)

    def _events(self) -> Client:
        def client(
            headers: dict[str, str] | None = None,
            timeout: httpx2.Timeout | None = None,
            auth: httpx2.Auth | None = None,
        ) -> httpx2.AsyncClient:
            return self._http(headers)

        transport = sse_client(self._url, httpx_client_factory=client)
        return Client(transport, client_info=CLIENT, message_handler=self._heard, cache=None, mode="legacy")

    def _http(self, headers: dict[str, str] | None = None) -> httpx2.AsyncClient:
        settings = self._settings
        return httpx2.AsyncClient(
            auth=self._auth,
            headers=headers,
            timeout=httpx2.Timeout(settings.connect_seconds_max, read=settings.call_seconds_max),
            transport=LimitedTransport(settings),
        )

    async def _heard(self, message: IncomingMessage) -> None:
        if isinstance(message, ToolListChangedNotification):
            self.forget_tools()

    def _refused(self, error: BaseException, what: str) -> Refused:
        if self._auth.refused is not None:
            message = f"The MCP server `{self.server}` does not let the session in: {self._auth.refused}."
            return Refused(message, is_authentication=True)
        # Not cut before: of a token that is cut, nothing would be found.
        reason = self.hidden(_reason(error))[:REASON_CHARACTERS_MAX]
        return Refused(f"The MCP server `{self.server}` {what}: {reason}")


async def _unchecked(name: str, result: CallToolResult) -> None:
    """In place of `ClientSession.validate_tool_result`."""


def _has_http_refusal(error: BaseException) -> bool:
    """Whether an HTTP status of 4xx is behind it, as far as the SDK lets on."""
    error = _innermost(error)
    if isinstance(error, httpx2.HTTPStatusError):
        return 400 <= error.response.status_code < 500
    return isinstance(error, MCPError)


def _reason(error: BaseException) -> str:
    error = _innermost(error)
    if isinstance(error, TimeoutError):
        return "it did not answer in time."
    if isinstance(error, MCPError):
        return error.message
    return f"{type(error).__name__} {error}".strip()


def _innermost(error: BaseException) -> BaseException:
    while isinstance(error, ExceptionGroup):
        error = cast(BaseException, error.exceptions[0])
    return error
