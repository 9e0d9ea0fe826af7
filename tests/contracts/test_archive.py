"""What every archive promises: whole or not at all, nothing changed that was there, everything found again."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import cast

import anyio
import msgspec
import pytest

from corral.domain.lifecycle import Process
from corral.domain.query import EventsQuery, Record, RecordsQuery
from corral.domain.restored import RestoredEvent
from corral.domain.session import QueuedEvent, SessionState
from corral.errors import Conflict, Invalid, NotFound
from corral.interfaces.store import Depending, Restored
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
)

pytestmark = pytest.mark.anyio

LONG = 1_300
"""More events than go to a database at once."""


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Backend:
    return cast(Backend, request.param)


@pytest.fixture
async def stage(backend: Backend, tmp_path: Path) -> AsyncGenerator[Stage]:
    with anyio.fail_after(20):
        async with staged(backend, tmp_path) as opened:
            yield opened


def body(number: int, kind: str = "from.elsewhere") -> bytes:
    return msgspec.json.encode({"id": f"sevt_{number}", "type": kind, "processed_at": START, "extra": [number]})


def event(number: int) -> RestoredEvent:
    return RestoredEvent(f"sevt_{number}", "from.elsewhere", START, body(number), b"private" if number == 1 else None)


def restored(
    session_id: str = "sesn_a", *, events: int = 3, workspace_id: str = "wrkspc_1", status: str = "idle"
) -> Restored:
    state = SessionState(thread_id="sthr_1", seq=events, last_at=START, status=status)  # pyright: ignore[reportArgumentType]  # a status
    rows = [event(number) for number in range(1, events + 1)]
    return Restored(session(session_id, workspace_id=workspace_id), rows, lambda: state)


async def everything(stage: Stage) -> list[object]:
    """All that a reader can see."""
    records = await stage.records.page(RecordsQuery(kind="agent", workspace_id=None, limit=100))
    found: list[object] = [*records, await stage.archive.workspaces(), *stage.bus.frames]
    for session_id in ("sesn_a", "sesn_b"):
        try:
            snapshot = await stage.log.snapshot(session_id)
        except NotFound as error:
            found.append(type(error))
        else:
            found += [snapshot, *await stage.log.events(session_id, EventsQuery(limit=10_000))]
    return found


async def test_restored_sessions_are_read_as_they_came(stage: Stage) -> None:
    assert not await stage.archive.restore([restored(events=LONG), record("agent_1")])
    logged = await stage.log.events("sesn_a", EventsQuery(limit=10_000))
    assert [each.seq for each in logged] == list(range(1, LONG + 1))
    assert [each.body for each in logged] == [body(number) for number in range(1, LONG + 1)]
    assert (logged[0].private, logged[1].private) == (b"private", None)
    assert (logged[0].event.id, logged[0].event.processed_at) == ("sevt_1", START)
    assert (await stage.log.snapshot("sesn_a")).state.seq == LONG
    assert await stage.records.get("agent", "agent_1", "wrkspc_1") == record("agent_1")


async def test_restored_sessions_go_on(stage: Stage) -> None:
    await stage.archive.restore([restored(events=2)])
    stage.clock.move()
    committed = await stage.log.transact("sesn_a", deciding(said("new")))
    assert committed.state.seq == 3
    logged = await stage.log.events("sesn_a", EventsQuery(limit=10))
    assert [each.event.id for each in logged][:2] == ["sevt_1", "sevt_2"] and logged[2].seq == 3
    assert logged[2].event.processed_at == START + SECOND


async def test_what_waits_in_a_restored_session_can_be_taken_up(stage: Stage) -> None:
    waiting = asked("later").event
    rows = [event(1), RestoredEvent(waiting.id, "user.message", None, msgspec.json.encode(waiting), None)]
    state = SessionState(
        thread_id="sthr_1", seq=2, last_at=START, queue=(QueuedEvent(id=waiting.id, type="user.message", seq=2),)
    )
    await stage.archive.restore([Restored(session(), rows, lambda: state)])
    await stage.log.transact("sesn_a", deciding(Process(waiting.id)))
    logged = await stage.log.events("sesn_a", EventsQuery(limit=10))
    assert [(each.seq, each.event.id) for each in logged] == [(1, "sevt_1"), (3, waiting.id)]


async def test_running_sessions_are_unfinished(stage: Stage) -> None:
    await stage.archive.restore([restored(), restored("sesn_b", status="running")])
    assert await stage.log.unfinished() == ["sesn_b"]


async def test_nothing_is_stored_when_an_item_cannot_be_read(stage: Stage) -> None:
    await stage.log.create(session("sesn_b"), fresh(), deciding(said()))
    before = await everything(stage)

    def items() -> Iterator[Record | Restored]:
        yield record("agent_1")
        yield restored(events=LONG)
        raise Invalid("line 3: no")

    def broken_events() -> Iterator[RestoredEvent]:
        yield event(1)
        raise Invalid("line 2: no")

    with pytest.raises(Invalid, match="line 3"):
        await stage.archive.restore(items())
    with pytest.raises(Invalid, match="line 2"):
        await stage.archive.restore([restored()._replace(events=broken_events())])
    assert await everything(stage) == before


async def test_what_is_there_and_the_same_is_left_alone(stage: Stage) -> None:
    await stage.archive.restore([record("agent_1"), restored(events=LONG)])
    await stage.records.put(msgspec.structs.replace(record("agent_1"), revision=2), expect={"agent_1": 1})
    before = await everything(stage)
    known = await stage.archive.restore([record("agent_1"), restored(events=LONG), restored("sesn_c")])
    assert known == {"agent": 1, "session": 1}
    assert await everything(stage) == before
    assert (await stage.log.snapshot("sesn_c")).state.seq == 3


@pytest.mark.parametrize(
    "other",
    [
        restored(events=2),
        restored(events=4),
        restored(workspace_id="wrkspc_2"),
        restored(status="running"),
        restored()._replace(session=msgspec.structs.replace(session(), title="Other")),
        restored()._replace(events=[event(3), event(2), event(1)]),
        record("agent_1", body=b'{"other":1}'),
        record("agent_1", workspace_id="wrkspc_2"),
        record("agent_2", unique_key="taken"),
    ],
)
async def test_what_is_there_and_differs_is_a_conflict_and_nothing_is_stored(
    backend: Backend, tmp_path: Path, other: Record | Restored
) -> None:
    async with staged(backend, tmp_path) as stage:
        await stage.archive.restore([restored(), record("agent_1"), record("agent_3", unique_key="taken")])
        before = await everything(stage)
        with pytest.raises(Conflict):
            await stage.archive.restore([restored("sesn_b"), record("agent_9"), other])
        assert await everything(stage) == before


async def test_a_record_may_depend_on_the_one_that_is_here(stage: Stage) -> None:
    seen: list[Record | None] = []

    def depending(made: Record | None) -> Depending:
        def decide(here: Record | None) -> Record | None:
            seen.append(here)
            return made

        return Depending("agent", "agent_1", decide)

    agent = record("agent_1")
    assert not await stage.archive.restore([depending(None), depending(agent)])
    assert seen == [None, None] and await stage.records.get("agent", "agent_1", "wrkspc_1") == agent
    assert await stage.archive.restore([record("agent_2"), depending(agent), depending(None)]) == {"agent": 1}
    assert seen[2:] == [agent, agent]
    before = await everything(stage)
    with pytest.raises(Conflict):
        await stage.archive.restore([record("agent_3"), depending(record("agent_1", body=b'{"other":1}'))])
    assert await everything(stage) == before


async def test_nothing_is_published_and_no_spending_counted(stage: Stage) -> None:
    await stage.archive.restore([restored()])
    assert stage.bus.frames == [] and await stage.log.spent_microdollars() == 0


async def test_workspaces_are_those_that_have_something(stage: Stage) -> None:
    assert await stage.archive.workspaces() == []
    await stage.archive.restore([restored(workspace_id="wrkspc_2"), record("agent_1", workspace_id="wrkspc_1")])
    assert await stage.archive.workspaces() == ["wrkspc_1", "wrkspc_2"]


async def test_appends_and_a_restore_do_not_disturb_each_other(stage: Stage) -> None:
    await stage.log.create(session("sesn_b"), fresh(), deciding(said()))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stage.log.transact, "sesn_b", deciding(said(), said()))
        tasks.start_soon(stage.archive.restore, [restored()])
        tasks.start_soon(stage.log.transact, "sesn_b", deciding(said()))
    assert len(await stage.log.events("sesn_b", EventsQuery(limit=10))) == 4
    assert len(await stage.log.events("sesn_a", EventsQuery(limit=10))) == 3
