"""What only a store on disk can promise: it outlives its process, bears a full disk, and has its file alone."""

from __future__ import annotations

import os
import resource
import signal
import sqlite3
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import AsyncGenerator, Generator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import anyio
import anyio.from_thread
import anyio.lowlevel
import msgspec
import pytest

from corral.domain.lifecycle import Process
from corral.domain.query import EventsQuery, RecordsQuery
from corral.domain.session import Session, SessionState
from corral.errors import Conflict, MachineUnfit, NotFound, StaleEpoch, Unavailable
from corral.interfaces.event_log import Decision, EventLog
from corral.storage.named_sql import read_migrations, read_queries
from corral.storage.sqlite import open_store
from corral.storage.sqlite_reads import Readers
from tests.contracts.storage_fixtures import (
    CHILD_SESSIONS,
    ROOT,
    Bus,
    Clock,
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


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncGenerator[Stage]:
    with anyio.fail_after(30):
        async with staged("sqlite", tmp_path) as opened:
            yield opened


async def ids_of(log: EventLog, session_id: str) -> list[str]:
    return [logged.event.id for logged in await log.events(session_id, EventsQuery(limit=1_000_000))]


def _allow(session: Session, state: SessionState) -> None:
    """Let it be deleted."""


# ---------------------------------------------------------------------------------------------------- lasting


async def test_everything_is_there_after_reopening(tmp_path: Path) -> None:
    waiting = asked()
    kept = record("agent_1", unique_key="k", body=b"{}")
    async with staged("sqlite", tmp_path) as stage:
        await stage.log.create(session(), fresh(), deciding(said(), waiting))
        claim = await stage.log.claim("sesn_a")
        await stage.records.put(kept)
        before = await stage.log.snapshot("sesn_a"), await ids_of(stage.log, "sesn_a")
    async with staged("sqlite", tmp_path) as stage:
        assert (await stage.log.snapshot("sesn_a"), await ids_of(stage.log, "sesn_a")) == before
        assert await stage.records.get("agent", "agent_1", None) == kept
        with pytest.raises(Conflict):
            await stage.records.put(record("agent_2", unique_key="k"))
        assert (await stage.log.claim("sesn_a")).epoch == claim.epoch + 1
        with pytest.raises(StaleEpoch):
            await stage.log.transact("sesn_a", deciding(said()), epoch=claim.epoch)
        await stage.log.transact("sesn_a", deciding(Process(waiting.event.id)))
        assert len(await ids_of(stage.log, "sesn_a")) == 2


def test_what_was_acknowledged_survives_sigkill(tmp_path: Path) -> None:
    acknowledged: dict[str, list[str]] = defaultdict(list)
    with _appending(tmp_path) as (child, lines):
        for _ in range(40 * CHILD_SESSIONS):
            name, event_id = next(lines).split()
            acknowledged[name].append(event_id)
        child.send_signal(signal.SIGKILL)
        for line in lines:
            name, event_id = line.split()
            acknowledged[name].append(event_id)

    async def check() -> None:
        async with staged("sqlite", tmp_path) as stage:
            for name, event_ids in acknowledged.items():
                stored = await ids_of(stage.log, name)
                assert stored[: len(event_ids)] == event_ids
                assert (await stage.log.snapshot(name)).state.seq == len(stored)
                await stage.log.transact(name, deciding(said()))

    assert len(acknowledged) == CHILD_SESSIONS
    anyio.run(check)


@contextmanager
def _appending(directory: Path) -> Generator[tuple[subprocess.Popen[str], Generator[str]]]:
    """A process that appends until it is killed, and the lines it writes, whole ones only."""
    command = [sys.executable, "-m", "tests.contracts.storage_fixtures", str(directory)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        watchdog = threading.Timer(30, child.kill)
        watchdog.start()
        try:
            yield child, (line for line in child.stdout if line.endswith("\n"))
        finally:
            watchdog.cancel()
            child.kill()


async def test_closing_commits_what_waits(tmp_path: Path) -> None:
    bus = Bus()
    store = await open_store(tmp_path / "corral.db", bus, Clock())
    await store.log.create(session(), fresh(), deciding())
    async with anyio.create_task_group() as tasks:
        for _ in range(50):
            tasks.start_soon(store.log.transact, "sesn_a", deciding(said()))
        await anyio.lowlevel.checkpoint()
        await store.close()
    assert len(bus.frames) == 50
    with pytest.raises(Unavailable):
        await store.log.transact("sesn_a", deciding(said()))
    async with staged("sqlite", tmp_path) as stage:
        assert len(await ids_of(stage.log, "sesn_a")) == 50


async def test_sessions_that_left_the_cache_are_read_from_the_file(tmp_path: Path) -> None:
    store = await open_store(tmp_path / "corral.db", Bus(), Clock(), sessions_cached_max=2)
    names = [f"sesn_{number}" for number in range(10)]
    for name in names:
        await store.log.create(session(name), fresh(), deciding(said()))
    for name in names:
        claim = await store.log.claim(name)
        waiting = asked()
        await store.log.transact(name, deciding(waiting), epoch=claim.epoch)
    for name in names:
        assert (await store.log.snapshot(name)).state.seq == 2
        await store.log.transact(name, lambda session, state, now: Decision([Process(state.queue[0].id)]), epoch=1)
        assert len(await ids_of(store.log, name)) == 2
    await store.close()


async def test_too_many_waiting_writes_are_refused(tmp_path: Path) -> None:
    store = await open_store(tmp_path / "corral.db", Bus(), Clock(), waiting_operations_max=3, batch_operations_max=2)
    await store.log.create(session(), fresh(), deciding())
    refused: list[Unavailable] = []

    async def append() -> None:
        try:
            await store.log.transact("sesn_a", deciding(said()))
        except Unavailable as error:
            refused.append(error)

    async with anyio.create_task_group() as tasks:
        for _ in range(10):
            tasks.start_soon(append)
    assert len(refused) == 7
    assert len(await ids_of(store.log, "sesn_a")) == 3
    await store.close()


# ---------------------------------------------------------------------------------------------------- failing


@contextmanager
def no_file_grows_beyond(size: int) -> Generator[None]:
    """A full disk, as far as this process can tell: the kernel refuses to write behind this offset of any file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_a_full_disk_refuses_whole_writes_and_is_forgotten_when_there_is_room(tmp_path: Path) -> None:
    async with staged("sqlite", tmp_path) as stage:
        for name in ("sesn_a", "sesn_b"):
            await stage.log.create(session(name), fresh(), deciding(said()))
        frames = list(stage.bus.frames)
        before = await stage.log.snapshot("sesn_a"), await ids_of(stage.log, "sesn_a")
        failures: list[Unavailable] = []

        async def fail(name: str) -> None:
            with pytest.raises(Unavailable) as caught:
                await stage.log.transact(name, deciding(said("x" * 100_000), asked()))
            failures.append(caught.value)

        with no_file_grows_beyond((tmp_path / "corral.db-wal").stat().st_size):
            async with anyio.create_task_group() as tasks:
                for number in range(10):
                    tasks.start_soon(fail, "sesn_a" if number % 2 else "sesn_b")
            with pytest.raises(Unavailable):
                await stage.records.put(record("agent_1", body=b"x" * 100_000))
        assert len(failures) == 10
        assert all(isinstance(error.__cause__, sqlite3.Error) for error in failures)
        assert (await stage.log.snapshot("sesn_a"), await ids_of(stage.log, "sesn_a")) == before
        assert stage.bus.frames == frames
        with pytest.raises(NotFound):
            await stage.records.get("agent", "agent_1", None)
        committed = await stage.log.transact("sesn_a", deciding(said()))
        assert committed.state.seq == 2
    async with staged("sqlite", tmp_path) as stage:
        assert len(await ids_of(stage.log, "sesn_a")) == 2
        assert len(await ids_of(stage.log, "sesn_b")) == 1


async def test_an_operation_that_sqlite_cannot_stomach_fails_alone(stage: Stage) -> None:
    await stage.log.create(session(), fresh(), deciding())
    poison = record("agent_1", unique_key=cast(Any, object()))
    refused: list[str] = []

    async def fail() -> None:
        with pytest.raises(Unavailable) as caught:
            await stage.records.put(record("agent_0"), poison)
        refused.append(str(caught.value))

    async with anyio.create_task_group() as tasks:
        for number in range(20):
            tasks.start_soon(stage.log.transact, "sesn_a", deciding(said()))
            if number % 10 == 5:
                tasks.start_soon(fail)
    assert len(refused) == 2
    stored = await ids_of(stage.log, "sesn_a")
    assert len(stored) == 20
    assert [msgspec.json.decode(frame.data)["id"] for frame in stage.bus.frames] == stored
    with pytest.raises(NotFound):
        await stage.records.get("agent", "agent_0", None)


async def test_a_decision_that_raises_stop_iteration_does_not_hang_its_neighbours(stage: Stage) -> None:
    await stage.log.create(session(), fresh(), deciding())

    def stop(session: Session, state: SessionState, now: datetime) -> Decision:
        raise StopIteration

    async def fail() -> None:
        with pytest.raises(RuntimeError):
            await stage.log.transact("sesn_a", stop)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(fail)
        tasks.start_soon(stage.log.transact, "sesn_a", deciding(said()))
    assert len(await ids_of(stage.log, "sesn_a")) == 1


async def test_a_cancelled_caller_leaves_the_store_whole(stage: Stage) -> None:
    await stage.log.create(session(), fresh(), deciding())
    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(stage.log.transact, "sesn_a", deciding(said()))
        await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()
    committed = await stage.log.transact("sesn_a", deciding(said()))
    assert len(await ids_of(stage.log, "sesn_a")) == committed.state.seq


# ---------------------------------------------------------------------------------------------------- the file


async def test_a_second_server_on_one_file_is_refused_by_name(stage: Stage, tmp_path: Path) -> None:
    with pytest.raises(MachineUnfit, match=f"in use by process {os.getpid()}"):
        await open_store(tmp_path / "corral.db", Bus(), Clock())
    await stage.log.create(session(), fresh(), deciding())


async def test_records_can_be_shared_with_a_running_server(stage: Stage, tmp_path: Path) -> None:
    shared = await open_store(tmp_path / "corral.db", Bus(), Clock(), exclusive=False)
    await shared.records.put(record("agent_1"))
    await stage.records.put(record("agent_2"))
    query = RecordsQuery(kind="agent", workspace_id=None, limit=10)
    assert len(await stage.records.page(query)) == len(await shared.records.page(query)) == 2
    with pytest.raises(AssertionError):
        _ = shared.log
    await shared.close()


async def test_a_store_opened_to_share_does_not_keep_a_server_out(tmp_path: Path) -> None:
    shared = await open_store(tmp_path / "corral.db", Bus(), Clock(), exclusive=False)
    async with staged("sqlite", tmp_path) as stage:
        await shared.records.put(record("agent_1"))
        assert (await stage.records.get("agent", "agent_1", None)).id == "agent_1"
    await shared.close()


async def test_a_database_from_a_newer_program_is_refused(tmp_path: Path) -> None:
    async with staged("sqlite", tmp_path):
        pass
    with sqlite3.connect(tmp_path / "corral.db") as connection:
        connection.execute("PRAGMA user_version = 1000")
    connection.close()
    for exclusive in (True, False):
        with pytest.raises(MachineUnfit, match="newer Corral"):
            await open_store(tmp_path / "corral.db", Bus(), Clock(), exclusive=exclusive)


async def test_what_is_no_database_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("not a database " * 1_000)
    for location in (text, tmp_path, "postgresql://somewhere", "sqlite:///:memory:", ""):
        with pytest.raises(MachineUnfit):
            await open_store(location, Bus(), Clock())
    assert text.read_text().startswith("not a database")


async def test_data_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    store = await open_store(f"sqlite:///{tmp_path}/new/deep/corral.db", Bus(), Clock())
    await store.records.put(record("agent_1"))
    directory = tmp_path / "new" / "deep"
    assert directory.stat().st_mode & 0o777 == 0o700
    assert {path.name: path.stat().st_mode & 0o777 for path in directory.iterdir()} == dict.fromkeys(
        ("corral.db", "corral.db-wal", "corral.db-shm", "corral.db.lock"), 0o600
    )
    await store.close()


async def test_a_read_sees_every_commit_before_it(stage: Stage) -> None:
    await stage.log.create(session(), fresh(), deciding())
    for number in range(1, 30):
        await stage.log.transact("sesn_a", deciding(said()))
        assert len(await ids_of(stage.log, "sesn_a")) == number


async def test_a_read_of_several_statements_sees_one_moment(stage: Stage, tmp_path: Path) -> None:
    await stage.log.create(session(), fresh(), deciding(said()))
    between, committed = anyio.Event(), threading.Event()
    counts: list[int] = []

    def read(connection: sqlite3.Connection) -> None:
        for pause in (True, False):
            counts.append(connection.execute("SELECT count(*) FROM events").fetchone()[0])
            if pause:
                anyio.from_thread.run_sync(between.set)
                assert committed.wait(10)

    readers = Readers(tmp_path / "corral.db", 1)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(readers.run, read)
        await between.wait()
        await stage.log.transact("sesn_a", deciding(said()))
        committed.set()
    await readers.run(read)
    readers.close()
    assert counts == [1, 1, 2, 2]


async def test_an_id_may_be_used_again_in_the_very_commit_that_deletes_it(tmp_path: Path) -> None:
    async with staged("sqlite", tmp_path) as stage:
        await stage.log.create(session(), fresh(), deciding(said(), asked()))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stage.log.transact, "sesn_a", deciding(said()))
            tasks.start_soon(stage.log.delete, "sesn_a", "wrkspc_1", _allow)
            tasks.start_soon(stage.log.create, session(), fresh(), deciding(said("anew")))
    async with staged("sqlite", tmp_path) as stage:
        assert (await stage.log.snapshot("sesn_a")).state.seq == 1
        assert len(await ids_of(stage.log, "sesn_a")) == 1


async def test_lists_walk_along_their_index(tmp_path: Path) -> None:
    """Every page begins at its cursor: no list sorts, and none scans a table."""
    async with staged("sqlite", tmp_path):
        pass
    queries = read_queries(ROOT / "src/corral/storage/queries.sql")
    lists = [name for name in queries if name.endswith(("_asc", "_desc")) or name.startswith("records_of_")]
    assert len(lists) == 9
    connection = sqlite3.connect(tmp_path / "corral.db")
    for name in set(lists) - {"records_of_all"}:
        plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {queries[name]}", _AnyParameters())]
        assert not [step for step in plan if "TEMP B-TREE" in step], (name, plan)
        assert not [step for step in plan if step.startswith("SCAN") and "json_each" not in step], (name, plan)
    connection.close()


class _AnyParameters(dict[str, None]):
    """Has every name."""

    def __missing__(self, key: str) -> None:
        return None


def test_query_files_are_read_by_name(tmp_path: Path) -> None:
    path = tmp_path / "queries.sql"
    path.write_text("-- Words.\n\n-- name: one\nSELECT 1;\n\n-- name: two\nSELECT\n  2;\n")
    assert read_queries(path) == {"one": "SELECT 1;", "two": "SELECT\n  2;"}
    path.write_text("-- name: one\nSELECT 1;\n-- name: one\nSELECT 2;\n")
    with pytest.raises(ValueError, match="two queries of one name"):
        read_queries(path)


def test_migrations_have_no_gaps(tmp_path: Path) -> None:
    (tmp_path / "0001_a.sql").write_text("SELECT 1;")
    (tmp_path / "0003_b.sql").write_text("SELECT 1;")
    with pytest.raises(ValueError, match="without gaps"):
        read_migrations(tmp_path)
