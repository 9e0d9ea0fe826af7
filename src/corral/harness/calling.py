"""Tool calls of one session: made in its sandbox, answered with result events.

A tool that fails gives an error result for the model to read; so does a sandbox that cannot be made or that died, in
words that do not pretend. Nothing is committed here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from datetime import datetime

import anyio
import msgspec
import structlog

from corral.domain import event as ev
from corral.domain.content import ResultBlock, TextBlock
from corral.domain.environment import SEALED
from corral.domain.ids import new_id
from corral.domain.lifecycle import Append, Change
from corral.domain.placeholder import Substitution
from corral.domain.session import Session, SessionState
from corral.domain.toolset import own_config
from corral.domain.url import Url
from corral.domain.web import Source
from corral.errors import Invalid, PackagesFailed, SandboxError
from corral.harness.context import OpenCall
from corral.harness.deciding import Happened
from corral.harness.entrusting import unreachable
from corral.harness.parts import Parts
from corral.harness.recipe import recipe
from corral.harness.spilling import fitting
from corral.interfaces.mcp import McpFailure, McpTool
from corral.interfaces.sandbox import Sandbox, SandboxReply

log = structlog.get_logger(__name__)

MCP_CALL_LOST = (
    "The server that made this call stopped before the result came, so it is unknown whether the call took effect. "
    "Check the state of things before repeating it."
)


class Caller:
    """Makes one session's calls, in a sandbox that it opens when first needed."""

    def __init__(
        self, parts: Parts, session: Callable[[], Session], shown: Callable[[Url], Collection[Source]]
    ) -> None:
        self._parts, self._shown = parts, shown
        self._session = session
        """The session as it is now: its resources may change between two calls."""
        self._sandbox: Sandbox | None = None
        self._recipe = SEALED
        self._opening = anyio.Lock()
        self._failed: PackagesFailed | None = None
        """This turn's answer to whoever needs the sandbox; the next turn tries again."""
        self._offered = False
        self._servers_failed: set[str] = set()
        self._untold: list[ev.ErrorObject] = []
        self._looked_at: set[str] = set()
        """Ids of credentials whose hosts were compared with the environment's in this turn."""

    def telling(self, happened: Happened) -> Happened:
        """What has happened, with what the client is still to be told about sandbox and servers. Take it once."""
        errors, self._untold = self._untold, []
        if not errors:
            return happened

        def told(session: Session, state: SessionState, now: datetime) -> Sequence[Change]:
            changes = happened(session, state, now)
            return [*(Append(ev.SessionError(id=new_id("sevt"), error=error)) for error in errors), *changes]

        return told

    async def warm(self) -> None:
        """Open the sandbox ahead of the first call; a failure shows when a call needs it."""
        try:
            await self._open()
        except SandboxError as error:
            log.warning("sandbox_unavailable", session_id=self._session().id, reason=error.message)

    async def offered(self) -> Sequence[McpTool]:
        """The tools of the session's MCP servers, as they are now; failures are noticed once in a turn."""
        session = self._session()
        if not session.agent.mcp_servers:
            return ()
        offer = await self._parts.mcp.offer(session, retry=not self._offered)
        self._offered = True
        for failure in offer.failures:
            if failure.server not in self._servers_failed:
                self._servers_failed.add(failure.server)
                self._untold.append(_mcp_error(failure))
        return offer.tools

    async def run(self, call_id: str, call: OpenCall, *, resumed: bool) -> ev.AgentToolResult | ev.AgentMcpToolResult:
        """Run one call, or collect what an earlier worker began (`resumed`)."""
        with self._parts.watch.tool_call(call_id, call.name, call.input, server=call.server) as seen:
            result = await self._result(call_id, call, resumed=resumed)
            seen.answered(result.content, is_error=result.is_error)
            return result

    async def _result(
        self, call_id: str, call: OpenCall, *, resumed: bool
    ) -> ev.AgentToolResult | ev.AgentMcpToolResult:
        if call.server is not None:
            return await self._run_mcp(call_id, call, call.server, resumed=resumed)
        if call.name in self._parts.web:
            return await self._run_web(call_id, call)
        try:
            request = self._parts.tools[call.name].call(call_id, call.input)
            sandbox = await self._open()
            reply = await sandbox.call(msgspec.structs.replace(request, resumed=resumed))
        except (Invalid, SandboxError) as error:
            return _result(call_id, (TextBlock(text=error.message),), is_error=True)
        content = await fitting(call_id, reply.content, self._parts.settings, self._open)
        return _result(call_id, content, is_error=reply.is_error)

    async def _run_web(self, call_id: str, call: OpenCall) -> ev.AgentToolResult:
        config = own_config(self._session().agent.tools, call.name)
        try:
            reply = await self._parts.web[call.name].run(call.input, config, self._shown)
        except Invalid as error:
            return _result(call_id, (TextBlock(text=error.message),), is_error=True)
        content = await fitting(call_id, reply.content, self._parts.settings, self._open)
        return _result(call_id, content, is_error=reply.is_error)

    async def _run_mcp(self, call_id: str, call: OpenCall, server: str, *, resumed: bool) -> ev.AgentMcpToolResult:
        if resumed:
            # The server may have done it; MCP has no way to ask, and a call never runs twice unannounced.
            reply = SandboxReply(content=(TextBlock(text=MCP_CALL_LOST),), is_error=True)
        else:
            reply = await self._parts.mcp.call(self._session(), server, call.name, call.input)
        content = await fitting(call_id, reply.content, self._parts.settings, self._open)
        return ev.AgentMcpToolResult(
            id=new_id("sevt"), mcp_tool_use_id=call_id, content=content, is_error=reply.is_error
        )

    async def forget(self, call_ids: Sequence[str]) -> None:
        """The results of these calls are in the log."""
        if self._sandbox is not None:
            await self._sandbox.forget(call_ids)

    async def _open(self) -> Sandbox:
        async with self._opening:
            # Always through the backend: it knows when a sandbox has died and must be made anew.
            session = self._session()
            if self._sandbox is None:
                self._recipe = await recipe(self._parts.records, session)
            secrets = await self._parts.entrusting.secrets_of(session)
            self._sandbox = await self._made(session.id, secrets)
            self._tell_of_unreachable(secrets)
            mounts = [each.mount() for each in session.resources]
            await self._parts.sandboxes.mount(session.id, mounts, self._parts.blobs)
            return self._sandbox

    def _tell_of_unreachable(self, secrets: Sequence[Substitution]) -> None:
        for secret in secrets:
            if secret.credential_id not in self._looked_at:
                self._looked_at.add(secret.credential_id)
                error = unreachable(self._parts.sandboxes, self._recipe, secret)
                self._untold += [error] if error else []

    async def keep_entrusted(self) -> None:
        """While a turn lasts. See `Entrusting.keep`."""
        seconds = self._parts.settings.vaults_read_seconds
        await self._parts.entrusting.keep(
            self._parts.sandboxes, self._session, lambda: self._sandbox is not None, seconds
        )

    async def _made(self, session_id: str, secrets: Sequence[Substitution]) -> Sandbox:
        if self._failed is not None:
            raise PackagesFailed(self._failed.message)
        try:
            return await self._parts.sandboxes.open(session_id, self._recipe, secrets)
        except PackagesFailed as error:
            self._failed = error
            # `retrying`: the session goes on, and its next turn tries again.
            untold = ev.ErrorObject(type="unknown_error", message=error.message, retry_status=ev.Retrying())
            self._untold.append(untold)
            raise


def _result(call_id: str, content: tuple[ResultBlock, ...], *, is_error: bool) -> ev.AgentToolResult:
    return ev.AgentToolResult(id=new_id("sevt"), tool_use_id=call_id, content=content, is_error=is_error)


def _mcp_error(failure: McpFailure) -> ev.ErrorObject:
    return ev.ErrorObject(
        type="mcp_authentication_failed_error" if failure.is_authentication else "mcp_connection_failed_error",
        message=failure.message,
        retry_status=ev.Retrying(),  # at the session's next turn; this one goes on without the server
        mcp_server_name=failure.server,
    )
