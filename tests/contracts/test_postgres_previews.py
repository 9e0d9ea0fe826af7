"""Previews of one process, shown by another one of the same database: in order, without holes, and only when wanted."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack

import anyio
import pytest

from corral.domain.session import SessionState
from corral.engines.bus import LocalBus
from corral.interfaces.bus import Bus, Frame, Subscription
from corral.storage.postgres import open_store
from tests import postgres_server
from tests.contracts.storage_fixtures import Clock, asked, deciding, session

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(postgres_server.unavailable() is not None, reason=str(postgres_server.unavailable())),
]

WAIT_SECONDS_MAX = 60
LOOK_SECONDS = 0.02


@pytest.fixture
async def buses() -> AsyncGenerator[tuple[Bus, Bus]]:
    """Of a process that runs turns, and of one that has streams; the session `sesn_a` is there."""
    async with postgres_server.swept() as url, AsyncExitStack() as stack:
        made: list[Bus] = []
        for _ in range(2):
            store = await open_store(url, LocalBus(frames_max=10_000, bytes_max=1 << 26), Clock(), exclusive=False)
            stack.push_async_callback(store.close)
            made.append(store.notices.bus)
            if len(made) == 1:
                await store.log.create(session("sesn_a"), SessionState(thread_id="sthr_a"), deciding(asked("sevt_0")))
        yield made[0], made[1]


def start(event_id: str) -> Frame:
    return Frame("sesn_a", "event_start", b'{"type":"event_start"}', "agent.message", event_id)


def delta(event_id: str, text: str) -> Frame:
    return Frame("sesn_a", "event_delta", text.encode(), "agent.message", event_id)


async def until_wanted(bus: Bus, session_id: str = "sesn_a") -> None:
    """Notices of the database say that somebody reads; there is nothing to wait on but the answer."""
    with anyio.fail_after(WAIT_SECONDS_MAX):
        while not bus.wants_previews(session_id):  # noqa: ASYNC110  # another process's word; nothing here is told
            await anyio.sleep(LOOK_SECONDS)


async def take(reader: Subscription, count: int) -> list[str]:
    taken: list[str] = []
    with anyio.fail_after(WAIT_SECONDS_MAX):
        async for frame in reader:
            taken.append(frame.data.decode())
            if len(taken) == count:
                return taken
    return taken


@pytest.mark.requirement("F090")
async def test_previews_reach_a_stream_in_another_process_in_order(buses: tuple[Bus, Bus]) -> None:
    runs, shows = buses
    assert not runs.wants_previews("sesn_a")
    reader = shows.subscribe("sesn_a", previews=["agent.message"])
    await until_wanted(runs)
    texts = [f"{number} " + "x" * 90 + 'é"' for number in range(300)]  # more than one notice takes
    runs.publish([start("sevt_1"), *(delta("sevt_1", text) for text in texts)])
    assert await take(reader, 301) == ['{"type":"event_start"}', *texts]


async def test_a_fragment_that_no_notice_takes_ends_its_preview_and_no_other(buses: tuple[Bus, Bus]) -> None:
    runs, shows = buses
    reader = shows.subscribe("sesn_a", previews=["agent.message"])
    await until_wanted(runs)
    runs.publish([start("sevt_1"), delta("sevt_1", "a"), delta("sevt_1", "y" * 9_000), delta("sevt_1", "b")])
    runs.publish([start("sevt_2"), delta("sevt_2", "c")])
    assert await take(reader, 4) == ['{"type":"event_start"}', "a", '{"type":"event_start"}', "c"]


async def test_a_stream_that_wants_no_previews_asks_for_none(buses: tuple[Bus, Bus]) -> None:
    runs, shows = buses
    shows.subscribe("sesn_a")
    other = shows.subscribe("sesn_b", previews=["agent.message"])
    await until_wanted(runs, "sesn_b")
    assert not runs.wants_previews("sesn_a")
    other.close()
