"""Random legal and illegal writes against real stores: what is refused has changed nothing that anyone can see.

`tests/unit/test_lifecycle.py` holds the rules themselves against random events. Here the same kinds of events go
through the log's transactions, as the api and the harness send them, and as neither would: after a refusal the session,
its whole history and what was published must be exactly what they were.
"""

from __future__ import annotations

import tempfile
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import ClassVar, NamedTuple, TypeVar

import pytest
from anyio.from_thread import start_blocking_portal
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from corral.domain import event as ev
from corral.domain import intake, turn
from corral.domain.lifecycle import Append, Change, IllegalTransition, Process
from corral.domain.query import EventsQuery, LoggedEvent
from corral.domain.session import Session, SessionState
from corral.errors import Invalid, NotFound, StaleEpoch
from corral.interfaces.bus import Frame
from corral.interfaces.event_log import Committed, Decide, Decision, Snapshot
from tests.contracts.storage_fixtures import Backend, staged
from tests.unit import builders as make

T = TypeVar("T")

REFUSALS = (Invalid, IllegalTransition, NotFound, StaleEpoch)
LIMITS = turn.Limits(rounds_max=5)
UNKNOWN = "sevt_unknown"


class Seen(NamedTuple):
    """All that there is to see of a session."""

    snapshot: Snapshot
    events: list[LoggedEvent]
    frames: list[Frame]


class Writes(RuleBasedStateMachine):
    """A client, a harness, and somebody who writes whatever comes to mind."""

    backend: ClassVar[Backend] = "ephemeral"

    def __init__(self) -> None:
        super().__init__()
        self.exits = ExitStack()
        directory = Path(self.exits.enter_context(tempfile.TemporaryDirectory()))
        self.portal = self.exits.enter_context(start_blocking_portal())
        self.stage = self.exits.enter_context(self.portal.wrap_async_context_manager(staged(self.backend, directory)))
        self.epoch = 0

    def teardown(self) -> None:
        self.exits.close()

    @initialize()
    def begin(self) -> None:
        self.call(lambda: self.stage.log.create(make.session(), make.state(), self.deciding([])))
        self.epoch = self.call(lambda: self.stage.log.claim("sesn_1")).epoch

    # ---------------------------------------------------------------------------------------------- the writers

    @rule(data=st.data())
    def a_client_sends(self, data: st.DataObject) -> None:
        events = data.draw(st.lists(self.client_events(), max_size=4))
        system_messages = data.draw(st.booleans())
        self.write(
            lambda session, state, now: Decision(
                intake.accept(session, state, events, now, system_messages=system_messages)
            )
        )

    @rule(data=st.data())
    def a_harness_goes_on(self, data: st.DataObject) -> None:
        happened = data.draw(st.sampled_from(["nothing", "answer", "result", "failure", "retry"]))
        calls = data.draw(st.lists(st.sampled_from(["allow", "ask", "deny", "custom"]), max_size=3))

        def decide(session: Session, state: SessionState, now: datetime) -> Decision:
            changes = self.happening(happened, calls, session, state, now)
            decision = turn.proceed(session, state, changes, LIMITS, now)
            return Decision(decision.changes, step=decision.step)

        self.write(decide, epoch=self.epoch)

    @rule(data=st.data())
    def somebody_writes_anything(self, data: st.DataObject) -> None:
        """Legal beginnings with an illegal end are what a store could get wrong."""
        changes = data.draw(st.lists(self.any_change(), min_size=1, max_size=5))
        self.write(self.deciding(changes))

    @rule(epoch=st.integers(-1, 3), workspace=st.sampled_from(["wrkspc_1", "wrkspc_2"]), known=st.booleans())
    def somebody_else_writes(self, epoch: int, workspace: str, known: bool) -> None:
        decide = self.deciding([Append(make.message(), queued=True)])
        self.write(decide, "sesn_1" if known else "sesn_2", workspace_id=workspace, epoch=epoch)

    @rule()
    def another_worker_takes_over(self) -> None:
        self.epoch = self.call(lambda: self.stage.log.claim("sesn_1")).epoch

    # -------------------------------------------------------------------------------------------------- events

    def known_ids(self) -> list[str]:
        state = self.seen().snapshot.state
        return [*(call.id for call in state.pending), *(queued.id for queued in state.queue), UNKNOWN]

    def client_events(self) -> st.SearchStrategy[ev.ClientEvent]:
        ids = st.sampled_from(self.known_ids())
        return st.one_of(
            st.builds(make.message),
            st.builds(make.interrupt),
            st.builds(lambda: ev.SystemMessage(id=make.message().id, content=())),
            st.builds(make.custom_result, ids),
            ids.flatmap(lambda call_id: st.booleans().map(lambda allow: make.confirmation(call_id, allow=allow))),
        )

    def any_change(self) -> st.SearchStrategy[Change]:
        ids = st.sampled_from(self.known_ids())
        events: st.SearchStrategy[ev.AnyEvent] = st.one_of(
            self.client_events(),
            st.builds(make.tool_use),
            st.builds(make.custom_use),
            st.builds(make.result, ids),
            st.builds(make.answer_end, ids),
            st.builds(lambda: ev.SpanModelRequestStart(id=make.message().id)),
            st.builds(lambda: ev.SessionStatusRunning(id=make.message().id)),
            st.builds(lambda: ev.SessionStatusRescheduled(id=make.message().id)),
            st.builds(lambda: ev.SessionStatusIdle(id=make.message().id, stop_reason=ev.EndTurn())),
        )
        return st.one_of(
            st.builds(Process, ids), st.builds(Append, events, queued=st.booleans()), st.builds(Append, events)
        )

    @staticmethod
    def happening(
        happened: str, calls: Sequence[str], session: Session, state: SessionState, now: datetime
    ) -> Sequence[Change]:
        """What a harness might report now; sometimes it is not its time."""
        match happened:
            case "answer":
                uses = [make.custom_use() if kind == "custom" else make.tool_use(kind) for kind in calls]  # pyright: ignore[reportArgumentType]  # drawn from permissions
                return [*map(Append, uses), Append(make.answer_end(state.open_request_id or UNKNOWN))]
            case "result":
                return [Append(make.result(state.pending[0].id if state.pending else UNKNOWN))]
            case "failure" | "retry":
                status = ev.Retrying() if happened == "retry" else ev.Exhausted()
                error = ev.ErrorObject(type="model_overloaded_error", message="busy", retry_status=status)
                return turn.fail_request(session, state, error, now)
            case _:
                return turn.resume(session, state)

    # ------------------------------------------------------------------------------------------------- the store

    def write(
        self, decide: Decide, session_id: str = "sesn_1", *, workspace_id: str | None = None, epoch: int | None = None
    ) -> None:
        """Write, and look whether a refusal has left a trace."""
        before = self.seen()
        self.stage.clock.move()
        try:
            committed: Committed = self.call(
                lambda: self.stage.log.transact(session_id, decide, workspace_id=workspace_id, epoch=epoch)
            )
        except REFUSALS:
            assert self.seen() == before
        else:
            after = self.seen()
            assert after.snapshot == Snapshot(committed.session, committed.state)
            gone = {row.moved_from for row in committed.rows}
            kept = [logged for logged in before.events if logged.seq not in gone]
            assert [logged for logged in after.events if logged.seq <= before.snapshot.state.seq] == kept
            assert len(after.frames) == len(before.frames) + len(committed.rows)

    def seen(self) -> Seen:
        return self.call(self._seen)

    async def _seen(self) -> Seen:
        snapshot = await self.stage.log.snapshot("sesn_1")
        events = await self.stage.log.events("sesn_1", EventsQuery(limit=10_000))
        return Seen(snapshot, events, list(self.stage.bus.frames))

    def call(self, action: Callable[[], Awaitable[T]]) -> T:
        return self.portal.call(action)

    @staticmethod
    def deciding(changes: Sequence[Change]) -> Decide:
        return lambda session, state, now: Decision(changes)


class WritesToSqlite(Writes):
    backend = "sqlite"


class WritesToPostgres(Writes):
    backend = "postgresql"


Writes.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
WritesToSqlite.TestCase.settings = settings(max_examples=10, stateful_step_count=25, deadline=None)
WritesToPostgres.TestCase.settings = settings(max_examples=5, stateful_step_count=25, deadline=None)
test_a_refused_write_leaves_no_trace_in_memory = Writes.TestCase
test_a_refused_write_leaves_no_trace_on_disk = WritesToSqlite.TestCase
test_a_refused_write_leaves_no_trace_in_a_shared_database = WritesToPostgres.TestCase


@pytest.mark.parametrize("illegal", [Process(UNKNOWN), Append(ev.SessionStatusRescheduled(id="sevt_x"))])
def test_an_illegal_end_takes_its_legal_beginning_back(illegal: Change) -> None:
    writes = Writes()
    writes.begin()
    before = writes.seen()
    writes.write(writes.deciding([Append(make.message(), queued=True), illegal]))
    assert writes.seen() == before
    writes.teardown()
