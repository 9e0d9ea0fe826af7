"""The process dies at its n-th durable write, for every n, and another takes over: the log must come out the same.

Before the write, so that it never happened, and right after it, so that nobody was told. The harness, the engine, the
sandbox with its daemon and the MCP server are the real ones. The sandbox outlives the worker, as it does when a server
is killed.
"""

from __future__ import annotations

import tempfile
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from corral.engines.bus import LocalBus
from corral.storage.ephemeral import EphemeralStore
from corral.storage.postgres import open_store
from tests import postgres_server
from tests.crash.legality import assert_legal
from tests.crash.mortal_world import Moment, SystemClock, World, no_price, quiet_deaths
from tests.crash.scenarios import SCENARIOS, Ending, Scenario
from tests.e2e.mcp_host import McpHost, mcp_host

pytestmark = pytest.mark.anyio

WRITES_MAX = 60
DEATHS_MIN = 5


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="corral-crash-") as made:
        yield Path(made)


@pytest.fixture(scope="module")
def host() -> Iterator[McpHost]:
    with mcp_host() as running:
        yield running


@asynccontextmanager
async def world_of(scenario: Scenario, directory: Path, host: McpHost, url: str | None) -> AsyncGenerator[World]:
    """A world in which the scenario can be played; on PostgreSQL when there is a `url`, else in memory."""
    bus = LocalBus(frames_max=10_000, bytes_max=1 << 24)
    store = EphemeralStore(bus, SystemClock()) if url is None else await open_store(url, bus, SystemClock())
    session = msgspec.structs.replace(scenario.session(host.url), id=f"sesn_{directory.name}")
    world = World(
        directory,
        store,
        bus,
        session,
        environment=scenario.environment_record(session),
        price=scenario.price or no_price,
    )
    await world.create()
    host.ran.clear()
    try:
        yield world
    finally:
        await world.close()
        await store.close()


async def dies(name: str, directory: Path, host: McpHost, *, moment: Moment, url: str | None = None) -> int:
    """Play the scenario again and again, each time dying one write later; how many deaths there were."""
    quiet_deaths()
    scenario = SCENARIOS[name]
    for fatal_write in range(WRITES_MAX):
        async with world_of(scenario, directory / str(fatal_write), host, url) as world:
            died = await world.play(scenario.acts, dies_at_write=fatal_write, moment=moment)
            events = await world.events()
            assert_legal(events, accepted=world.accepted)
            assert sum(event["type"].startswith("user.") for event in events) == len(world.accepted)
            workspace = world.directory / "sessions" / world.session.id / "files" / "workspace"
            scenario.check(Ending(events, workspace, world.directory, tuple(host.ran)))
        if not died:
            return fatal_write
    raise AssertionError(f"the session was not over after {WRITES_MAX} writes")


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("name", list(SCENARIOS))
async def test_a_worker_that_dies_at_any_write_is_replaced_without_loss_or_repetition(
    name: str, moment: Moment, directory: Path, host: McpHost
) -> None:
    assert await dies(name, directory, host, moment=moment) >= DEATHS_MIN


@pytest.mark.skipif(postgres_server.unavailable() is not None, reason=str(postgres_server.unavailable()))
async def test_the_same_on_postgres(directory: Path, host: McpHost) -> None:
    async with postgres_server.swept() as url:
        assert await dies("a call that is asked for", directory, host, moment="after", url=url) >= DEATHS_MIN
