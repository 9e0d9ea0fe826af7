"""The connection to the database breaks in mid-commit: the store finds out whether it happened, and it happens once.

What a commit's bytes are cut at is gone through byte by byte of what is asked and of what is answered, so the commit
has happened in some cases and in others not. Callers want their event written whatever is there, so one that the store
took for lost would be there twice, and one that it took for stored not at all.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from datetime import datetime
from itertools import count

import anyio
import anyio.lowlevel
import asyncpg
import pytest

from corral.domain.query import EventsQuery
from corral.domain.session import Session, SessionState
from corral.engines.bus import LocalBus
from corral.errors import OutcomeUnknown, Unavailable
from corral.interfaces.event_log import Decide, Decision
from corral.storage.postgres import PostgresStore, open_store
from tests import postgres_server
from tests.contracts.storage_fixtures import deciding, fresh, said, session, words_of
from tests.crash.cutting_proxy import Direction, cutting
from tests.crash.mortal_world import SystemClock

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(postgres_server.unavailable() is not None, reason=str(postgres_server.unavailable())),
]

SECONDS_MAX = 120
ATTEMPTS_MAX = 20
STRIDES: dict[Direction, int] = {"asked": 97, "answered": 3}
TERMINATIONS = 8
WRITERS = 6


@pytest.fixture
async def url() -> AsyncGenerator[str]:
    async with postgres_server.swept() as found:
        yield found


def nth(number: int) -> Decide:
    """Write an event, with an id of its own at each decision as the harness does."""

    def decide(session: Session, state: SessionState, now: datetime) -> Decision:
        return Decision((said(str(number)),))

    return decide


async def insist(store: PostgresStore, session_id: str, decide: Decide) -> None:
    """Try until it is done; what was refused before it was sent is tried again."""
    for _ in range(ATTEMPTS_MAX):
        try:
            committed = await store.log.transact(session_id, decide)
        except Unavailable as error:
            assert not isinstance(error, OutcomeUnknown), "the database is there, so it can be asked"
            continue
        (row,) = committed.rows
        (stored,) = await store.log.events(session_id, EventsQuery(limit=1, beyond=(False, row.seq - 1)))
        assert stored.event == row.event, "what the caller was told is what is there"
        return
    raise AssertionError("the store does not come back")


async def words(store: PostgresStore, session_id: str) -> list[int]:
    logged = await store.log.events(session_id, EventsQuery(limit=10_000))
    return [int(each) for each in words_of(row.event for row in logged)]


@pytest.mark.parametrize("direction", list(STRIDES))
async def test_a_commit_whose_wire_is_cut_at_any_byte_is_stored_once(url: str, direction: Direction) -> None:
    with anyio.fail_after(SECONDS_MAX):
        async with cutting(url) as (proxy, through):
            bus = LocalBus(frames_max=10_000, bytes_max=1 << 24)
            store = await open_store(through, bus, SystemClock(), exclusive=False)
            await store.log.create(session(), fresh(), deciding())
            done = 0
            for place in count(1, STRIDES[direction]):
                # Once uncut, so that the connection is there and knows its statements.
                await insist(store, "sesn_a", nth(done))
                before = proxy.cuts
                proxy.cut_after(place, direction)
                await insist(store, "sesn_a", nth(done + 1))
                proxy.disarm()
                done += 2
                if proxy.cuts == before:
                    break
            assert proxy.cuts >= 3
            assert await words(store, "sesn_a") == list(range(done))
            assert (await store.log.snapshot("sesn_a")).state.seq == done
            await store.close()


async def test_commits_whose_server_processes_are_ended_are_stored_once(url: str) -> None:
    with anyio.fail_after(SECONDS_MAX):
        bus = LocalBus(frames_max=10_000, bytes_max=1 << 24)
        store = await open_store(url, bus, SystemClock(), exclusive=False)
        names = [f"sesn_{number}" for number in range(WRITERS)]
        for name in names:
            await store.log.create(session(name), fresh(), deciding())
        stored = dict.fromkeys(names, 0)
        over = anyio.Event()

        async def write(name: str) -> None:
            while not over.is_set():
                await insist(store, name, nth(stored[name]))
                stored[name] += 1

        async def terminate() -> None:
            killer = await asyncpg.connect(url)
            left = TERMINATIONS
            while left > 0:
                ended = await killer.fetch(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE application_name = 'corral writer' AND datname = current_database()"
                )
                left -= len(ended)
                before = sum(stored.values())
                while sum(stored.values()) == before:
                    await anyio.lowlevel.checkpoint()
            await killer.close()
            over.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(terminate)
            for name in names:
                tasks.start_soon(write, name)
        for name in names:
            assert await words(store, name) == list(range(stored[name]))
        await store.close()
