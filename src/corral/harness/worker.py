"""The harness as an engine sees it: takes sessions over, one claim at a time, and cleans up after deleted ones.

What a turn does is `loop.py`. Here is what stays between turns: the folded contexts of sessions that rest, so that the
next turn costs the new events and not the history. They are a cache; the log can always replace them.
"""

from __future__ import annotations

import anyio
from structlog.contextvars import bound_contextvars

from corral.domain.turn import Rest
from corral.errors import NotFound
from corral.harness.context import Context
from corral.harness.deciding import following, unchanged
from corral.harness.failure import abandon, unwrapped
from corral.harness.loop import Turn
from corral.harness.parts import Parts
from corral.interfaces.engine import Signal
from corral.interfaces.event_log import Claim


class Harness:
    """Advances sessions; at most one `advance` at a time for each."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._contexts: dict[str, tuple[int, Context]] = {}
        """Of sessions that rest, with the epoch they were built under; oldest out first."""

    async def advance(self, session_id: str, interrupted: Signal, *, inherited: bool) -> None:
        """Advance the session until it rests. See `interfaces.engine.Worker`."""
        with bound_contextvars(session_id=session_id):
            await self._advance(session_id, interrupted, inherited=inherited)

    async def _advance(self, session_id: str, interrupted: Signal, *, inherited: bool) -> None:
        interrupted.clear()  # the claim reads the queue: what was signalled before it is in there
        claim = await self._claim(session_id)
        epoch, context = self._contexts.pop(session_id, (0, Context()))
        if epoch + 1 != claim.epoch:
            context = Context()  # somebody else advanced it in between
        with unwrapped():
            async with anyio.create_task_group() as background:
                running = Turn(
                    self._parts, claim, context, interrupted=interrupted, background=background, inherited=inherited
                )
                await self._watched(running, claim, inherited=inherited)
                background.cancel_scope.cancel()
        self._contexts[session_id] = (claim.epoch, context)
        while len(self._contexts) > self._parts.settings.contexts_cached_max:
            del self._contexts[next(iter(self._contexts))]

    async def _watched(self, running: Turn, claim: Claim, *, inherited: bool) -> None:
        if isinstance(claim.committed.step, Rest):
            await running.run()  # woken for nothing, which is no turn
            return
        with self._parts.watch.turn(claim.committed.session, inherited=inherited):
            await running.run()

    async def _claim(self, session_id: str) -> Claim:
        try:
            return await self._parts.log.claim(session_id, await following(self._parts, unchanged))
        except NotFound:
            await self._parts.sandboxes.destroy(session_id)  # deleted: nothing of it may stay behind
            await self._parts.mcp.forget(session_id)
            raise

    async def give_up(self, session_id: str) -> None:
        """End the session's turn after a failure that is a bug of ours, so that its client is not left waiting."""
        await self._parts.log.claim(session_id, abandon)
