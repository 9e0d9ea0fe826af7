"""What stays between a worker's turns, and what must not."""

from __future__ import annotations

import tempfile
from pathlib import Path

import anyio
import pytest

from corral.config_sections import SandboxSettings
from corral.domain import intake
from corral.engines.bus import LocalBus
from corral.engines.signals import LocalSignal
from corral.interfaces.event_log import Decision
from corral.sandboxes.process import ProcessSandboxes
from corral.storage.ephemeral import EphemeralStore
from tests.crash.mortal_world import SystemClock, World
from tests.unit import builders as make


@pytest.mark.anyio
async def test_a_signal_left_from_an_interrupt_that_was_handled_does_not_cut_the_next_turn() -> None:
    with tempfile.TemporaryDirectory(prefix="corral-worker-") as made:
        directory = Path(made)
        bus = LocalBus(frames_max=100, bytes_max=1 << 20)
        store = EphemeralStore(bus, SystemClock())
        world = World(directory, store, bus, make.session())
        await world.create()
        await store.log.transact(
            "sesn_1", lambda session, state, now: Decision(intake.accept(session, state, [make.message("Hello.")], now))
        )
        sandboxes = ProcessSandboxes(SandboxSettings(directory=made), directory)
        old = LocalSignal()
        old.set()
        with anyio.fail_after(30):
            servers = make.mcp_servers(store.records, SystemClock())
            await world.harness(sandboxes, servers).advance(world.session.id, old, inherited=False)
        await sandboxes.close()
        await world.close()
        starts = [event for event in await world.events() if event["type"] == "span.model_request_start"]
        assert len(starts) == 1
