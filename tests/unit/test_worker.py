"""What stays between a worker's turns, and what must not; and signals that are not on time."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec
import pytest

from corral.config_sections import SandboxSettings
from corral.domain import event as ev
from corral.domain import intake
from corral.domain.agent import McpServer
from corral.engines.bus import LocalBus
from corral.engines.signals import LocalSignal
from corral.harness.recipe import recipe
from corral.harness.worker import Harness
from corral.interfaces.event_log import Committed, Decide, Decision, EventLog
from corral.sandboxes.process import ProcessSandboxes
from corral.storage.ephemeral import EphemeralStore
from tests.crash.mortal_world import Disk, MortalLog, SystemClock, World
from tests.e2e.sessions import bash, script
from tests.unit import builders as make

pytestmark = pytest.mark.anyio


class HeldLog(MortalLog):
    """Holds the commit that comes after `passing` others."""

    def __init__(self, log: EventLog, disk: Disk, *, passing: int) -> None:
        super().__init__(log, disk)
        self._passing = passing
        self.held, self.go = anyio.Event(), anyio.Event()

    async def transact(
        self, session_id: str, decide: Decide, *, workspace_id: str | None = None, epoch: int | None = None
    ) -> Committed:
        self._passing -= 1
        if self._passing == -1:
            self.held.set()
            await self.go.wait()
        return await super().transact(session_id, decide, workspace_id=workspace_id, epoch=epoch)


@asynccontextmanager
async def working(*, passing: int | None = None) -> AsyncGenerator[tuple[World, Harness]]:
    """A session, and a worker whose commands run in sandboxes that isolate nothing."""
    with tempfile.TemporaryDirectory(prefix="corral-worker-") as made:
        directory = Path(made)
        bus = LocalBus(frames_max=100, bytes_max=1 << 20)
        store = EphemeralStore(bus, SystemClock())
        world = World(directory, store, bus, make.session())
        await world.create()
        if passing is not None:
            world.log = HeldLog(store.log, world.disk, passing=passing)
        sandboxes = ProcessSandboxes(SandboxSettings(directory=made), directory)
        with anyio.fail_after(60):
            yield world, world.harness(sandboxes, make.mcp_servers(store.records, SystemClock()))
        await sandboxes.close()
        await world.close()


async def send(world: World, *events: ev.ClientEvent) -> None:
    """As a client would, but nobody is told."""
    await world.store.log.transact(
        world.session.id, lambda session, state, now: Decision(intake.accept(session, state, events, now))
    )


async def count(world: World, kind: str) -> int:
    return [event["type"] for event in await world.events()].count(kind)


async def test_a_signal_left_from_an_interrupt_that_was_handled_does_not_cut_the_next_turn() -> None:
    async with working() as (world, harness):
        await send(world, make.message("Hello."))
        old = LocalSignal()
        old.set()
        await harness.advance(world.session.id, old, inherited=False)
        assert await count(world, "span.model_request_start") == 1


class LateSignal(LocalSignal):
    """Tells that it was heard."""

    def __init__(self) -> None:
        super().__init__()
        self.heard = anyio.Event()

    def clear(self) -> None:
        if self.is_set():
            self.heard.set()
        super().clear()


class Gates:
    """Named pipes: a command says that it has begun, and waits until it may go on."""

    def __init__(self, directory: Path) -> None:
        self._begun, self._go = directory / "begun", directory / "go"
        os.mkfifo(self._begun)
        os.mkfifo(self._go)
        self.command = f"echo > {self._begun}; cat {self._go}"

    async def has_begun(self) -> None:
        await anyio.to_thread.run_sync(self._begun.read_text)

    async def let_go(self) -> None:
        await anyio.to_thread.run_sync(self._go.write_text, "gone on")


async def test_a_signal_that_comes_when_its_interrupt_was_handled_does_not_make_a_command_run_again() -> None:
    async with working() as (world, harness):
        gates, ran, late = Gates(world.directory), world.directory / "ran", LateSignal()
        await send(world, make.message(script(bash(f"echo once >> {ran}; {gates.command}"), {"say": "Done."})))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(partial(harness.advance, world.session.id, late, inherited=False))
            await gates.has_begun()
            late.set()
            await late.heard.wait()
            await gates.let_go()
        assert ran.read_text() == "once\n"
        assert await count(world, "agent.message") == 1


async def test_calls_beside_a_result_that_came_with_an_interrupt_are_dropped() -> None:
    async with working() as (world, harness):
        gates = Gates(world.directory)
        await send(world, make.message(script([bash(gates.command), bash("sleep 600")])))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(partial(harness.advance, world.session.id, LocalSignal(), inherited=False))
            await gates.has_begun()
            await send(world, make.interrupt())
            await gates.let_go()
        errors = [event["is_error"] for event in await world.events() if event["type"] == "agent.tool_result"]
        assert errors == [False, True]
        assert (await world.state()).status == "idle"


@pytest.mark.parametrize("signalled", [False, True], ids=["beside another result", "and its signal comes"])
async def test_what_a_result_began_with_an_interrupt_is_not_begun_again(*, signalled: bool) -> None:
    """The first result is being committed; another one, or the signal, comes when that takes up the interrupt."""
    async with working(passing=1) as (world, harness):
        at_once: dict[str, object] = {"tool": "read", "input": {}}
        signal, log = LocalSignal(), world.log
        assert isinstance(log, HeldLog)
        await send(world, make.message(script([at_once, bash("sleep 600") if signalled else at_once])))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(partial(harness.advance, world.session.id, signal, inherited=False))
            await log.held.wait()
            await send(world, make.interrupt(), make.message("Hello."))
            if signalled:
                signal.set()
            await anyio.wait_all_tasks_blocked()
            log.go.set()
        assert [event["is_error"] for event in await world.events() if event["type"] == "span.model_request_end"] == [
            False,
            False,
        ]
        assert await count(world, "agent.tool_result") == 2
        assert (await world.state()).status == "idle"


async def test_an_mcp_server_whose_url_is_none_does_not_keep_a_session_from_its_sandbox() -> None:
    store = EphemeralStore(LocalBus(frames_max=100, bytes_max=1 << 20), SystemClock())
    session = make.session()
    await store.records.put(make.environment(session))
    servers = (McpServer(name="bad", url="https://[s/"), McpServer(name="good", url="https://u:p@s:8443/mcp"))
    session = msgspec.structs.replace(session, agent=msgspec.structs.replace(session.agent, mcp_servers=servers))
    assert (await recipe(store.records, session)).mcp_hosts == ("s:8443",)
