"""What stays between a worker's turns, and what must not."""

from __future__ import annotations

import tempfile
from pathlib import Path

import anyio
import pytest

from corral.config_sections import SandboxSettings
from corral.domain import event as ev
from corral.engines.local import LocalSignal
from corral.sandboxes.process import ProcessSandboxes
from tests.crash.test_every_write import World
from tests.unit import builders as make


@pytest.mark.anyio
async def test_a_signal_left_from_an_interrupt_that_was_handled_does_not_cut_the_next_turn() -> None:
    with tempfile.TemporaryDirectory(prefix="corral-worker-") as made:
        directory = Path(made)
        world = World(directory)
        await world.create()
        await world.send(make.message("Hello."))
        sandboxes = ProcessSandboxes(SandboxSettings(directory=made), directory)
        old = LocalSignal()
        old.set()
        with anyio.fail_after(30):
            await world.harness(sandboxes).advance(world.session.id, old, inherited=False)
        await sandboxes.close()
        await world.remove()
        starts = [event for event in await world.events() if isinstance(event, ev.SpanModelRequestStart)]
        assert len(starts) == 1
