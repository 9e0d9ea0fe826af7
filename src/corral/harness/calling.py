"""Tool calls of one session: made in its sandbox, answered with result events.

A tool that fails gives an error result for the model to read; so does a sandbox that cannot be made or that died, in
words that do not pretend. Nothing is committed here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime

import anyio
import msgspec
import structlog

from corral.domain import event as ev
from corral.domain.content import ResultBlock, TextBlock
from corral.domain.environment import SEALED
from corral.domain.ids import new_id
from corral.domain.lifecycle import Append, Change
from corral.domain.session import Session, SessionState
from corral.errors import Invalid, PackagesFailed, SandboxError
from corral.harness.context import OpenCall
from corral.harness.deciding import Happened
from corral.harness.parts import Parts
from corral.harness.recipe import recipe
from corral.harness.spilling import fitting
from corral.interfaces import Sandbox

log = structlog.get_logger(__name__)


class Caller:
    """Makes one session's calls, in a sandbox that it opens when first needed."""

    def __init__(self, parts: Parts, session: Callable[[], Session]) -> None:
        self._parts = parts
        self._session = session
        """The session as it is now: its resources may change between two calls."""
        self._sandbox: Sandbox | None = None
        self._recipe = SEALED
        self._opening = anyio.Lock()
        self._failed: PackagesFailed | None = None
        """This turn's answer to whoever needs the sandbox; the next turn tries again."""
        self._untold: ev.ErrorObject | None = None

    def telling(self, happened: Happened) -> Happened:
        """What has happened, with what the client is still to be told about the sandbox. Take it once."""
        error, self._untold = self._untold, None
        if error is None:
            return happened

        def told(session: Session, state: SessionState, now: datetime) -> Sequence[Change]:
            changes = happened(session, state, now)
            return [Append(ev.SessionError(id=new_id("sevt"), error=error)), *changes]

        return told

    async def warm(self) -> None:
        """Open the sandbox ahead of the first call; a failure shows when a call needs it."""
        try:
            await self._open()
        except SandboxError as error:
            log.warning("sandbox_unavailable", session_id=self._session().id, reason=error.message)

    async def run(self, call_id: str, call: OpenCall, *, resumed: bool) -> ev.AgentToolResult:
        """Run one call, or collect what an earlier worker began (`resumed`)."""
        try:
            request = self._parts.tools[call.name].call(call_id, call.input)
            sandbox = await self._open()
            reply = await sandbox.call(msgspec.structs.replace(request, resumed=resumed))
        except (Invalid, SandboxError) as error:
            return _result(call_id, (TextBlock(text=error.message),), is_error=True)
        content = await fitting(call_id, reply.content, self._parts.settings, self._open)
        return _result(call_id, content, is_error=reply.is_error)

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
            self._sandbox = await self._made(session.id)
            mounts = [each.mount() for each in session.resources]
            await self._parts.sandboxes.mount(session.id, mounts, self._parts.blobs)
            return self._sandbox

    async def _made(self, session_id: str) -> Sandbox:
        if self._failed is not None:
            raise PackagesFailed(self._failed.message)
        try:
            return await self._parts.sandboxes.open(session_id, self._recipe)
        except PackagesFailed as error:
            self._failed = error
            # `retrying`: the session goes on, and its next turn tries again (events.md section 10).
            self._untold = ev.ErrorObject(type="unknown_error", message=error.message, retry_status=ev.Retrying())
            raise


def _result(call_id: str, content: tuple[ResultBlock, ...], *, is_error: bool) -> ev.AgentToolResult:
    return ev.AgentToolResult(id=new_id("sevt"), tool_use_id=call_id, content=content, is_error=is_error)
