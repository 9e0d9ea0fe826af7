"""A machine's clock jumps by hours, both ways, between any two events: logs stay in order, and nothing is negative."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import anyio
import pytest

from corral.domain.session import view
from corral.engines.bus import LocalBus
from corral.storage.ephemeral import EphemeralStore
from corral.storage.sqlite import open_store
from tests.crash.legality import assert_legal
from tests.crash.mortal_world import World, no_price, quiet_deaths
from tests.crash.scenarios import SCENARIOS, Ending
from tests.unit import builders as make

pytestmark = pytest.mark.anyio

HOURS_MAX = 9
SECONDS_MAX = 60
PLAYED = ("tools, two of them at once", "a call that is asked for", "custom tools", "an interrupt", "a budget")


class JumpingClock:
    """Wrong by up to `HOURS_MAX`, by another amount each time somebody looks; until it is `set_right`."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)
        self.right: datetime | None = None

    def now(self) -> datetime:
        """What the clock says."""
        if self.right is not None:
            return self.right
        return make.START + timedelta(hours=self._chance.uniform(-HOURS_MAX, HOURS_MAX))


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="corral-crash-") as made:
        yield Path(made)


@pytest.mark.parametrize("kind", ["ephemeral", "sqlite"])
@pytest.mark.parametrize("name", PLAYED)
async def test_sessions_go_on_in_order_while_the_clock_jumps(name: str, kind: str, directory: Path) -> None:
    quiet_deaths()
    clock, bus, scenario = JumpingClock(len(name)), LocalBus(frames_max=10_000, bytes_max=1 << 24), SCENARIOS[name]
    store = EphemeralStore(bus, clock) if kind == "ephemeral" else await open_store(directory / "db", bus, clock)
    session = scenario.session("http://127.0.0.1:1/mcp")
    world = World(directory, store, bus, session, clock=clock, price=scenario.price or no_price)
    await world.create()
    try:
        with anyio.fail_after(SECONDS_MAX):
            await world.play(scenario.acts, dies_at_write=3)
        events = await world.events()
        assert_legal(events, accepted=world.accepted)
        workspace = directory / "sessions" / session.id / "files" / "workspace"
        scenario.check(Ending(events, workspace, directory, ()))
        snapshot = await store.log.snapshot(session.id)
        _assert_sane([event["usage"] for event in events if event["type"] == "session.usage"])
        for hours in (-HOURS_MAX, 0, HOURS_MAX, 24):
            seen = view(*snapshot, make.START + timedelta(hours=hours))
            assert 0 <= seen.stats.active_seconds <= seen.stats.duration_seconds
            assert seen.updated_at >= (snapshot.state.last_at or seen.updated_at)
    finally:
        await world.close()
        await store.close()


def _assert_sane(usages: list[dict[str, object]]) -> None:
    """What was used is never given back, and never more than there was time for."""
    seconds = [float(str(usage["active_seconds"])) for usage in usages]
    assert seconds == sorted(seconds)
    assert 0 <= seconds[0] and seconds[-1] <= 2 * HOURS_MAX * 3600
    inputs = [int(str(usage["input_tokens"])) for usage in usages]
    assert inputs == sorted(inputs)
