"""The MCP servers of sessions: connects when a turn needs them, keeps connections between turns, drops idle ones.

A connection belongs to one session, because servers keep state for each, and because two sessions may have different
credentials for one server. It is a cache: after a restart, and on another worker, it is made again.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import anyio

from corral.config_sections import McpSettings
from corral.domain.agent import McpServer
from corral.domain.content import JsonObject, TextBlock
from corral.domain.session import Session
from corral.interfaces.mcp import McpFailure, McpOffer, McpTool
from corral.interfaces.sandbox import SandboxReply
from corral.interfaces.vault import Bearer, Credentials

if TYPE_CHECKING:
    from corral.mcp.connection import Connection

NO_SERVER = "The session has no MCP server named `{server}`."


class _Held:
    """The connections of one session."""

    def __init__(self) -> None:
        self.connections: dict[str, Connection] = {}
        self.failures: dict[str, McpFailure] = {}
        self.calls = 0
        self.lock = anyio.Lock()
        self.idle: asyncio.TimerHandle | None = None


class SessionServers:
    """Implements `interfaces.mcp.McpServers`."""

    def __init__(self, credentials: Credentials, settings: McpSettings) -> None:
        self._credentials, self._settings = credentials, settings
        self._held: dict[str, _Held] = {}
        self._closing: set[asyncio.Task[None]] = set()

    async def offer(self, session: Session, *, retry: bool) -> McpOffer:
        """See `McpServers.offer`."""
        from corral.mcp.tools import enabled

        held = self._hold(session.id)
        tools: dict[str, tuple[McpTool, ...]] = {}
        try:
            await self._list(held, session, tools, retry=retry)
        finally:
            self._touch(session.id)
        ordered = [tool for server in session.agent.mcp_servers for tool in tools.get(server.name, ())]
        failures = [held.failures[s.name] for s in session.agent.mcp_servers if s.name in held.failures]
        return McpOffer(enabled(session.agent, ordered), tuple(failures))

    async def _list(self, held: _Held, session: Session, tools: dict[str, tuple[McpTool, ...]], *, retry: bool) -> None:
        async with held.lock:
            await self._drop_changed(held, session)
            if retry:
                held.failures.clear()
                for connection in held.connections.values():
                    connection.forget_tools()
            async with anyio.create_task_group() as tasks:
                for server in session.agent.mcp_servers:
                    if server.name not in held.failures:
                        tasks.start_soon(self._list_one, held, session, server, tools)

    async def call(self, session: Session, server: str, name: str, arguments: JsonObject) -> SandboxReply:
        """See `McpServers.call`."""
        from corral.mcp import results
        from corral.mcp.connection import Refused

        held = self._hold(session.id)
        held.calls += 1
        try:
            connection = await self._connected(held, session, server)
            result = await connection.call(name, arguments)
        except Refused as refused:
            if refused.is_authentication:
                # The tools are gone for this turn, and the session is told why when they are next offered.
                held.failures[server] = McpFailure(server, refused.message, is_authentication=True)
            return SandboxReply(content=(TextBlock(text=refused.message),), is_error=True)
        finally:
            held.calls -= 1
            self._touch(session.id)
        return SandboxReply(content=results.blocks(result, connection.hidden), is_error=bool(result.is_error))

    async def forget(self, session_id: str) -> None:
        """See `McpServers.forget`."""
        held = self._held.pop(session_id, None)
        if held is not None:
            await _close(held)

    async def close(self) -> None:
        """See `McpServers.close`."""
        every, self._held = list(self._held.values()), {}
        async with anyio.create_task_group() as tasks:
            for held in every:
                tasks.start_soon(_close, held)
        if self._closing:
            await asyncio.wait(self._closing)

    async def _list_one(
        self, held: _Held, session: Session, server: McpServer, tools: dict[str, tuple[McpTool, ...]]
    ) -> None:
        from corral.mcp.connection import Refused

        try:
            connection = await self._open(held, session, server)
            tools[server.name] = await connection.tools()
        except Refused as refused:
            held.failures[server.name] = McpFailure(server.name, refused.message, refused.is_authentication)

    async def _connected(self, held: _Held, session: Session, name: str) -> Connection:
        """The connection for a call: after a restart a confirmed call comes before anything was offered."""
        from corral.mcp.connection import Refused

        server = next((each for each in session.agent.mcp_servers if each.name == name), None)
        if server is None:
            raise Refused(NO_SERVER.format(server=name))
        async with held.lock:
            failure = held.failures.get(name)
            if failure is not None:
                raise Refused(failure.message)
            return await self._open(held, session, server)

    async def _open(self, held: _Held, session: Session, server: McpServer) -> Connection:
        # Imported late: the SDK takes a second or two, and most servers never need it.
        from corral.mcp.connection import Connection

        connection = held.connections.get(server.name)
        if connection is None or connection.lost:
            vaults, workspace_id = session.vault_ids, session.workspace_id

            async def find(rejected: Bearer | None) -> Bearer | None:
                return await self._credentials.bearer(workspace_id, vaults, server.url, rejected=rejected)

            connection = held.connections[server.name] = Connection(server.name, server.url, find, self._settings)
        await connection.ready()
        return connection

    async def _drop_changed(self, held: _Held, session: Session) -> None:
        """An update of the session may have taken servers away."""
        for name in held.connections.keys() - {server.name for server in session.agent.mcp_servers}:
            await held.connections.pop(name).close()

    def _hold(self, session_id: str) -> _Held:
        held = self._held.setdefault(session_id, _Held())
        if held.idle is not None:
            held.idle.cancel()
        return held

    def _touch(self, session_id: str) -> None:
        """Count the idle time from now."""
        held = self._held.get(session_id)
        if held is not None and not held.calls:
            if held.idle is not None:
                held.idle.cancel()
            seconds = self._settings.idle_seconds_max
            held.idle = asyncio.get_running_loop().call_later(seconds, self._let_go, session_id, held)

    def _let_go(self, session_id: str, held: _Held) -> None:
        if held.calls or self._held.get(session_id) is not held:
            return
        del self._held[session_id]
        task = asyncio.create_task(_close(held), name=f"closing mcp of {session_id}")
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


async def _close(held: _Held) -> None:
    if held.idle is not None:
        held.idle.cancel()
    async with anyio.create_task_group() as tasks:
        for connection in held.connections.values():
            tasks.start_soon(connection.close)
