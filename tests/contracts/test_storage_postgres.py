"""What only a store that processes share can promise: no decision on what another has changed, no doubt that lasts."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import datetime
from typing import NamedTuple
from urllib.parse import urlsplit

import anyio
import anyio.lowlevel
import asyncpg
import msgspec
import pytest

from corral.domain.lifecycle import Process
from corral.domain.query import EventsQuery, RecordsQuery, SessionsQuery
from corral.domain.session import Session, SessionState
from corral.engines.bus import LocalBus
from corral.errors import Conflict, Invalid, MachineUnfit, NotFound, StaleEpoch, Unavailable
from corral.interfaces.bus import Subscription
from corral.interfaces.event_log import Decision
from corral.storage import postgres_notices
from corral.storage.postgres import PostgresStore, migrate, open_store
from tests import postgres_server
from tests.contracts.storage_fixtures import Bus, Clock, asked, deciding, fresh, record, said, session

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(postgres_server.unavailable() is not None, reason=str(postgres_server.unavailable())),
]

WAIT_SECONDS_MAX = 60
UNTOLD = """
INSERT INTO events (session, seq, id, type, processed_at, body)
SELECT e.session, e.seq + 1, 'sevt_untold', e.type, e.processed_at, e.body
FROM sessions AS s JOIN events AS e ON e.session = s.number WHERE s.id = 'sesn_a' ORDER BY e.seq DESC LIMIT 1
"""
"""One more event of a log, and no notice of it."""


@pytest.fixture
async def url() -> AsyncGenerator[str]:
    with anyio.fail_after(WAIT_SECONDS_MAX):
        async with postgres_server.swept() as found:
            yield found


class Opened(NamedTuple):
    """What one of several processes has."""

    store: PostgresStore
    bus: LocalBus

    def stream(self, session_id: str = "sesn_a") -> Subscription:
        return self.store.notices.bus.subscribe(session_id)


Opener = Callable[..., Awaitable[Opened]]


@pytest.fixture
async def opened(url: str) -> AsyncGenerator[Opener]:
    async with AsyncExitStack() as stack:

        async def open_one(*, exclusive: bool = False) -> Opened:
            bus = LocalBus(frames_max=100_000, bytes_max=1 << 26)
            store = await open_store(url, bus, Clock(), exclusive=exclusive)
            stack.push_async_callback(store.close)
            return Opened(store, bus)

        yield open_one


async def ids_of(store: PostgresStore, session_id: str = "sesn_a") -> list[str]:
    return [logged.event.id for logged in await store.log.events(session_id, EventsQuery(limit=100_000))]


async def shown(stream: Subscription, count: int) -> list[str]:
    """Ids of the next events of a stream."""
    found: list[str] = []
    async for frame in stream:
        found.append(msgspec.json.decode(frame.data)["id"])
        if len(found) == count:
            break
    return found


def _count(session: Session, state: SessionState, now: datetime) -> Decision:
    return Decision((said(str(state.seq)),))


def _if_empty(session: Session, state: SessionState, now: datetime) -> Decision:
    if state.seq:
        raise Invalid("it is not empty")
    return Decision(())


# ------------------------------------------------------------------------------------------- several processes


async def test_decisions_of_two_processes_see_all_earlier_ones(opened: Opener) -> None:
    processes = [await opened(), await opened()]
    for name in ("sesn_a", "sesn_b"):
        await processes[0].store.log.create(session(name), fresh(), deciding())
    async with anyio.create_task_group() as tasks:
        for number in range(120):
            tasks.start_soon(processes[number % 2].store.log.transact, ("sesn_a", "sesn_b")[number // 2 % 2], _count)
    for name in ("sesn_a", "sesn_b"):
        page = await processes[0].store.log.events(name, EventsQuery(limit=1_000))
        assert [logged.seq for logged in page] == list(range(1, 61))
        words = [msgspec.json.decode(logged.body)["content"][0]["text"] for logged in page]
        assert words == [str(number) for number in range(60)]


async def test_neither_a_refusal_nor_a_rest_is_decided_on_what_another_process_has_changed(opened: Opener) -> None:
    first, second = await opened(), await opened()
    await first.store.log.create(session(), fresh(), deciding())
    await second.store.log.transact("sesn_a", _if_empty)
    await first.store.log.transact("sesn_a", deciding(said()))
    with pytest.raises(Invalid):
        await second.store.log.transact("sesn_a", _if_empty)
    committed = await second.store.log.transact("sesn_a", deciding())
    await first.store.log.transact("sesn_a", deciding(said()))
    assert (committed.state.seq, (await second.store.log.transact("sesn_a", deciding())).state.seq) == (1, 2)
    with pytest.raises(Conflict):
        await second.store.log.create(session(), fresh(), deciding())


async def test_a_claim_shuts_the_other_process_out(opened: Opener) -> None:
    first, second = await opened(), await opened()
    await first.store.log.create(session(), fresh(), deciding())
    stale = (await first.store.log.claim("sesn_a")).epoch
    await first.store.log.transact("sesn_a", deciding(said()), epoch=stale)
    current = (await second.store.log.claim("sesn_a")).epoch
    assert current == stale + 1
    with pytest.raises(StaleEpoch):
        await first.store.log.transact("sesn_a", deciding(said()), epoch=stale)
    await second.store.log.transact("sesn_a", deciding(said()), epoch=current)
    assert len(await ids_of(first.store)) == 2


async def test_sessions_deleted_and_queued_elsewhere_are_found_as_they_are(opened: Opener) -> None:
    first, second = await opened(), await opened()
    await first.store.log.create(session(), fresh(), deciding())
    await second.store.log.transact("sesn_a", deciding())
    waiting = asked()
    await first.store.log.transact("sesn_a", deciding(waiting))
    await second.store.log.transact("sesn_a", lambda session, state, now: Decision([Process(state.queue[0].id)]))
    assert await ids_of(first.store) == [waiting.event.id]
    await first.store.log.delete("sesn_a", "wrkspc_1", lambda session, state: None)
    with pytest.raises(NotFound):
        await second.store.log.transact("sesn_a", deciding(said()))
    await second.store.log.create(session(), fresh(), deciding(said()))
    assert len(await ids_of(first.store)) == 1


async def test_racing_puts_of_two_processes_have_one_winner(opened: Opener) -> None:
    stores = [(await opened()).store, (await opened()).store]
    outcomes: list[str] = []

    async def put(number: int) -> None:
        try:
            await stores[number % 2].records.put(record("a", body=b"%d" % number), expect={"a": 0})
            outcomes.append("won")
        except Conflict:
            outcomes.append("lost")

    async with anyio.create_task_group() as tasks:
        for number in range(20):
            tasks.start_soon(put, number)
    assert sorted(outcomes) == ["lost"] * 19 + ["won"]


# ------------------------------------------------------------------------------------------------------ streams


@pytest.mark.requirement("F094")
async def test_streams_of_all_processes_show_one_log_in_its_order(opened: Opener) -> None:
    processes = [await opened(), await opened(), await opened()]
    await processes[0].store.log.create(session(), fresh(), deciding())
    streams = [process.stream() for process in processes]
    async with anyio.create_task_group() as tasks:
        for number in range(90):
            tasks.start_soon(processes[number % 2].store.log.transact, "sesn_a", deciding(said(), said()))
    written = await ids_of(processes[0].store)
    for stream in streams:
        assert await shown(stream, 180) == written


async def test_a_stream_ends_when_its_session_is_deleted_elsewhere(opened: Opener) -> None:
    first, second = await opened(), await opened()
    await first.store.log.create(session(), fresh(), deciding())
    stream = second.stream()
    await first.store.log.transact("sesn_a", deciding(said()))
    await first.store.log.delete("sesn_a", "wrkspc_1", lambda session, state: None)
    assert [frame.type async for frame in stream][-1] == "session.deleted"


async def test_a_lost_notice_only_delays(opened: Opener, url: str) -> None:
    first, second = await opened(), await opened()
    await first.store.log.create(session(), fresh(), deciding())
    stream = second.stream()
    await first.store.log.transact("sesn_a", deciding(said()))
    await shown(stream, 1)
    await _terminate(url, "corral listener")
    for _ in range(5):
        await first.store.log.transact("sesn_a", deciding(said()))
    assert await shown(stream, 5) == (await ids_of(first.store))[1:]
    await first.store.log.transact("sesn_a", deciding(said()))
    assert await shown(stream, 1) == (await ids_of(first.store))[6:]


async def test_a_stream_that_was_opened_when_no_notices_came_misses_nothing(opened: Opener, url: str) -> None:
    first, second = await opened(), await opened()
    await second.store.log.create(session(), fresh(), deciding(said()))
    await first.store.log.snapshot("sesn_a")  # on a connection that stays
    name = urlsplit(url).path.removeprefix("/")
    await postgres_server.execute(postgres_server.shared(), f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
    try:
        await postgres_server.execute(
            postgres_server.shared(),
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity "
            f"WHERE datname = '{name}' AND application_name = 'corral listener'",
        )
        stream = first.stream()
        found = await first.store.log.snapshot("sesn_a")
        first.store.notices.bus.opened_at("sesn_a", found.state.seq)
        await second.store.log.transact("sesn_a", deciding(said()))
    finally:
        await postgres_server.execute(postgres_server.shared(), f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    await second.store.log.transact("sesn_a", deciding(said()))
    with anyio.fail_after(WAIT_SECONDS_MAX):
        assert await shown(stream, 2) == (await ids_of(second.store))[1:]


async def test_what_a_stream_has_found_when_it_was_opened_is_not_shown_behind_what_came_later(opened: Opener) -> None:
    only = await opened()
    await only.store.log.create(session(), fresh(), deciding(said()))
    seq = (await only.store.log.snapshot("sesn_a")).state.seq
    stream = only.stream()
    only.store.notices.bus.opened_at("sesn_a", seq + 1)  # the next commit was found, and word of it comes later
    await only.store.log.transact("sesn_a", deciding(said()))
    for number in (2, 3):
        await only.store.log.transact("sesn_a", deciding(said()))
        with anyio.fail_after(WAIT_SECONDS_MAX):
            assert await shown(stream, 1) == (await ids_of(only.store))[number:]


async def test_a_lost_notice_only_delays_while_others_keep_coming(
    opened: Opener, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_notices, "RECHECK_SECONDS", 0.5)
    first, second = await opened(), await opened()
    for session_id in ("sesn_a", "sesn_b"):
        await first.store.log.create(session(session_id), fresh(), deciding())
    quiet, busy = second.stream("sesn_a"), second.stream("sesn_b")
    for session_id, stream in (("sesn_a", quiet), ("sesn_b", busy)):
        await first.store.log.transact(session_id, deciding(said()))
        await shown(stream, 1)
    async with anyio.create_task_group() as tasks:

        async def keep_coming() -> None:
            while True:
                await first.store.log.transact("sesn_b", deciding(said()))

        tasks.start_soon(keep_coming)
        await shown(busy, 5)
        await postgres_server.execute(url, UNTOLD)
        await shown(quiet, 1)
        tasks.cancel_scope.cancel()


async def test_only_processes_that_share_sessions_tell_of_their_commits(opened: Opener, url: str) -> None:
    alone, one_of_many = await opened(exclusive=True), await opened()
    told: list[str] = []
    ended = anyio.Event()

    def hear(connection: object, pid: int, channel: str, payload: object) -> None:
        ended.set() if payload == "end" else told.append(str(payload))

    ear = await asyncpg.connect(url)
    await ear.add_listener(postgres_notices.EVENTS, hear)
    for process, name in ((alone, "sesn_a"), (one_of_many, "sesn_b")):
        await process.store.log.create(session(name), fresh(), deciding(said()))
        stream = process.stream(name)
        await process.store.log.transact(name, deciding(said()))
        assert await shown(stream, 1) == (await ids_of(process.store, name))[1:]
    for process in (alone, one_of_many):  # which would take it for a notice
        await process.store.close()
    await postgres_server.execute(url, f"NOTIFY {postgres_notices.EVENTS}, 'end'")
    await ended.wait()
    await ear.close()
    assert len(told) == 2 and all("sesn_b" in notice for notice in told)


async def test_a_wake_reaches_every_process(opened: Opener) -> None:
    first, second = await opened(), await opened()
    woken: list[tuple[str, bool]] = []
    twice = anyio.Event()

    def on_wake(session_id: str, interrupt: bool) -> None:
        woken.append((session_id, interrupt))
        if len(woken) == 2:
            twice.set()

    second.store.notices.on_wake = on_wake
    await first.store.notices.wake("sesn_a")
    await first.store.notices.wake("sesn_b", interrupt=True)
    await twice.wait()
    assert woken == [("sesn_a", False), ("sesn_b", True)]


async def test_a_batch_of_many_logs_fits_into_its_notices(opened: Opener) -> None:
    first, second = await opened(), await opened()
    names = [f"sesn_{'x' * 80}_{number}" for number in range(150)]
    for name in names:
        await first.store.log.create(session(name), fresh(), deciding())
    streams = [second.stream(name) for name in names]
    async with anyio.create_task_group() as tasks:
        for name in names:
            tasks.start_soon(first.store.log.transact, name, deciding(said()))
    for stream in streams:
        assert len(await shown(stream, 1)) == 1


# --------------------------------------------------------------------------------------------- broken connections


async def _terminate(url: str, name: str) -> None:
    """End the server's side of connections, as a crash of its process would."""
    connection = await asyncpg.connect(url)
    await connection.fetch(
        "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity "
        "WHERE application_name = $1 AND datname = current_database()",
        name,
    )
    await connection.close()


async def _wait_until_blocked(url: str) -> None:
    """Until the writer waits for a lock that somebody else holds."""
    connection = await asyncpg.connect(url)
    query = (
        "SELECT count(*) FROM pg_stat_activity "
        "WHERE application_name = 'corral writer' AND wait_event_type = 'Lock' AND datname = current_database()"
    )
    while not await connection.fetchval(query):
        await anyio.lowlevel.checkpoint()
    await connection.close()


async def test_a_connection_that_breaks_in_mid_commit_leaves_no_half_and_no_double(opened: Opener, url: str) -> None:
    process = await opened()
    stream = process.stream()
    await process.store.log.create(session(), fresh(), deciding())
    epoch = (await process.store.log.claim("sesn_a")).epoch
    change = said("once")
    blocker = await asyncpg.connect(url)
    lock = blocker.transaction()
    await lock.start()
    await blocker.execute("SELECT 1 FROM sessions FOR UPDATE")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: process.store.log.transact("sesn_a", deciding(change), epoch=epoch))
        await _wait_until_blocked(url)
        await _terminate(url, "corral writer")
        await _wait_until_blocked(url)
        assert await ids_of(process.store) == []
        await lock.rollback()
    await blocker.close()
    assert await ids_of(process.store) == [change.event.id] == await shown(stream, 1)


async def test_a_decision_that_waited_for_a_lock_sees_all_of_what_it_waited_for(opened: Opener, url: str) -> None:
    store = (await opened()).store
    await store.log.create(session(), fresh(), deciding())
    renamed = msgspec.json.encode(msgspec.structs.replace(session(), title="renamed"))
    other = await asyncpg.connect(url)
    # Nobody tells the store, so it decides on the old version first, is refused, and waits for the lock the next time.
    await other.execute("UPDATE sessions SET version = version + 1")
    change = other.transaction()
    await change.start()
    await other.execute("UPDATE sessions SET version = version + 1")
    await other.execute("UPDATE session_documents SET document = $1", renamed)
    seen: list[str | None] = []

    def decide(session: Session, state: SessionState, now: datetime) -> Decision:
        seen.append(session.title)
        return Decision((said(),))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(store.log.transact, "sesn_a", decide)
        await _wait_until_blocked(url)
        await change.commit()
    await other.close()
    assert seen == [None, "renamed"]


async def test_connections_that_broke_while_they_lay_idle_are_replaced(opened: Opener, url: str) -> None:
    process = await opened()
    await process.store.log.create(session(), fresh(), deciding())
    await process.store.records.put(record("a"))
    for name in ("corral writer", "corral reader", "corral listener"):
        await _terminate(url, name)
    assert (await process.store.log.snapshot("sesn_a")).state.seq == 0
    for _ in range(2):
        try:
            await process.store.log.transact("sesn_a", deciding(said()))
        except Unavailable:
            continue
        break
    assert len(await ids_of(process.store)) == 1


@pytest.mark.requirement("F069")
@pytest.mark.skipif("CORRAL_TEST_POSTGRES" in os.environ, reason="kills a server, so one of its own")
async def test_a_server_that_is_killed_loses_nothing_that_was_acknowledged_and_repeats_nothing() -> None:
    server = await anyio.to_thread.run_sync(postgres_server.Server)
    try:
        with anyio.fail_after(2 * WAIT_SECONDS_MAX):
            await _append_through_a_kill(server)
    finally:
        await anyio.to_thread.run_sync(server.close)


async def _append_through_a_kill(server: postgres_server.Server) -> None:
    names = [f"sesn_{number}" for number in range(8)]
    acknowledged: dict[str, list[str]] = {name: [] for name in names}
    unknown = 0
    store = await open_store(server.url, Bus(), Clock(), doubt_seconds_max=0)
    enough = anyio.Event()

    async def work(name: str) -> None:
        nonlocal unknown
        await store.log.create(session(name), fresh(), deciding())
        while True:
            change = said()
            try:
                await store.log.transact(name, deciding(change))
            except Unavailable:
                unknown += 1
                return
            acknowledged[name].append(change.event.id)
            if sum(map(len, acknowledged.values())) == 400:
                enough.set()

    async with anyio.create_task_group() as tasks:
        for name in names:
            tasks.start_soon(work, name)
        await enough.wait()
        await anyio.to_thread.run_sync(server.kill)
    await anyio.to_thread.run_sync(server.start)
    assert unknown == len(names)
    for name in names:
        stored = await ids_of(store, name)
        assert stored[: len(acknowledged[name])] == acknowledged[name]
        assert len(stored) - len(acknowledged[name]) in (0, 1), "what nobody was told about is there once, or not"
        assert (await store.log.snapshot(name)).state.seq == len(stored) == len(set(stored))
        await store.log.transact(name, deciding(said()))
    await store.close()


async def test_one_batch_is_decided_while_another_is_written_and_no_session_is_in_both(
    opened: Opener, url: str
) -> None:
    log = (await opened()).store.log
    for name in ("sesn_a", "sesn_b"):
        await log.create(session(name), fresh(), deciding())
    seen: list[tuple[str, int]] = []
    durable: list[str] = []
    decided = anyio.Event()

    def note(session: Session, state: SessionState, now: datetime) -> Decision:
        seen.append((session.id, state.seq))
        if session.id == "sesn_b":
            decided.set()
        return Decision((said(),))

    async def append(name: str) -> None:
        await log.transact(name, note)
        durable.append(name)

    other = await asyncpg.connect(url)
    async with anyio.create_task_group() as tasks:
        async with other.transaction():
            await other.execute("SELECT FROM sessions WHERE id = 'sesn_a' FOR UPDATE")
            tasks.start_soon(append, "sesn_a")
            await anyio.wait_all_tasks_blocked()
            for name in ("sesn_a", "sesn_b"):
                tasks.start_soon(append, name)
            await decided.wait()
            assert (seen, durable) == ([("sesn_a", 0), ("sesn_b", 0)], [])
    await other.close()
    assert (seen, sorted(durable)) == (
        [("sesn_a", 0), ("sesn_b", 0), ("sesn_a", 1)],
        ["sesn_a", "sesn_a", "sesn_b"],
    )


async def test_what_cannot_be_stored_fails_alone(opened: Opener) -> None:
    process = await opened()
    for name in ("sesn_a", "sesn_b"):
        await process.store.log.create(session(name), fresh(), deciding())
    poisoned = msgspec.structs.replace(session("sesn_b"), environment_id="nul\0")

    def poison(session: Session, state: SessionState, now: datetime) -> Decision:
        return Decision((said(),), session=poisoned)

    async def fail() -> None:
        with pytest.raises(Unavailable):
            await process.store.log.transact("sesn_b", poison)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(fail)
        for _ in range(10):
            tasks.start_soon(process.store.log.transact, "sesn_a", deciding(said()))
    assert (len(await ids_of(process.store)), await ids_of(process.store, "sesn_b")) == (10, [])


async def test_what_no_database_can_hold_is_not_found(opened: Opener) -> None:
    store = (await opened()).store
    for name in ("\0", "sesn_\0"):
        with pytest.raises(NotFound):
            await store.log.snapshot(name)
        with pytest.raises(NotFound):
            await store.log.transact(name, deciding())
        with pytest.raises(NotFound):
            await store.records.get("agent", name, None)
        assert await store.log.sessions(SessionsQuery(workspace_id="wrkspc_1", limit=1, agent_id=name)) == []
        assert await store.records.page(RecordsQuery(kind="agent", workspace_id=None, limit=1, parent_id=name)) == []
    await store.records.put(record("a", unique_key="nul \0 in a name"))
    with pytest.raises(Conflict):
        await store.records.put(record("b", unique_key="nul \0 in a name"))


# ------------------------------------------------------------------------------------------------- opening


async def test_one_process_at_a_time_advances_sessions(opened: Opener) -> None:
    first = await opened(exclusive=True)
    with pytest.raises(MachineUnfit, match="Another server advances the sessions"):
        await opened(exclusive=True)
    await (await opened()).store.log.create(session(), fresh(), deciding())
    await first.store.close()
    await opened(exclusive=True)


async def test_servers_that_start_together_migrate_once() -> None:
    done: list[tuple[int, int]] = []
    async with postgres_server.database() as url:

        async def run() -> None:
            done.append(await migrate(url))

        with anyio.fail_after(WAIT_SECONDS_MAX):
            async with anyio.create_task_group() as tasks:
                for _ in range(3):
                    tasks.start_soon(run)
    latest = max(after for _, after in done)
    assert sorted(done) == [(0, latest), (latest, latest), (latest, latest)]


async def test_what_cannot_be_opened_is_said_without_the_password() -> None:
    async with postgres_server.database() as url:
        await migrate(url)
        connection = await asyncpg.connect(url)
        await connection.execute("INSERT INTO corral_schema (version) VALUES (1000)")
        before = await connection.fetchval("SELECT count(*) FROM pg_class")
        refused = {
            url: "newer Corral",
            postgres_server.named(url, "nowhere"): "no database",
            "postgresql://postgres:hunter2@127.0.0.1:1/x": "No PostgreSQL server answers",
            "postgresql://postgres:hunter2@127.0.0.1:port/x": "cannot be used|the given URL",
        }
        if "CORRAL_TEST_POSTGRES" not in os.environ:
            refused[url.replace(postgres_server.ESCAPED_PASSWORD, "hunter2")] = "refuses the user or the password"
        for bad, sentence in refused.items():
            with pytest.raises(MachineUnfit, match=sentence) as caught:
                await open_store(bad, Bus(), Clock())
            assert "hunter2" not in str(caught.value) and postgres_server.PASSWORD not in str(caught.value)
        assert await connection.fetchval("SELECT count(*) FROM pg_class") == before
        await connection.close()
