"""The store on PostgreSQL: durable appends beside its driver, and pages of history in a store of a million events.

Appends are measured as in `store_appends.py`, on a server of the test's own that flushes to the same disk. `raw` is the
least that could do the writing: one asyncpg connection, everything that waits in one statement of ready-made bytes,
into the same tables. The arms take turns. Pages of 100 events are read warm, at random places of random sessions, in
stores that differ in nothing but how much else they hold; flat means that the ratio stays near one.
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
from corral.storage.frames import encode
from corral.storage.sqlite_file import open_shared
from tests import postgres_server
from tests.benchmarks.store_appends import (
    SESSIONS,
    Clock,
    NoReaders,
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
WITH changed AS (
    UPDATE sessions AS s SET state = n.state
    FROM (SELECT DISTINCT ON (number) number, state FROM unnest($1::bigint[], $2::bytea[]) AS a (number, state)) AS n
    WHERE s.number = n.number
)
INSERT INTO events (session, seq, id, type, processed_at, body)
SELECT * FROM unnest($1::bigint[], $3::bigint[], $4::text[], $5::text[], $6::bigint[], $7::bytea[])
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
    return store


async def _store(url: str, sessions: int) -> tuple[float, float]:
    store = await _filled(url, sessions)
    ids = [session_of(number).id for number in range(sessions)]
    result = await drive(lambda number: store.log.transact(ids[number], say_something), sessions)
    await store.close()
    return result


class _RawWriter:
    """asyncpg with group commit and nothing else."""

    def __init__(self, connection: asyncpg.Connection, numbers: list[int]) -> None:
        self._connection = connection
        self._numbers = numbers
        self._seqs = [1] * len(numbers)
        self._body = encode(message())
        self._state = encode(SessionState(thread_id=new_id("sthr"), seq=1, last_at=datetime.now(UTC)))
        self._id = new_id("sevt")
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []
        self._task: asyncio.Task[None] | None = None

    async def append(self, number: int) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((number, future))
        if self._task is None:
            self._task = asyncio.create_task(self._work())
        await future

    async def _work(self) -> None:
        while self._waiting:
            taken, self._waiting = self._waiting, []
            seqs: list[int] = []
            for number, _ in taken:
                self._seqs[number] += 1
                seqs.append(self._seqs[number])
            count, now = len(taken), time.time_ns() // 1000
            numbers = [self._numbers[number] for number, _ in taken]
            columns = ([self._id] * count, ["agent.message"] * count, [now] * count, [self._body] * count)
            await self._connection.execute(RAW, numbers, [self._state] * count, seqs, *columns)
            for _, future in taken:
                future.set_result(None)
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
