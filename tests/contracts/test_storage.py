"""What every store promises: one suite over all backends."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncGenerator
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, cast

import anyio
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from corral.domain import event as ev
from corral.domain.lifecycle import Append, Change, IllegalTransition, Process
from corral.domain.query import EventsQuery, LoggedEvent, RecordsQuery, SessionsQuery
from corral.domain.session import Session, SessionState
from corral.domain.usage import RequestTokens
from corral.errors import Conflict, Invalid, NotFound, StaleEpoch
from corral.interfaces.event_log import Decide, Decision, EventLog, Snapshot
from tests.contracts.storage_fixtures import (
    BACKENDS,
    SECOND,
    START,
    Backend,
    Stage,
    asked,
    deciding,
    fresh,
    record,
    said,
    session,
    staged,
    words_of,
)

pytestmark = pytest.mark.anyio


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Backend:
    return cast(Backend, request.param)


@pytest.fixture
async def stage(backend: Backend, tmp_path: Path) -> AsyncGenerator[Stage]:
    with anyio.fail_after(20):
        async with staged(backend, tmp_path) as opened:
            yield opened


async def history(log: EventLog, session_id: str = "sesn_a") -> list[LoggedEvent]:
    return await log.events(session_id, EventsQuery(limit=10_000))


async def ids_of(log: EventLog, session_id: str = "sesn_a") -> list[str]:
    return [logged.event.id for logged in await history(log, session_id)]


# -------------------------------------------------------------------------------------------------- whole or not


async def test_what_was_accepted_can_be_read_back(stage: Stage) -> None:
    first, second = said("one"), asked("two")
    created = await stage.log.create(session(), fresh(), deciding(first))
    stage.clock.move()
    committed = await stage.log.transact("sesn_a", deciding(second))
    assert [row.event_id for row in (*created.rows, *committed.rows)] == [first.event.id, second.event.id]
    read = await history(stage.log)
    assert [logged.seq for logged in read] == [1, 2]
    assert read[0].event == msgspec.structs.replace(first.event, processed_at=START)
    assert read[1].event == second.event and read[1].event.processed_at is None
    assert await stage.log.snapshot("sesn_a") == Snapshot(session(), committed.state)


async def test_a_refused_decision_changes_nothing(stage: Stage) -> None:
    await stage.log.create(session(), fresh(), deciding(said()))
    before = await stage.log.snapshot("sesn_a"), await ids_of(stage.log), list(stage.bus.frames)

    def refuse(session: Session, state: SessionState, now: datetime) -> Decision:
        raise Invalid("no")

    with pytest.raises(Invalid, match="no"):
        await stage.log.transact("sesn_a", refuse)
    with pytest.raises(IllegalTransition):
        rescheduled = Append(ev.SessionStatusRescheduled(id="sevt_x"))
        await stage.log.transact("sesn_a", deciding(said(), asked(), rescheduled))
    assert (await stage.log.snapshot("sesn_a"), await ids_of(stage.log), stage.bus.frames) == before


async def test_any_exception_of_a_decision_reaches_its_caller_and_only_it(stage: Stage) -> None:
    await stage.log.create(session(), fresh(), deciding())

    def broken(session: Session, state: SessionState, now: datetime) -> Decision:
        raise ZeroDivisionError

    async def fail() -> None:
        with pytest.raises(ZeroDivisionError):
            await stage.log.transact("sesn_a", broken)

    async with anyio.create_task_group() as tasks:
        for _ in range(10):
            tasks.start_soon(fail)
            tasks.start_soon(stage.log.transact, "sesn_a", deciding(said()))
    assert len(await history(stage.log)) == 10


async def test_a_session_is_created_once(stage: Stage) -> None:
    await stage.log.create(session(), fresh(), deciding(said()))
    with pytest.raises(Conflict):
        await stage.log.create(session(), fresh(), deciding(said()))
    assert len(await history(stage.log)) == 1


async def test_a_creation_that_is_refused_leaves_no_session(stage: Stage) -> None:
    with pytest.raises(Invalid):
        await stage.log.create(session(), fresh(), deciding(said(), Process("sevt_unknown")))
    with pytest.raises(NotFound):
        await stage.log.snapshot("sesn_a")
    assert stage.bus.frames == []


async def test_unknown_sessions_are_not_found(stage: Stage) -> None:
    with pytest.raises(NotFound):
        await stage.log.snapshot("sesn_x")
    with pytest.raises(NotFound):
        await stage.log.transact("sesn_x", deciding())
    with pytest.raises(NotFound):
        await stage.log.claim("sesn_x")
    with pytest.raises(NotFound):
        await history(stage.log, "sesn_x")
    with pytest.raises(NotFound):
        await stage.log.delete("sesn_x", "wrkspc_1", lambda session, state: None)


async def test_another_workspace_does_not_see_the_session(stage: Stage) -> None:
    await stage.log.create(session(), fresh(), deciding())
    with pytest.raises(NotFound):
        await stage.log.snapshot("sesn_a", "wrkspc_2")
    with pytest.raises(NotFound):
        await stage.log.transact("sesn_a", deciding(said()), workspace_id="wrkspc_2")
    with pytest.raises(NotFound):
        await stage.log.delete("sesn_a", "wrkspc_2", lambda session, state: None)
    assert await stage.log.sessions(SessionsQuery(workspace_id="wrkspc_2", limit=10)) == []
    assert await history(stage.log) == []


async def test_a_decision_can_change_the_session_itself(stage: Stage) -> None:
    await stage.log.create(session(), fresh(), deciding())
    renamed = msgspec.structs.replace(session(), title="New", archived_at=START)
    committed = await stage.log.transact("sesn_a", lambda session, state, now: Decision((), session=renamed))
    assert committed.session == renamed
    assert (await stage.log.snapshot("sesn_a")).session == renamed
    assert await stage.log.sessions(SessionsQuery(workspace_id="wrkspc_1", limit=10)) == []
    page = await stage.log.sessions(SessionsQuery(workspace_id="wrkspc_1", limit=10, include_archived=True))
    assert [found.session for found in page] == [renamed]


# ----------------------------------------------------------------------------------------------------- one writer


async def test_a_claim_raises_the_epoch_and_shuts_out_the_one_before(stage: Stage) -> None:
    await stage.log.create(session(), fresh(), deciding())
    first = await stage.log.claim("sesn_a")
    await stage.log.transact("sesn_a", deciding(said()), epoch=first.epoch)
    second = await stage.log.claim("sesn_a")
    assert second.epoch == first.epoch + 1
    assert second.state.seq == 1
    before = await stage.log.snapshot("sesn_a"), await ids_of(stage.log), list(stage.bus.frames)
    with pytest.raises(StaleEpoch):
        await stage.log.transact("sesn_a", deciding(said()), epoch=first.epoch)
    assert (await stage.log.snapshot("sesn_a"), await ids_of(stage.log), stage.bus.frames) == before
    await stage.log.transact("sesn_a", deciding(said()), epoch=second.epoch)
    await stage.log.transact("sesn_a", deciding(said()))


async def test_every_claim_gets_an_epoch_of_its_own(stage: Stage) -> None:
    await stage.log.create(session(), fresh(), deciding())
    epochs: list[int] = []

    async def claim() -> None:
        epochs.append((await stage.log.claim("sesn_a")).epoch)

    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(claim)
    assert sorted(epochs) == list(range(1, 21))


def _count(session: Session, state: SessionState, now: datetime) -> Decision:
    return Decision((said(str(state.seq)),))


async def test_decisions_on_one_session_see_all_earlier_ones(stage: Stage) -> None:
    await stage.log.create(session(), fresh(), deciding())
    async with anyio.create_task_group() as tasks:
        for _ in range(100):
            tasks.start_soon(stage.log.transact, "sesn_a", _count)
    assert words_of(logged.event for logged in await history(stage.log)) == [str(number) for number in range(100)]


async def test_many_sessions_commit_side_by_side(stage: Stage) -> None:
    names = [f"sesn_{number}" for number in range(50)]

    async def live(name: str) -> None:
        await stage.log.create(session(name), fresh(), _count)
        for _ in range(9):
            await stage.log.transact(name, _count)

    async with anyio.create_task_group() as tasks:
        for name in names:
            tasks.start_soon(live, name)
    for name in names:
        read = await history(stage.log, name)
        assert [logged.seq for logged in read] == list(range(1, 11))
        assert words_of(logged.event for logged in read) == [str(number) for number in range(10)]


# -------------------------------------------------------------------------------------------------------- the queue


async def test_a_processed_event_moves_to_the_end_and_keeps_its_id(stage: Stage) -> None:
    waiting = asked("later")
    await stage.log.create(session(), fresh(), deciding(waiting, said("now")))
    assert await ids_of(stage.log) == [(await history(stage.log))[0].event.id, waiting.event.id]
    stage.clock.move()
    committed = await stage.log.transact("sesn_a", deciding(Process(waiting.event.id)))
    stamped = msgspec.structs.replace(waiting.event, processed_at=START + SECOND)
    assert [(row.seq, row.event) for row in committed.rows] == [(3, stamped)]
    read = await history(stage.log)
    assert [(logged.seq, logged.event.id) for logged in read][1:] == [(3, waiting.event.id)]
    assert read[1].event == stamped
    assert len(read) == 2


async def test_an_event_may_be_accepted_and_processed_at_once(stage: Stage) -> None:
    waiting = asked()
    await stage.log.create(session(), fresh(), deciding(waiting, said(), Process(waiting.event.id)))
    read = await history(stage.log)
    assert [(logged.seq, logged.event.processed_at) for logged in read] == [(2, START), (3, START)]
    assert [frame.type for frame in stage.bus.frames] == ["user.message", "agent.message", "user.message"]


async def test_events_processed_by_neighbours_of_one_commit_keep_one_row(stage: Stage) -> None:
    await stage.log.create(session(), fresh(), deciding())
    waiting = [asked(str(number)) for number in range(20)]
    async with anyio.create_task_group() as tasks:
        for change in waiting:
            tasks.start_soon(stage.log.transact, "sesn_a", deciding(change))
            tasks.start_soon(stage.log.transact, "sesn_a", _process_all)
    await stage.log.transact("sesn_a", _process_all)
    assert sorted(await ids_of(stage.log)) == sorted(change.event.id for change in waiting)
    assert all(logged.event.processed_at for logged in await history(stage.log))


def _process_all(session: Session, state: SessionState, now: datetime) -> Decision:
    return Decision([Process(queued.id) for queued in state.queue])


async def test_time_never_runs_backwards_in_a_log(stage: Stage) -> None:
    await stage.log.create(session(), fresh(), deciding(said()))
    stage.clock.move(-SECOND)
    await stage.log.transact("sesn_a", deciding(said()))
    assert [logged.event.processed_at for logged in await history(stage.log)] == [START, START]


async def test_private_bytes_stay_beside_their_event(stage: Stage) -> None:
    change = msgspec.structs.replace(said(), private=b"exact answer")
    await stage.log.create(session(), fresh(), deciding(said(), change))
    assert [logged.private for logged in await history(stage.log)] == [None, b"exact answer"]
    assert all(b"exact" not in frame.data for frame in stage.bus.frames)


# ------------------------------------------------------------------------------------------------------- histories


class Placed(NamedTuple):
    """A row of the model: the plainest thing that behaves as a history should."""

    queued: bool
    seq: int
    id: str
    type: str
    processed_at: datetime | None


async def _fill(stage: Stage, script: list[int]) -> list[Placed]:
    """Play appends, queueings and processings, and keep a model of what must come out."""
    await stage.log.create(session(), fresh(), deciding())
    model: list[Placed] = []
    for seq, action in enumerate(script, 1):
        waiting = [row for row in model if row.queued]
        change: Change = said() if action < 3 else asked()
        if action > 4 and waiting:
            chosen = waiting[action % len(waiting)]
            model.remove(chosen)
            model.append(Placed(False, seq, chosen.id, chosen.type, stage.clock.now()))
            change = Process(chosen.id)
        elif action < 3:
            model.append(Placed(False, seq, change.event.id, "agent.message", stage.clock.now()))
        else:
            model.append(Placed(True, seq, change.event.id, "user.message", None))
        await stage.log.transact("sesn_a", deciding(change))
        stage.clock.move(timedelta(microseconds=action % 2))
    return sorted(model)


def _asked_for(model: list[Placed], query: EventsQuery) -> list[Placed]:
    def within(moment: datetime | None) -> bool:
        if moment is None:
            return not (query.after or query.before or query.processed_only)
        late = query.after is None or moment > query.after or (query.after_inclusive and moment == query.after)
        early = query.before is None or moment < query.before or (query.before_inclusive and moment == query.before)
        return late and early

    chosen = [row for row in model if within(row.processed_at) and (not query.types or row.type in query.types)]
    return chosen if query.order == "asc" else chosen[::-1]


async def _walk(log: EventLog, query: EventsQuery) -> list[tuple[int, str]]:
    """All pages, one behind the other."""
    found: list[tuple[int, str]] = []
    while True:
        page = await log.events("sesn_a", query)
        assert len(page) <= query.limit
        found += [(logged.seq, logged.event.id) for logged in page]
        if len(page) < query.limit:
            return found
        last = page[-1]
        query = msgspec.structs.replace(query, beyond=(last.event.processed_at is None, last.seq))


moments = st.none() | st.integers(0, 20).map(lambda number: START + timedelta(microseconds=number))
events_queries = st.builds(
    EventsQuery,
    limit=st.integers(1, 7),
    order=st.sampled_from(("asc", "desc")),
    types=st.sampled_from(((), ("agent.message",), ("user.message",), ("session.error", "user.message"))),
    after=moments,
    after_inclusive=st.booleans(),
    before=moments,
    before_inclusive=st.booleans(),
    processed_only=st.booleans(),
)
slow = settings(
    deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@slow
@given(script=st.lists(st.integers(0, 8), max_size=25), queries=st.lists(events_queries, min_size=1, max_size=6))
def test_pages_of_history_agree_with_a_plain_list(
    backend: Backend, script: list[int], queries: list[EventsQuery]
) -> None:
    async def check() -> None:
        with tempfile.TemporaryDirectory() as directory:
            async with staged(backend, Path(directory)) as stage:
                model = await _fill(stage, script)
                for query in queries:
                    expected = [(row.seq, row.id) for row in _asked_for(model, query)]
                    assert await _walk(stage.log, query) == expected

    anyio.run(check)


# -------------------------------------------------------------------------------------------------------- sessions


@slow
@given(births=st.lists(st.integers(0, 3), max_size=12), limit=st.integers(1, 5), descending=st.booleans())
def test_pages_of_sessions_lead_forth_and_back(
    backend: Backend, births: list[int], limit: int, descending: bool
) -> None:
    async def check() -> None:
        with tempfile.TemporaryDirectory() as directory:
            async with staged(backend, Path(directory)) as stage:
                for number, birth in enumerate(births):
                    created = session(f"sesn_{number}", created_at=START + timedelta(microseconds=birth))
                    await stage.log.create(created, fresh(), deciding())
                await _there_and_back(stage.log, births, limit, descending)

    anyio.run(check)


async def _there_and_back(log: EventLog, births: list[int], limit: int, descending: bool) -> None:
    ordered = sorted(((birth, f"sesn_{number}") for number, birth in enumerate(births)), reverse=descending)
    expected = [name for _, name in ordered]
    query = SessionsQuery(workspace_id="wrkspc_1", limit=limit, order="desc" if descending else "asc")
    pages: list[list[str]] = []
    while True:
        page = await log.sessions(query)
        if not page:
            break
        pages.append([found.session.id for found in page])
        last = page[-1].session
        query = msgspec.structs.replace(query, beyond=(last.created_at, last.id))
    assert [name for page in pages for name in page] == expected
    for before, page in pairwise(pages):
        first = (await log.snapshot(page[0])).session
        back = msgspec.structs.replace(query, beyond=(first.created_at, first.id), backwards=True)
        assert [found.session.id for found in await log.sessions(back)] == before


async def test_sessions_are_filtered(stage: Stage) -> None:
    await stage.log.create(session("sesn_1", agent_id="agent_2"), fresh(), deciding())
    await stage.log.create(session("sesn_2", created_at=START + SECOND, deployment_id="dep"), fresh(), deciding())
    await stage.log.create(session("sesn_3", archived_at=START), fresh(), deciding())
    running = Append(ev.SessionStatusRunning(id="sevt_run"))
    await stage.log.create(session("sesn_4", created_at=START + 2 * SECOND), fresh(), deciding(running))

    async def found(**filters: object) -> list[str]:
        query = msgspec.convert({"workspace_id": "wrkspc_1", "limit": 10, "order": "asc"} | filters, SessionsQuery)
        return [snapshot.session.id for snapshot in await stage.log.sessions(query)]

    assert await found() == ["sesn_1", "sesn_2", "sesn_4"]
    assert await found(include_archived=True) == ["sesn_1", "sesn_3", "sesn_2", "sesn_4"]
    assert await found(agent_id="agent_2") == ["sesn_1"]
    assert await found(agent_id="agent_1", agent_version=2) == []
    assert await found(deployment_id="dep") == ["sesn_2"]
    assert await found(statuses=("running", "terminated")) == ["sesn_4"]
    assert await found(after=START, before=START + 2 * SECOND) == ["sesn_2"]
    assert await found(after=START, after_inclusive=True, before=START + SECOND) == ["sesn_1"]
    assert await found(after=START, before=START + 2 * SECOND, before_inclusive=True) == ["sesn_2", "sesn_4"]


async def test_unfinished_sessions_are_those_that_work(stage: Stage) -> None:
    running, idle = (
        Append(ev.SessionStatusRunning(id="sevt_1")),
        ev.SessionStatusIdle(id="sevt_2", stop_reason=ev.EndTurn()),
    )
    await stage.log.create(session("sesn_idle"), fresh(), deciding())
    await stage.log.create(session("sesn_done"), fresh(), deciding(running, Append(idle)))
    await stage.log.create(session("sesn_runs"), fresh(), deciding(running))
    retry = Append(ev.SessionStatusRescheduled(id="sevt_3"))
    await stage.log.create(session("sesn_waits"), fresh(), deciding(running))
    await stage.log.transact("sesn_waits", deciding(retry))
    assert await stage.log.unfinished() == ["sesn_runs", "sesn_waits"]
    await stage.log.transact("sesn_runs", deciding(Append(idle)))
    assert await stage.log.unfinished() == ["sesn_waits"]


def _spends(microdollars: int | None) -> Decide:
    start = ev.SpanModelRequestStart(id="sevt_start")
    end = ev.SpanModelRequestEnd(id="sevt_end", model_request_start_id="sevt_start")
    return deciding(Append(start), Append(end, tokens=RequestTokens(cost_microdollars=microdollars)))


async def test_spending_is_summed_over_all_sessions(stage: Stage) -> None:
    assert await stage.log.spent_microdollars() == 0
    await stage.log.create(session("sesn_1"), fresh(), _spends(5))
    await stage.log.create(session("sesn_2"), fresh(), deciding())
    async with anyio.create_task_group() as tasks:
        for _ in range(10):
            tasks.start_soon(stage.log.transact, "sesn_2", _spends(100))
    assert await stage.log.spent_microdollars() == 1_005
    await stage.log.transact("sesn_1", _spends(None))
    await stage.log.transact("sesn_1", _spends(7))
    assert await stage.log.spent_microdollars() == 1_005, "what a session without a price costs is unknown"
    await stage.log.delete("sesn_2", "wrkspc_1", lambda session, state: None)
    assert await stage.log.spent_microdollars() == 1_005, "deleting a session gives no money back"


async def test_a_deleted_session_is_gone_and_its_streams_are_told(stage: Stage) -> None:
    await stage.log.create(session(), fresh(), deciding(said(), asked()))
    await stage.log.create(session("sesn_b"), fresh(), deciding(said()))

    def refuse(session: Session, state: SessionState) -> None:
        raise Invalid("it runs")

    with pytest.raises(Invalid, match="it runs"):
        await stage.log.delete("sesn_a", "wrkspc_1", refuse)
    assert len(await history(stage.log)) == 2
    await stage.log.delete("sesn_a", "wrkspc_1", lambda session, state: None)
    last = stage.bus.of("sesn_a")[-1]
    deleted = msgspec.json.decode(last.data, type=ev.SessionDeleted)
    assert (last.type, deleted.processed_at) == ("session.deleted", START)
    for gone in (stage.log.snapshot("sesn_a"), history(stage.log), stage.log.claim("sesn_a")):
        with pytest.raises(NotFound):
            await gone
    assert len(await history(stage.log, "sesn_b")) == 1
    await stage.log.create(session(), fresh(), deciding())
    assert await history(stage.log) == []


# ---------------------------------------------------------------------------------------------------------- frames


async def test_each_row_is_published_once_before_its_caller_continues(stage: Stage) -> None:
    await stage.log.create(session(), fresh(), deciding())

    async def append(number: int) -> None:
        changes = [said(f"{number}.{index}") for index in range(3)]
        await stage.log.transact("sesn_a", deciding(*changes))
        published = {msgspec.json.decode(frame.data)["id"] for frame in stage.bus.frames}
        assert published >= {change.event.id for change in changes}

    async with anyio.create_task_group() as tasks:
        for number in range(30):
            tasks.start_soon(append, number)
    frames = stage.bus.of("sesn_a")
    assert [msgspec.json.decode(frame.data)["id"] for frame in frames] == await ids_of(stage.log)
    assert {(frame.type, frame.preview_of) for frame in frames} == {("agent.message", None)}


async def test_a_frame_is_the_event_on_the_wire(stage: Stage) -> None:
    await stage.log.create(session(), fresh(), deciding(asked("hi")))
    shown = msgspec.json.decode(stage.bus.frames[0].data)
    assert shown == {
        "type": "user.message",
        "id": shown["id"],
        "processed_at": None,
        "content": [{"type": "text", "text": "hi"}],
    }


# --------------------------------------------------------------------------------------------------------- records


async def test_records_come_back_as_they_were_put(stage: Stage) -> None:
    full = record("agent_1", body=b'{"a": 1}', unique_key="key", parent_id="p", archived_at=START + SECOND, revision=3)
    await stage.records.put(full)
    assert await stage.records.get("agent", "agent_1", "wrkspc_1") == full
    assert await stage.records.get("agent", "agent_1", None) == full
    for kind, name, workspace in (("x", "agent_1", "wrkspc_1"), ("agent", "y", None), ("agent", "agent_1", "other")):
        with pytest.raises(NotFound):
            await stage.records.get(kind, name, workspace)


async def test_a_record_is_replaced_only_at_the_expected_revision(stage: Stage) -> None:
    await stage.records.put(record("a"), expect={"a": 0})
    with pytest.raises(Conflict):
        await stage.records.put(record("a", revision=2), expect={"a": 0})
    await stage.records.put(record("a", revision=2, body=b"2"), expect={"a": 1})
    with pytest.raises(Conflict):
        await stage.records.put(record("a", revision=2), expect={"a": 1})
    assert (await stage.records.get("agent", "a", None)).body == b"2"


async def test_several_records_are_put_together_or_not_at_all(stage: Stage) -> None:
    await stage.records.put(record("old", unique_key="taken"))
    with pytest.raises(Conflict):
        await stage.records.put(record("new"), record("newer", unique_key="taken"))
    with pytest.raises(Conflict):
        await stage.records.put(record("new"), record("old", revision=2), expect={"old": 7})
    with pytest.raises(NotFound):
        await stage.records.get("agent", "new", None)
    await stage.records.put(record("new"), record("newer", unique_key="free"))
    assert (await stage.records.get("agent", "newer", None)).unique_key == "free"


async def test_unique_keys_are_unique_within_kind_and_workspace(stage: Stage) -> None:
    await stage.records.put(record("a", unique_key="k"), record("b"), record("c"))
    await stage.records.put(record("d", unique_key="k", kind="environment"))
    await stage.records.put(record("e", unique_key="k", workspace_id="wrkspc_2"))
    with pytest.raises(Conflict):
        await stage.records.put(record("f", unique_key="k"))
    await stage.records.put(record("a", unique_key="k", revision=2))
    await stage.records.put(record("a", revision=3))
    await stage.records.put(record("f", unique_key="k"))


async def test_a_record_cannot_be_taken_over_from_another_workspace(stage: Stage) -> None:
    await stage.records.put(record("a"))
    with pytest.raises(Conflict):
        await stage.records.put(record("a", workspace_id="wrkspc_2"))
    with pytest.raises(NotFound):
        await stage.records.delete("agent", "a", "wrkspc_2")
    await stage.records.delete("agent", "a", "wrkspc_1")
    with pytest.raises(NotFound):
        await stage.records.delete("agent", "a", "wrkspc_1")


async def test_racing_puts_of_one_record_have_one_winner(stage: Stage) -> None:
    outcomes: list[str] = []

    async def put(number: int) -> None:
        try:
            await stage.records.put(record("a", body=str(number).encode()), expect={"a": 0})
            outcomes.append("won")
        except Conflict:
            outcomes.append("lost")

    async with anyio.create_task_group() as tasks:
        for number in range(10):
            tasks.start_soon(put, number)
    assert sorted(outcomes) == ["lost"] * 9 + ["won"]


async def test_records_are_paged_newest_first(stage: Stage) -> None:
    births = [0, 1, 1, 2, 2, 2, 3]
    for number, birth in enumerate(births):
        await stage.records.put(record(f"a{number}", created_at=START + birth * SECOND, parent_id=f"p{number % 2}"))
    await stage.records.put(record("other_kind", kind="environment"), record("other", workspace_id="wrkspc_2"))

    async def walk(query: RecordsQuery) -> list[str]:
        found: list[str] = []
        while page := await stage.records.page(query):
            found += [each.id for each in page]
            query = msgspec.structs.replace(query, beyond=(page[-1].created_at, page[-1].id))
        return found

    newest_first = ["a6", "a5", "a4", "a3", "a2", "a1", "a0"]
    plain = RecordsQuery(kind="agent", workspace_id="wrkspc_1", limit=2)
    assert await walk(plain) == newest_first
    assert await walk(msgspec.structs.replace(plain, workspace_id=None)) == [*newest_first[:-1], "other", "a0"]
    assert await walk(msgspec.structs.replace(plain, parent_id="p1")) == ["a5", "a3", "a1"]
    assert await walk(msgspec.structs.replace(plain, parent_id="p1", workspace_id="wrkspc_2")) == []
    assert await walk(msgspec.structs.replace(plain, after=START + SECOND, before=START + 3 * SECOND)) == [
        "a5",
        "a4",
        "a3",
    ]
    await stage.records.put(record("a6", created_at=START + 3 * SECOND, archived_at=START, revision=2))
    assert await walk(msgspec.structs.replace(plain, include_archived=False)) == newest_first[1:]
