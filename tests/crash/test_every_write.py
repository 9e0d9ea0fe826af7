"""The worker dies at its n-th durable write, for every n, and another takes over: the log must come out the same.

Memory stands in for the disk (its writes can be made to fail one by one); the harness, the engine and the sandbox with
its daemon are the real ones. The sandbox outlives the worker, as it does when a server is killed.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import anyio
import pytest

from corral.config_sections import HarnessSettings, SandboxSettings
from corral.domain import event as ev
from corral.domain import intake
from corral.domain.event import StoredEvent
from corral.domain.query import EventsQuery
from corral.domain.session import SessionState
from corral.engines.bus import LocalBus
from corral.engines.local import LocalEngine
from corral.harness.attachments import Attachments
from corral.harness.parts import Parts
from corral.harness.worker import Harness
from corral.interfaces import Decision
from corral.providers.scripted import ScriptedProvider
from corral.sandboxes.process import ProcessSandboxes
from corral.storage.blobs import DiskBlobs
from corral.storage.ephemeral import EphemeralStore
from corral.tools import TOOLS
from tests.unit import builders as make

pytestmark = pytest.mark.anyio

WRITES_MAX = 40
STEP_SECONDS_MAX = 60
LONG = "echo third >> ran; head -c 101000 /dev/zero | tr '\\0' y"
"""Its result is too long for the log and goes to a file."""
SCRIPT: list[object] = [
    [
        {"say": "Two at once."},
        {"tool": "bash", "input": {"command": "echo first >> ran"}},
        {"tool": "bash", "input": {"command": "echo second >> ran"}},
    ],
    {"fail": "overloaded", "attempts": 1, "tool": "bash", "input": {"command": LONG}},
    {"tool": "weather", "input": {}},
    {"say": "Done."},
]
TASK = f"```script\n{json.dumps(SCRIPT)}\n```"


def no_price(model: str) -> None:
    return None


def wide(model: str) -> int:
    return 200_000


class Died(BaseException):
    """What a process does at a write when it is killed there."""


class Clock:
    def now(self) -> datetime:
        return datetime.now(UTC)


class Disk:
    """Counts durable writes, and from the fatal one on lets nobody write."""

    def __init__(self) -> None:
        self.writes_left: int | None = None
        self.on_death: Callable[[], None] = lambda: None
        self.died = anyio.Event()

    def before_write(self) -> None:
        if self.writes_left is None:
            return
        if self.writes_left == 0:
            self.on_death()
            self.died.set()
            raise Died
        self.writes_left -= 1


class World:
    """A store that outlasts its workers, and the workers."""

    def __init__(self, directory: Path) -> None:
        self.disk = Disk()
        self.bus = LocalBus(frames_max=10_000, bytes_max=1 << 24)
        self.store = EphemeralStore(self.bus, Clock(), before_write=self.disk.before_write)
        self.directory = directory
        self.blobs = DiskBlobs(directory / "blobs")
        self.session = make.session()

    async def create(self) -> None:
        await self.store.records.put(make.environment(self.session))
        await self.store.log.create(self.session, make.state(), lambda session, state, now: Decision(()))

    async def send(self, event: ev.ClientEvent) -> None:
        await self.store.log.transact(
            self.session.id, lambda session, state, now: Decision(intake.accept(session, state, [event], now))
        )

    async def state(self) -> SessionState:
        return (await self.store.log.snapshot(self.session.id)).state

    async def events(self) -> list[StoredEvent]:
        logged = await self.store.log.events(self.session.id, EventsQuery(limit=1_000))
        return [each.event for each in logged]

    async def work(self, *, dies_at_write: int | None) -> bool:
        """One worker's life: until the session rests, or until it dies. True if it died."""
        self.disk.writes_left = dies_at_write
        self.disk.died = anyio.Event()
        sandboxes = ProcessSandboxes(SandboxSettings(directory=str(self.directory)), self.directory)
        # A process that is killed cancels nothing on its way out.
        self.disk.on_death = sandboxes.leave
        engine = LocalEngine(sessions_running_max=4)
        try:
            with anyio.fail_after(STEP_SECONDS_MAX):
                await engine.start(self.harness(sandboxes), await self.store.log.unfinished())
                await self._rests_or_dies()
        finally:
            sandboxes.leave()
            await engine.stop(0)
            await sandboxes.close()
            self.disk.writes_left = None
        return self.disk.died.is_set()

    async def _rests_or_dies(self) -> None:
        frames = self.bus.subscribe(self.session.id)
        async with anyio.create_task_group() as tasks:

            async def rests() -> None:
                if (await self.state()).status != "idle":
                    async for frame in frames:
                        if frame.type == "session.status_idle":
                            break
                tasks.cancel_scope.cancel()

            tasks.start_soon(rests)
            await self.disk.died.wait()
            tasks.cancel_scope.cancel()
        frames.close()

    def harness(self, sandboxes: ProcessSandboxes) -> Harness:
        async def spending_stopped() -> bool:
            return False

        return Harness(
            Parts(
                log=self.store.log,
                records=self.store.records,
                bus=self.bus,
                provider=ScriptedProvider(),
                sandboxes=sandboxes,
                blobs=self.blobs,
                attachments=Attachments(self.store.records, self.blobs, Clock(), cached_bytes_max=0),
                tools=TOOLS,
                mcp=make.mcp_servers(self.store.records, Clock()),
                price=no_price,
                window=wide,
                spending_stopped=spending_stopped,
                clock=Clock(),
                settings=HarnessSettings(backoff_seconds=0.001),
            )
        )

    async def remove(self) -> None:
        sandboxes = ProcessSandboxes(SandboxSettings(directory=str(self.directory)), self.directory)
        await sandboxes.destroy(self.session.id)
        await sandboxes.close()
        self.blobs.close()


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="corral-crash-") as made:
        yield Path(made)


async def test_a_worker_that_dies_at_any_write_is_replaced_without_loss_or_repetition(directory: Path) -> None:
    # Tasks that "died" are never awaited, as nobody awaits a killed process; asyncio would print each of them.
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    deaths = 0
    for fatal_write in range(WRITES_MAX):
        world = World(directory / str(fatal_write))
        await world.create()
        try:
            died = await one_session(world, fatal_write)
        finally:
            await world.remove()
        deaths += died
        if not died:
            break
    else:
        raise AssertionError(f"the session was not over after {WRITES_MAX} writes")
    assert deaths >= 8


async def one_session(world: World, fatal_write: int) -> bool:
    """The whole session, with one death on the way; True if there was one."""
    await world.send(make.message(TASK))
    died = await world.work(dies_at_write=fatal_write)
    if died:
        assert not await world.work(dies_at_write=None)
    state = await world.state()
    assert isinstance(state.stop_reason, ev.RequiresAction)
    await world.send(make.custom_result(state.pending[0].id))
    assert not await world.work(dies_at_write=None)
    await check(world)
    return died


async def check(world: World) -> None:
    events = await world.events()
    assert isinstance((await world.state()).stop_reason, ev.EndTurn)
    results = Counter(event.tool_use_id for event in events if isinstance(event, ev.AgentToolResult))
    uses = [event.id for event in events if isinstance(event, ev.AgentToolUse)]
    assert results == Counter(uses) and len(uses) == 3
    assert not any(event.is_error for event in events if isinstance(event, ev.AgentToolResult))
    assert sum(isinstance(event, ev.UserMessage) for event in events) == 1
    starts = [event.id for event in events if isinstance(event, ev.SpanModelRequestStart)]
    ends = [event.model_request_start_id for event in events if isinstance(event, ev.SpanModelRequestEnd)]
    assert sorted(starts) == sorted(ends)
    (kept,) = world.directory.glob("**/tool_results/*")
    assert (kept.name, kept.read_text(encoding="utf-8")) == (f"{uses[-1]}.txt", "y" * 101_000)
    shown = str([event for event in events if isinstance(event, ev.AgentToolResult)][-1].content)
    assert f"/home/agent/tool_results/{kept.name}" in shown and len(shown) < 6_000
    ran = world.directory.glob("**/ran")
    assert sorted(next(ran).read_text(encoding="utf-8").split()) == ["first", "second", "third"]
