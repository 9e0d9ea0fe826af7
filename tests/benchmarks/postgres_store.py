"""Durable appends per second: the store on PostgreSQL beside its driver.

Appends are measured as in `store_appends.py`, on a server of the test's own that flushes to the same disk. `raw`
is what one would write for this one job on asyncpg: as there, but everything that waits goes in one statement of
arrays, which changes a session's row only in the epoch that the caller holds. `store` is a server that has the sessions
for itself, as with the local engine; `shared store` is one of several, which tells the others of each commit.

Each arm has a database of its own, made before anything is measured. Then they take turns, many and short ones, in one
order and in the reverse: what else the machine does weighs on all of them alike.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from typing import TypeAlias

import asyncpg

from corral.domain.ids import new_id
from corral.domain.session import SessionState
from corral.storage import postgres
from corral.storage.columns import micros
from corral.storage.frames import encode
from tests import postgres_server
from tests.benchmarks.store_appends import (
    EPOCH,
    SESSIONS,
    Append,
    Appending,
    Clock,
    Driven,
    NoReaders,
    RawLog,
    Row,
    compare,
    drive,
    message,
    rate,
    say_something,
    session_of,
)

NAME = "durable appends, PostgreSQL"
TURNS = 10
SECONDS = 0.3
"""Of a turn."""
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
    """Measure all arms, in turns."""
    if why := postgres_server.unavailable():
        return [Row("PostgreSQL", 0, "", why)]
    server = postgres_server.Server(fsync="on", shared_buffers="256MB")
    try:
        return asyncio.run(_appends(server))
    finally:
        server.close()


async def _appends(server: postgres_server.Server) -> list[Row]:
    rows: list[Row] = []
    for sessions in SESSIONS:
        done = await _in_turns(server, sessions)
        rows.append(rate(sessions, "raw asyncpg", done["raw"]))
        rows += compare(sessions, "store", done["store"], done["raw"])
        rows += compare(sessions, "shared store", done["shared store"], done["raw"])
    return rows


async def _in_turns(server: postgres_server.Server, sessions: int) -> dict[str, list[Driven]]:
    """What each arm did, turn by turn. The first of each warms it up, and does not count."""
    async with AsyncExitStack() as stack:
        arms: dict[str, Appending] = {}
        for name, open_arm in ARMS.items():
            url = await stack.enter_async_context(postgres_server.database(server.url))
            arms[name] = await stack.enter_async_context(open_arm(url, sessions))
        done: dict[str, list[Driven]] = {name: [] for name in arms}
        for turn in range(TURNS + 1):
            for name in arms if turn % 2 else reversed(arms):
                driven = await drive(arms[name], sessions, SECONDS)
                done[name] += [driven] if turn else []
        return done


async def filled(url: str, sessions: int) -> postgres.PostgresStore:
    """A store with so many sessions, each claimed once."""
    store = await postgres.open_store(url, NoReaders(), Clock())

    async def make(number: int) -> None:
        await store.log.create(session_of(number), SessionState(thread_id=new_id("sthr")), say_something)
        await store.log.claim(session_of(number).id)

    await asyncio.gather(*(make(number) for number in range(sessions)))
    return store


@asynccontextmanager
async def _store(url: str, sessions: int, *, exclusive: bool) -> AsyncGenerator[Appending]:
    await (await filled(url, sessions)).close()
    store = await postgres.open_store(url, NoReaders(), Clock(), exclusive=exclusive)
    ids = [session_of(number).id for number in range(sessions)]
    yield lambda number: store.log.transact(ids[number], say_something, epoch=EPOCH)
    await store.close()


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


@asynccontextmanager
async def _raw(url: str, sessions: int) -> AsyncGenerator[Appending]:
    await (await filled(url, sessions)).close()
    connection = await asyncpg.connect(url)
    rows = await connection.fetch("SELECT number FROM sessions ORDER BY number")
    yield _RawWriter(connection, [row["number"] for row in rows]).append
    await connection.close()


OpenArm: TypeAlias = Callable[[str, int], AbstractAsyncContextManager[Appending]]
ARMS: dict[str, OpenArm] = {
    "raw": _raw,
    "store": partial(_store, exclusive=True),
    "shared store": partial(_store, exclusive=False),
}


if __name__ == "__main__":
    for row in run():
        print(f"{row.label:40} {row.value:12,.2f} {row.unit:10} {row.note}")
