"""The loop: read, decide, act, append.

`Turn.run` repeats one thing: commit what has happened, let `domain/turn.py` decide inside that transaction what comes
next, and do it. One place appends (`commit`), under the epoch of the claim, and nothing is done before the decision to
do it is durable. So a process may die at any line: the next one claims the session (`worker.py`), finds what is open in
its state, and goes on. Nothing here decides, talks HTTP, or knows a backend.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import TypeVar, assert_never

import anyio
from anyio.abc import TaskGroup

from corral.domain import turn
from corral.domain.lifecycle import Append, Change
from corral.domain.query import EventsQuery, LoggedEvent
from corral.domain.session import PendingCall, Session, SessionState
from corral.errors import ContextOverflow, ProviderError
from corral.harness.answer import Answer, commit_answer
from corral.harness.asking import ask
from corral.harness.calling import Caller
from corral.harness.compaction import commit_compaction, compact
from corral.harness.context import Context
from corral.harness.deciding import Happened, following, unchanged
from corral.harness.failure import backoff_seconds, error_object
from corral.harness.interruption import unless
from corral.harness.parts import Parts
from corral.harness.prompt import sandbox_tools
from corral.interfaces.engine import Signal
from corral.interfaces.event_log import Claim, Decide, Step

T = TypeVar("T")
PAGE_EVENTS = 1_000


class Turn:
    """One run of a session by one worker, until it rests."""

    def __init__(
        self,
        parts: Parts,
        claim: Claim,
        context: Context,
        *,
        interrupted: Signal,
        background: TaskGroup,
        inherited: bool,
    ) -> None:
        self._parts = parts
        self._epoch, first = claim
        self._session, self._state, self._first_step = first.session, first.state, first.step
        self._context = context
        self._interrupted = interrupted
        self._background = background
        self._caller = Caller(parts, lambda: self._session, context.shown_urls.sources)
        self._warmed = False
        self._inherited = {call.id for call in claim.state.pending} if inherited else set[str]()
        self._retry_after_seconds: float | None = None

    async def run(self) -> None:
        """Commit, decide, act, until there is nothing to do."""
        await self._read_log()
        step = _given(self._first_step)
        while not isinstance(step, turn.Rest):
            match step:
                case turn.AskModel(request_id):
                    step = await self._ask(request_id)
                case turn.Compact(request_id):
                    step = await self._compact(request_id)
                case turn.RunCalls(calls):
                    step = await self._run_calls(calls)
                case turn.Backoff(attempt):
                    step = await self._wait(attempt)
                case _:
                    assert_never(step)

    async def commit(self, happened: Happened) -> Step:
        """Append what has happened together with everything that follows from it by the rules alone."""
        self._interrupted.clear()  # before the queue is read, so that a later interrupt is not lost
        decide = await following(self._parts, self._caller.telling(happened))
        step: Step | None = None
        with anyio.CancelScope(shield=True):  # an interrupt must not leave us unsure what was committed
            step = await self._transact(decide)
        return _given(step)

    async def _transact(self, decide: Decide) -> Step | None:
        committed = await self._parts.log.transact(self._session.id, decide, epoch=self._epoch)
        self._session, self._state = committed.session, committed.state
        rows = [
            LoggedEvent(row.seq, row.event, row.private) for row in committed.rows if row.event and row.processed_at
        ]
        if rows and rows[0].seq == self._context.seq + 1:
            self._context.extend(rows)
        elif rows:
            await self._read_log()  # the client has appended in between
        return committed.step

    async def _read_log(self) -> None:
        while self._context.seq < self._state.seq:
            query = EventsQuery(limit=PAGE_EVENTS, beyond=(False, self._context.seq), processed_only=True)
            page = await self._parts.log.events(self._session.id, query)
            self._context.extend(page)
            if len(page) < PAGE_EVENTS:
                return

    async def _ask(self, request_id: str) -> Step:
        if not self._warmed and sandbox_tools(self._session.agent, self._parts.tools):
            self._warmed = True
            self._background.start_soon(self._caller.warm)
            self._background.start_soon(self._caller.keep_entrusted)
        answer = await self._unless_interrupted(self._answer)
        match answer:
            case None:
                return await self.commit(unchanged)
            case ContextOverflow():
                return await self.commit(lambda session, state, now: turn.overflow(state))
            case ProviderError():
                return await self._fail(answer)
            case _:
                return await self.commit(
                    lambda session, state, now: commit_answer(session, state, answer, request_id, now)
                )

    async def _answer(self) -> Answer | ProviderError:
        offered = await self._caller.offered()
        return await ask(self._parts, self._session, self._state, self._context, offered)

    async def _compact(self, request_id: str) -> Step:
        compaction = await self._unless_interrupted(lambda: compact(self._parts, self._session, self._context))
        match compaction:
            case None:
                return await self.commit(unchanged)
            case ProviderError():
                return await self._fail(compaction)
            case _:
                return await self.commit(lambda session, state, now: commit_compaction(compaction, request_id))

    async def _fail(self, failure: ProviderError) -> Step:
        self._retry_after_seconds = failure.retry_after_seconds
        return await self.commit(lambda session, state, now: self._failed(session, state, failure, now))

    def _failed(self, session: Session, state: SessionState, failure: ProviderError, now: datetime) -> Sequence[Change]:
        if any(queued.type == "user.interrupt" for queued in state.queue):
            return []  # the interrupt ends the request by itself
        error = error_object(failure, attempt=state.attempt, settings=self._parts.settings)
        return turn.fail_request(session, state, error, now)

    async def _run_calls(self, calls: Sequence[PendingCall]) -> Step:
        """Run calls side by side; each result is committed as it comes, as long as its call is open."""
        limiter, committing = anyio.CapacityLimiter(self._parts.settings.tool_calls_parallel_max), anyio.Lock()
        steps: list[Step] = []
        tasks = anyio.create_task_group()

        def some_open() -> bool:
            return any(self._state.call(each.id) for each in calls)

        async def one(call: PendingCall) -> None:
            async with limiter:
                result = await self._result(call)
                async with committing:
                    if self._state.call(call.id):  # else a commit took up an interrupt, and has begun what comes next
                        steps.append(await self.commit(lambda session, state, now: [result]))
                if not some_open():
                    tasks.cancel_scope.cancel()

        async def all_of_them() -> None:
            async with tasks:
                for call in calls:
                    tasks.start_soon(one, call)

        await self._unless_interrupted(all_of_them)
        await self._caller.forget([call.id for call in calls])
        return await self.commit(unchanged) if some_open() else steps[-1]

    async def _result(self, call: PendingCall) -> Append:
        if call.stage == "denied":
            return turn.denied_result(call)
        resumed = call.id in self._inherited
        return Append(await self._caller.run(call.id, self._context.open_calls[call.id], resumed=resumed))

    async def _wait(self, attempt: int) -> Step:
        seconds = backoff_seconds(attempt, self._retry_after_seconds, self._parts.settings)
        await self._unless_interrupted(lambda: anyio.sleep(seconds))
        return await self.commit(lambda session, state, now: turn.resume(session, state))

    def _seconds_left(self) -> float | None:
        limit = self._parts.settings.session_seconds_max
        return None if limit is None else max(0.0, limit - self._state.active_at(self._parts.clock.now()) / 1000)

    async def _unless_interrupted(self, action: Callable[[], Awaitable[T]]) -> T | None:
        return await unless(self._interrupted, self._parts.log, self._session.id, self._seconds_left(), action)


def _given(step: Step | None) -> Step:
    assert step is not None, "`following` always gives a step"
    return step
