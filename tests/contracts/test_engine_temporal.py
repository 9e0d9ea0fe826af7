"""What only an engine of many processes can do: hand over, take over, find a session's host, and lose its server."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from corral.config_sections import TemporalSettings
from corral.engines.temporal_server import connect
from corral.errors import MachineUnfit, Unavailable
from tests import temporal_server
from tests.contracts.engine_worlds import WAIT_SECONDS_MAX, Advance, Hands, TemporalWorld, new_session_id, world

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(temporal_server.unavailable() is not None, reason=str(temporal_server.unavailable())),
]


@pytest.fixture
async def engines() -> AsyncGenerator[TemporalWorld]:
    async with world("temporal") as made:
        assert isinstance(made, TemporalWorld)
        yield made


@contextmanager
def worker_process(engines: TemporalWorld, host: str, sandbox_host: str = "") -> Generator[subprocess.Popen[str]]:
    """A worker in a process of its own."""
    script = Path(__file__).with_name("engine_process.py")
    command = [sys.executable, str(script), engines.settings.address, engines.settings.task_queue, host, sandbox_host]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=script.parents[2])
    try:
        yield process
    finally:
        process.kill()
        process.wait(WAIT_SECONDS_MAX)
        assert process.stdout is not None
        process.stdout.close()


async def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    with anyio.fail_after(WAIT_SECONDS_MAX):
        return (await anyio.to_thread.run_sync(process.stdout.readline, abandon_on_cancel=True)).strip()


@pytest.mark.requirement("F069")
@pytest.mark.parametrize("has_sandbox", [False, True])
async def test_a_killed_worker_is_noticed_and_another_takes_the_session_over(
    engines: TemporalWorld, has_sandbox: bool, record_property: Callable[[str, object], None]
) -> None:
    engines.engine = await engines.make(None)
    engines.woken = engines.engine
    await engines.engine.start(engines.hands, ())
    session_id = new_session_id()
    with worker_process(engines, "a", "a" if has_sandbox else "") as first:
        if has_sandbox:
            engines.hosts[session_id] = "a"
        engines.engine.wake(session_id)
        assert await said(first) == session_id
        await engines.start_worker("b", engines.hands)
        first.kill()
        begun = time.monotonic()
        turn = await engines.hands.next()
    record_property("take_over_seconds", f"{time.monotonic() - begun:.2f}")
    assert (turn.session_id, turn.inherited) == (session_id, True)
    await engines.hands.rest(turn)


@pytest.mark.parametrize("has_sandbox", [False, True])
async def test_a_stopping_worker_hands_its_sessions_over(engines: TemporalWorld, has_sandbox: bool) -> None:
    await engines.start()
    session_id = new_session_id()
    if has_sandbox:
        engines.hosts[session_id] = "a"
    engines.engine.wake(session_id)
    await engines.hands.next()
    others = Hands()
    await engines.start_worker("b", others)
    await engines.workers["a"].stop(0.5)
    turn = await others.next()
    assert (turn.session_id, turn.inherited) == (session_id, True)
    await others.rest(turn)


async def test_a_session_is_advanced_where_its_sandbox_is(engines: TemporalWorld) -> None:
    await engines.start()
    others = Hands()
    await engines.start_worker("b", others)
    for _ in range(10):
        session_id = new_session_id()
        engines.hosts[session_id] = "b"
        engines.engine.wake(session_id)
        turn = await others.next()
        assert (turn.session_id, turn.inherited) == (session_id, False)
        await others.rest(turn)
    assert engines.hands.begun.empty()


async def test_another_host_goes_on_without_the_sandbox_of_one_that_does_not_answer(engines: TemporalWorld) -> None:
    await engines.start()
    session_id = new_session_id()
    engines.hosts[session_id] = "burnt-down"
    engines.engine.wake(session_id)
    turn = await engines.hands.next()
    assert (turn.session_id, turn.inherited) == (session_id, True)


async def test_a_sandbox_that_has_moved_is_not_left_behind_when_its_new_host_tries_again(
    engines: TemporalWorld,
) -> None:
    await engines.start()
    others = Hands()
    await engines.start_worker("b", others)
    session_id = new_session_id()
    engines.hosts[session_id] = "burnt-down"
    engines.engine.wake(session_id)
    home, turn = await _first(engines.hands, others)
    engines.hosts[session_id] = "a" if home is engines.hands else "b"
    home.failures += [Unavailable("the database is away")] * 3
    for left in (2, 1, 0):
        turn.go.set()
        turn = await home.next()
        assert len(home.failures) == left
    turn.go.set()


async def _first(*several: Hands) -> tuple[Hands, Advance]:
    """Who gets the next turn, and the turn."""
    found: list[tuple[Hands, Advance]] = []
    async with anyio.create_task_group() as tasks:

        async def look(hands: Hands) -> None:
            found.append((hands, await hands.next()))
            tasks.cancel_scope.cancel()

        for hands in several:
            tasks.start_soon(look, hands)
    return found[0]


async def test_an_interrupt_that_nobody_was_told_of_is_found(engines: TemporalWorld) -> None:
    await engines.start()
    session_id, other = new_session_id(), new_session_id()
    engines.engine.wake(session_id)
    turn = await engines.hands.next()
    engines.engine.wake(other)
    aside = await engines.hands.next()
    engines.interrupts[session_id] = "sevt_1"
    with anyio.fail_after(WAIT_SECONDS_MAX):
        await turn.interrupted.wait()
    assert not aside.interrupted.is_set()


async def test_a_session_that_nobody_was_told_of_is_found(engines: TemporalWorld) -> None:
    settings = engines.settings
    engines.settings = TemporalSettings(address=settings.address, task_queue=settings.task_queue, sweep_seconds=0.1)
    await engines.start()
    engines.unfinished.append(new_session_id())
    turn = await engines.hands.next()
    assert turn.session_id == engines.unfinished.pop()


async def test_sessions_go_on_when_the_temporal_server_was_killed(tmp_path: Path) -> None:
    server = await anyio.to_thread.run_sync(temporal_server.Server, tmp_path / "temporal.db")
    engines = TemporalWorld(server.address)
    try:
        await engines.start()
        running, woken = new_session_id(), new_session_id()
        engines.engine.wake(running)
        turn = await engines.hands.next()
        server.kill()
        engines.engine.wake(woken)
        engines.engine.wake(running)
        await anyio.to_thread.run_sync(server.start)
        turn.go.set()
        assert {(await engines.hands.next()).session_id for _ in range(2)} == {running, woken}
    finally:
        for turn in engines.hands.known:
            turn.go.set()
        await engines.stop()
        server.close()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (TemporalSettings(address="127.0.0.1:1"), "No Temporal server answers at 127.0.0.1:1"),
        (TemporalSettings(address="temporal"), "must be host:port"),
        (TemporalSettings(address="127.0.0.1:99999"), "No Temporal server answers"),
    ],
)
async def test_a_server_that_is_not_there_is_one_sentence(settings: TemporalSettings, said: str) -> None:
    with pytest.raises(MachineUnfit, match=said):
        await connect(settings)


async def test_a_namespace_that_is_not_there_is_one_sentence() -> None:
    with pytest.raises(MachineUnfit, match="has no namespace `elsewhere`"):
        await connect(TemporalSettings(address=temporal_server.shared(), namespace="elsewhere"))
