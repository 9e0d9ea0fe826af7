"""Two workers that both believe a session to be theirs: the store refuses the one that is stale."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple, cast

import anyio
import anyio.lowlevel
import msgspec
import pytest

from corral.config_sections import SandboxSettings
from corral.domain import intake
from corral.domain.query import EventsQuery
from corral.engines.bus import LocalBus
from corral.engines.local import LocalSignal
from corral.errors import StaleEpoch
from corral.interfaces.event_log import Claim, Decide, Decision, nothing
from corral.interfaces.store import Store
from corral.sandboxes.process import ProcessSandboxes
from corral.storage import postgres, sqlite
from corral.storage.ephemeral import EphemeralStore
from tests import postgres_server
from tests.contracts.storage_fixtures import BACKENDS, Backend, deciding, fresh, said, session, words_of
from tests.crash.legality import assert_legal
from tests.crash.mortal_world import MortalLog, SystemClock, World
from tests.crash.scenarios import bash, says, toolset
from tests.unit import builders as make

pytestmark = pytest.mark.anyio

SECONDS_MAX = 60
CLAIMS = 12
WAITS = "echo ran >> ran; until [ -e go ]; do sleep 0.02; done; echo over"


class Process(NamedTuple):
    """What one of two processes has of the store. Those of one process share it."""

    store: Store
    bus: LocalBus


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="corral-crash-") as made:
        yield Path(made)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Backend:
    return cast(Backend, request.param)


@asynccontextmanager
async def two_processes(backend: Backend, directory: Path) -> AsyncGenerator[tuple[Process, Process]]:
    """Two ways to one store; two connections of two processes where the store allows that."""
    buses = [LocalBus(frames_max=10_000, bytes_max=1 << 24) for _ in range(2)]
    async with AsyncExitStack() as stack:
        if backend != "postgresql":
            memory = EphemeralStore(buses[0], SystemClock())
            store = (
                memory
                if backend == "ephemeral"
                else await sqlite.open_store(directory / "corral.db", buses[0], SystemClock())
            )
            stack.push_async_callback(store.close)
            yield Process(store, buses[0]), Process(store, buses[0])
            return
        if why := postgres_server.unavailable():
            pytest.skip(why)
        url = await stack.enter_async_context(postgres_server.swept())
        stores: list[Store] = []
        for bus in buses:
            opened = await postgres.open_store(url, bus, SystemClock(), exclusive=False)
            stack.push_async_callback(opened.close)
            stores.append(opened)
        yield Process(stores[0], buses[0]), Process(stores[1], buses[1])


class WatchedLog(MortalLog):
    """Tells when it was claimed."""

    def __init__(self, world: World, on_claim: Callable[[], None]) -> None:
        super().__init__(world.store.log, world.disk)
        self._on_claim = on_claim

    async def claim(self, session_id: str, decide: Decide = nothing) -> Claim:
        """See `EventLog`."""
        claim = await super().claim(session_id, decide)
        self._on_claim()
        return claim


@pytest.mark.requirement("F069")
async def test_of_two_workers_in_one_turn_the_older_stops_and_nothing_is_done_twice(
    backend: Backend, directory: Path
) -> None:
    outcomes: dict[str, str] = {}
    async with AsyncExitStack() as stack:
        stack.enter_context(anyio.fail_after(SECONDS_MAX))
        first, second = await stack.enter_async_context(two_processes(backend, directory))
        agent = msgspec.structs.replace(make.agent(), tools=(toolset(),))
        world = World(directory, first.store, first.bus, msgspec.structs.replace(make.session(), agent=agent))
        other = World(directory / "second", second.store, second.bus, world.session)
        workspace = directory / "sessions" / world.session.id / "files" / "workspace"
        await world.create()
        task = says(bash(WAITS), {"say": "Done."}).events(world.session, make.state())
        await first.store.log.transact(
            world.session.id, lambda session, state, now: Decision(intake.accept(session, state, task, now))
        )

        async def work(name: str, mine: World, on_claim: anyio.Event, *, inherited: bool) -> None:
            mine.log = WatchedLog(mine, on_claim.set)
            sandboxes = ProcessSandboxes(SandboxSettings(directory=str(directory)), directory)
            servers = make.mcp_servers(mine.store.records, mine.clock)
            try:
                await mine.harness(sandboxes, servers).advance(mine.session.id, LocalSignal(), inherited=inherited)
                outcomes[name] = "finished"
            except StaleEpoch:
                outcomes[name] = "refused"
            finally:
                sandboxes.leave()
                await sandboxes.close()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(partial(work, "first", world, anyio.Event(), inherited=False))
            while not (workspace / "ran").exists():
                await anyio.lowlevel.checkpoint()
            claimed = anyio.Event()
            tasks.start_soon(partial(work, "second", other, claimed, inherited=True))
            await claimed.wait()
            (workspace / "go").touch()
        events = await world.events()
        ran = (workspace / "ran").read_text(encoding="utf-8")
        other.blobs.close()
        await world.close()
    assert outcomes == {"first": "refused", "second": "finished"}
    assert_legal(events)
    assert ran == "ran\n"
    (result,) = [event for event in events if event["type"] == "agent.tool_result"]
    assert (result["content"][0]["text"], result["is_error"]) == ("over", False)


async def test_workers_that_take_a_session_from_each_other_write_one_after_the_other(
    backend: Backend, directory: Path
) -> None:
    """Each writes until it is refused, then claims again: in the log epochs never go back."""
    async with two_processes(backend, directory) as processes:
        await processes[0].store.log.create(session(), fresh(), deciding())

        async def work(store: Store) -> None:
            for _ in range(CLAIMS):
                epoch = (await store.log.claim("sesn_a")).epoch
                try:
                    for _ in range(CLAIMS):
                        await store.log.transact("sesn_a", deciding(said(str(epoch))), epoch=epoch)
                except StaleEpoch:
                    continue

        with anyio.fail_after(SECONDS_MAX):
            async with anyio.create_task_group() as tasks:
                for process in processes:
                    tasks.start_soon(work, process.store)
        logged = await processes[0].store.log.events("sesn_a", EventsQuery(limit=10_000))
        epochs = [int(words) for words in words_of(each.event for each in logged)]
        assert epochs == sorted(epochs)
        assert len(set(epochs)) > 1
