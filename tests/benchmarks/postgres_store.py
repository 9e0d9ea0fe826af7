"""The store on PostgreSQL: durable appends beside its driver, and pages of history in a store of a million events.

Appends are measured as in `store_appends.py`, on a server of the test's own that flushes to the same disk. `raw`
is what one would write for this one job on asyncpg: as there, but everything that waits goes in one statement of
arrays, which changes a session's row only in the epoch that the caller holds. The arms take turns.

Pages of 100 events are read warm, at random places of random sessions, in stores that differ in nothing but how much
else they hold; flat means that the ratio stays near one.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import asyncpg

from corral.domain.ids import new_id
from corral.domain.query import EventsQuery
from corral.domain.session import SessionState
from corral.interfaces.event_log import EventLog
from corral.storage import postgres, sqlite
from corral.storage.columns import micros
from corral.storage.frames import encode
from corral.storage.sqlite_file import open_shared
from tests import postgres_server
from tests.benchmarks.store_appends import (
    EPOCH,
    SESSIONS,
    Append,
    Clock,
    NoReaders,
    RawLog,
    Row,
    drive,
    message,
    range_of,
    say_something,
    session_of,
)

NAME = "PostgreSQL store, and page reads"
ROUNDS = 2
EVENTS_EACH = 1_000
SMALL, LARGE = 10, 1_000
"""Sessions of a small and a large store."""
PAGES = 400
BODY = b'{"type":"agent.message","id":"sevt_bench","processed_at":"2026-01-01T00:00:00Z","content":[]}'
RAW = """
WITH appended AS (
    SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::bytea[], $4::bigint[], $5::text[], $6::bigint[], $7::bytea[])
        AS a (number, epoch, state, seq, id, processed_at, body)
), changed AS (
    UPDATE sessions AS s SET state = a.state FROM appended AS a WHERE s.number = a.number AND s.epoch = a.epoch
    RETURNING s.number
)
INSERT INTO events (session, seq, id, type, processed_at, body)
SELECT number, seq, id, 'agent.message', processed_at, body FROM appended JOIN changed USING (number)
"""


def run() -> list[Row]:
    """Measure all arms, in turns, and then the pages."""
    if why := postgres_server.unavailable():
        return [Row("PostgreSQL", 0, "", why)]
    server = postgres_server.Server(fsync="on", shared_buffers="256MB")
    try:
        return [*asyncio.run(_appends(server)), *asyncio.run(_pages(server))]
    finally:
        server.close()


async def _appends(server: postgres_server.Server) -> list[Row]:
    rates: dict[tuple[str, int], list[float]] = {}
    latencies: dict[tuple[str, int], list[float]] = {}
    for _ in range(ROUNDS):
        for sessions in SESSIONS:
            for name, arm in (("store", _store), ("raw", _raw)):
                async with postgres_server.database(server.url) as url:
                    rate, latency = await arm(url, sessions)
                rates.setdefault((name, sessions), []).append(rate)
                latencies.setdefault((name, sessions), []).append(latency)
    rows: list[Row] = []
    for sessions in SESSIONS:
        who = "1 session" if sessions == 1 else f"{sessions} sessions"
        store, raw = rates["store", sessions], rates["raw", sessions]
        p50 = statistics.median(latencies["store", sessions]) * 1000
        ratio = 100 * statistics.median(a / b for a, b in zip(store, raw, strict=True))
        rows += [
            Row(f"store, {who}", statistics.median(store), "appends/s", f"p50 {p50:.1f} ms, {range_of(store)}"),
            Row(f"raw asyncpg, {who}", statistics.median(raw), "appends/s", range_of(raw)),
            Row(f"store beside raw, {who}", ratio, "%", "median of the rounds' ratios"),
        ]
    return rows


async def _filled(url: str, sessions: int) -> postgres.PostgresStore:
    store = await postgres.open_store(url, NoReaders(), Clock())
    for number in range(sessions):
        await store.log.create(session_of(number), SessionState(thread_id=new_id("sthr")), say_something)
        await store.log.claim(session_of(number).id)
    return store


async def _store(url: str, sessions: int) -> tuple[float, float]:
    store = await _filled(url, sessions)
    ids = [session_of(number).id for number in range(sessions)]
    result = await drive(lambda number: store.log.transact(ids[number], say_something, epoch=EPOCH), sessions)
    await store.close()
    return result


class _RawWriter:
    """asyncpg with group commit and nothing else."""

    def __init__(self, connection: asyncpg.Connection, numbers: list[int]) -> None:
        self._connection = connection
        self._numbers = numbers
        self._logs = [RawLog(1) for _ in numbers]
        self._waiting: list[Append] = []
        self._task: asyncio.Task[None] | None = None

    async def append(self, number: int) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(Append(number, EPOCH, message(), future))
        if self._task is None:
            self._task = asyncio.create_task(self._work())
        await future

    async def _work(self) -> None:
        while self._waiting:
            taken, self._waiting = self._waiting, []
            now = datetime.now(UTC)
            stamp = micros(now)
            rows: list[tuple[int, int, bytes, int, str, int, bytes]] = []
            for append in taken:
                log = self._logs[append.number]
                seq, body = log.advance(append, now)
                number = self._numbers[append.number]
                rows.append((number, append.epoch, encode(log.state), seq, append.event.id, stamp, body))
            status = await self._connection.execute(RAW, *zip(*rows, strict=True))
            assert status == f"INSERT 0 {len(taken)}"
            for append in taken:
                append.future.set_result(None)
        self._task = None


async def _raw(url: str, sessions: int) -> tuple[float, float]:
    await (await _filled(url, sessions)).close()
    connection = await asyncpg.connect(url)
    rows = await connection.fetch("SELECT number FROM sessions ORDER BY number")
    writer = _RawWriter(connection, [row["number"] for row in rows])
    result = await drive(writer.append, sessions)
    await connection.close()
    return result


# --------------------------------------------------------------------------------------------------------- pages


async def _pages(server: postgres_server.Server) -> list[Row]:
    rows: list[Row] = []
    for name, measure in (("PostgreSQL", _postgres_pages), ("SQLite", _sqlite_pages)):
        small, large = [await measure(server, sessions) for sessions in (SMALL, LARGE)]
        rows += [
            Row(f"page of 100, {name}", large * 1000, "ms", f"p50 warm, among {LARGE * EVENTS_EACH:,} events"),
            Row(f"beside {SMALL * EVENTS_EACH:,} events, {name}", large / small, "x", "1 is flat"),
        ]
    return rows


async def _read_pages(log: EventLog, sessions: int) -> float:
    """Median seconds of a page; each of the sessions that are read was read once before."""
    chance = random.Random(7)
    wanted = [session_of(chance.randrange(sessions)).id for _ in range(SMALL)]
    times: list[float] = []
    for number in range(PAGES):
        query = EventsQuery(limit=100, beyond=(False, chance.randrange(EVENTS_EACH - 100)))
        begun = time.perf_counter()
        page = await log.events(wanted[number % SMALL], query)
        times.append(time.perf_counter() - begun)
        assert len(page) == 100
    return statistics.median(times[PAGES // 4 :])


async def _postgres_pages(server: postgres_server.Server, sessions: int) -> float:
    async with postgres_server.database(server.url) as url:
        store = await _filled(url, sessions)
        connection = await asyncpg.connect(url)
        await connection.execute("SET synchronous_commit = off")
        await connection.execute(
            "INSERT INTO events (session, seq, id, type, processed_at, body) "
            f"SELECT s.number, n, 'sevt_' || n, 'agent.message', n, $1::bytea "
            f"FROM generate_series(2, {EVENTS_EACH}) AS n, sessions AS s",
            BODY,
            timeout=120,
        )
        await connection.execute("VACUUM ANALYZE")
        await connection.close()
        seconds = await _read_pages(store.log, sessions)
        await store.close()
        return seconds


async def _sqlite_pages(server: postgres_server.Server, sessions: int) -> float:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "pages.db"
        store = await sqlite.open_store(path, NoReaders(), Clock())
        for number in range(sessions):
            await store.log.create(session_of(number), SessionState(thread_id=new_id("sthr")), say_something)
        await store.close()
        connection = open_shared(path)
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute(
            f"WITH RECURSIVE n (seq) AS (SELECT 2 UNION ALL SELECT seq + 1 FROM n WHERE seq < {EVENTS_EACH}) "
            "INSERT INTO events (position, id, type, processed_at, body) "
            "SELECT s.number << 32 | seq, 'sevt_' || seq, 'agent.message', seq, ? FROM sessions AS s, n",
            (BODY,),
        )
        connection.close()
        store = await sqlite.open_store(path, NoReaders(), Clock())
        seconds = await _read_pages(store.log, sessions)
        await store.close()
        return seconds


if __name__ == "__main__":
    for row in run():
        print(f"{row.label:40} {row.value:12,.2f} {row.unit:10} {row.note}")
