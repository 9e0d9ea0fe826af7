"""Pages of history: what one costs in a small store and in a large one.

Pages of 100 events are read warm, at random places of the same few sessions, in stores that differ in nothing but how
much else they hold; flat means that the ratio stays near one. The large store has a million events, or as many as
`CORRAL_BENCH_EVENTS` says: ten million take some 3 GB of disk for each database, and minutes to make.
"""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeAlias

import asyncpg

from corral.domain.ids import new_id
from corral.domain.query import EventsQuery
from corral.domain.session import SessionState
from corral.interfaces.event_log import EventLog
from corral.storage import sqlite
from corral.storage.sqlite_file import open_shared
from tests import postgres_server
from tests.benchmarks.postgres_store import filled
from tests.benchmarks.store_appends import Clock, NoReaders, Row, say_something, session_of

NAME = "A page of history in a store with a past"
EVENTS_EACH = 1_000
SMALL = 10_000
LARGE = int(os.environ.get("CORRAL_BENCH_EVENTS", "1000000"))
SESSIONS_READ = 10
PAGES = 400
MAKE_SECONDS_MAX = 1_800
BODY = b'{"type":"agent.message","id":"sevt_bench","processed_at":"2026-01-01T00:00:00Z","content":[]}'

Measure: TypeAlias = Callable[[int], Awaitable[float]]


def run() -> list[Row]:
    """Measure both databases."""
    rows = asyncio.run(_compare("SQLite", _in_sqlite))
    if why := postgres_server.unavailable():
        return [*rows, Row("PostgreSQL", 0, "", why)]
    server = postgres_server.Server(fsync="on", shared_buffers="256MB", max_wal_size="2GB")
    try:
        return [*rows, *asyncio.run(_compare("PostgreSQL", lambda sessions: _in_postgres(server, sessions)))]
    finally:
        server.close()


async def _compare(name: str, measure: Measure) -> list[Row]:
    small, large = [await measure(events // EVENTS_EACH) for events in (SMALL, LARGE)]
    return [
        Row(f"{name}, among {LARGE:,} events", large * 1000, "ms", f"p50 warm; {small * 1000:.2f} among {SMALL:,}"),
        Row(f"{name}, ratio", large / small, "x", "aim: <= 1.5"),
    ]


async def _read(log: EventLog, sessions: int) -> float:
    """Median seconds of a page; each of the sessions that are read was read before."""
    chance = random.Random(7)
    wanted = [session_of(chance.randrange(sessions)).id for _ in range(SESSIONS_READ)]
    times: list[float] = []
    for number in range(PAGES):
        query = EventsQuery(limit=100, beyond=(False, chance.randrange(EVENTS_EACH - 100)))
        begun = time.perf_counter()
        page = await log.events(wanted[number % SESSIONS_READ], query)
        times.append(time.perf_counter() - begun)
        assert len(page) == 100
    return statistics.median(times[PAGES // 4 :])


async def _in_postgres(server: postgres_server.Server, sessions: int) -> float:
    async with postgres_server.database(server.url) as url:
        store = await filled(url, sessions)
        connection = await asyncpg.connect(url)
        await connection.execute("SET synchronous_commit = off")
        await connection.execute(
            "INSERT INTO events (session, seq, id, type, processed_at, body) "
            f"SELECT s.number, n, 'sevt_' || n, 'agent.message', n, $1::bytea "
            f"FROM generate_series(2, {EVENTS_EACH}) AS n, sessions AS s",
            BODY,
            timeout=MAKE_SECONDS_MAX,
        )
        await connection.execute("VACUUM ANALYZE", timeout=MAKE_SECONDS_MAX)
        await connection.close()
        seconds = await _read(store.log, sessions)
        await store.close()
        return seconds


async def _in_sqlite(sessions: int) -> float:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "pages.db"
        store = await sqlite.open_store(path, NoReaders(), Clock())
        creating = [
            store.log.create(session_of(number), SessionState(thread_id=new_id("sthr")), say_something)
            for number in range(sessions)
        ]
        await asyncio.gather(*creating)
        await store.close()
        connection = open_shared(path)
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute(
            f"WITH RECURSIVE n (seq) AS (SELECT 2 UNION ALL SELECT seq + 1 FROM n WHERE seq < {EVENTS_EACH}) "
            "INSERT INTO events (position, id, type, processed_at, body) "
            "SELECT s.number << 32 | seq, 'sevt_' || seq, 'agent.message', seq, ? FROM sessions AS s, n "
            "ORDER BY s.number, seq",
            (BODY,),
        )
        connection.close()
        store = await sqlite.open_store(path, NoReaders(), Clock())
        seconds = await _read(store.log, sessions)
        await store.close()
        return seconds


if __name__ == "__main__":
    for row in run():
        print(f"{row.label:40} {row.value:12,.2f} {row.unit:10} {row.note}")
