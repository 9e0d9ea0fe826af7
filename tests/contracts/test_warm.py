"""Warm sandboxes: a new session gets one that nobody has used and that cannot be told from any other, and none stays.

Of bubblewrap alone; the other backends have none.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec
import pytest

from corral.config_sections import SandboxSettings
from corral.domain.content import TextBlock
from corral.domain.environment import SEALED, Recipe, Unrestricted
from corral.domain.ids import new_id
from corral.domain.placeholder import Substitution
from corral.errors import MachineUnfit
from corral.interfaces.sandbox import SandboxCall
from corral.sandboxes.bubblewrap import BubblewrapSandboxes
from corral.sandboxes.directory import SessionDirectory, start_ticks
from tests.contracts.conftest import SETTINGS

SECONDS_MAX = 60
WARM = msgspec.structs.replace(SETTINGS, warm=1, warm_seconds=600.0, output_bytes_max=500_000)
OPEN_TO_ALL = Recipe(networking=Unrestricted())
SECRET = Substitution(
    name="API_KEY",
    placeholder="corral-secret-1",
    secret="s",
    hosts=None,
    header=True,
    body=False,
    credential_id="vcrd_1",
    vault_id="vlt_1",
)
LOOK = r"""
id; umask; pwd; ulimit -a; grep -E '^(Uid|Gid|Cap|NoNew|Seccomp|Groups)' /proc/1/status /proc/$$/status; hostname
find / -maxdepth 4 ! -path '/proc/*' ! -path '/usr/*' ! -path '/dev/*' ! -path '/lib*' -printf '%M %u %p %l\n' | sort
env | sort; cut -d' ' -f5,6 /proc/self/mountinfo | sort; set -- /proc/$$/fd/*; echo "${@##*/}"
"""
"""All that an agent could tell two sandboxes apart by."""

pytestmark = pytest.mark.anyio


class World:
    """A server with warm sandboxes."""

    def __init__(self, root: Path, settings: SandboxSettings = WARM) -> None:
        self.root, self.server = root, BubblewrapSandboxes(settings, root)

    def directory(self, name: str) -> SessionDirectory:
        return SessionDirectory(self.root / "sandboxes", name)

    def blanks(self) -> list[SessionDirectory]:
        """Those that lie on disk."""
        return [self.directory(path.name) for path in (self.root / "sandboxes" / "sessions").glob("blank-*")]

    def left(self) -> list[Path]:
        return [path for name in ("sessions", "uids", "trash") for path in (self.root / "sandboxes" / name).glob("*")]

    def metric(self, name: str, **labels: str) -> float | None:
        return self.server.egress.registry.get_sample_value(name, labels)

    async def warmed(self, count: int = 1) -> list[int]:
        """Wait for this many and no others; their processes."""
        await until(lambda: self.metric("corral_sandboxes_warm") == len(self.blanks()) == count)
        records = [blank.record() for blank in self.blanks()]
        return [record.pid for record in records if record is not None]

    async def run(self, session: str, command: str, recipe: Recipe = SEALED, *secrets: Substitution) -> str:
        sandbox = await self.server.open(session, recipe, secrets)
        reply = await sandbox.call(
            SandboxCall(call_id=new_id("sevt"), operation="bash", arguments={"command": command})
        )
        *_, block = reply.content
        assert isinstance(block, TextBlock) and not reply.is_error, reply
        return block.text

    def pid(self, session: str) -> int:
        record = self.directory(session).record()
        assert record is not None
        return record.pid

    async def end(self) -> None:
        for path in (self.root / "sandboxes" / "sessions").glob("sesn_*"):
            await self.server.destroy(path.name)
        await self.server.close()


async def until(condition: Callable[[], bool]) -> None:
    """Until it holds; what a server does by itself sends no news."""
    with anyio.fail_after(SECONDS_MAX):
        while not await anyio.to_thread.run_sync(condition):  # noqa: ASYNC110  # files have no event to wait for
            await anyio.sleep(0.02)


@pytest.fixture
async def world(root: Path) -> AsyncIterator[World]:
    world = World(root)
    try:
        await world.server.start()
    except MachineUnfit as error:
        pytest.skip(error.message)
    yield world
    await world.end()
    assert world.left() == []


async def test_a_new_session_gets_a_warm_sandbox_that_cannot_be_told_from_a_cold_one(world: World) -> None:
    cold = await world.run("sesn_1", LOOK, OPEN_TO_ALL, SECRET)
    (pid,) = await world.warmed()
    warm = await world.run("sesn_2", LOOK, OPEN_TO_ALL, SECRET)
    assert world.pid("sesn_2") == pid != world.pid("sesn_1")
    assert "API_KEY=corral-secret-1" in warm
    assert warm.splitlines() == cold.splitlines()
    assert world.metric("corral_sandbox_starts_total", outcome="cold") == 1
    assert world.metric("corral_sandbox_starts_total", outcome="warm") == 1
    assert world.server.egress.serves("sesn_2")
    if (group := world.server.group("sesn_2")) is not None:
        assert pid in await anyio.to_thread.run_sync(group.processes)
    assert await world.warmed() != [pid], "another takes its place"
    await world.server.destroy("sesn_2")
    assert start_ticks(pid) is None


async def test_what_was_used_or_made_by_another_recipe_is_never_taken(world: World) -> None:
    assert await world.run("sesn_1", "echo mine > file; echo $$") != ""
    (pid,) = await world.warmed()
    await world.run("sesn_2", "true", OPEN_TO_ALL)
    assert world.pid("sesn_2") != pid
    await anyio.to_thread.run_sync(world.directory("sesn_1").kill_instance)
    await world.server.close()
    world.server = BubblewrapSandboxes(WARM, world.root)
    await world.run("sesn_3", "true")
    (pid,) = await world.warmed()
    assert await world.run("sesn_1", "cat file") == "mine", "it has files, which no blank one has"
    assert world.pid("sesn_1") != pid
    assert await world.warmed() == [pid]


async def test_warm_sandboxes_are_bounded_and_end_when_nobody_asks(world: World) -> None:
    await world.server.close()
    settings = msgspec.structs.replace(WARM, warm=2, warm_total_max=2)
    world.server = BubblewrapSandboxes(settings, world.root)
    await world.run("sesn_1", "true")
    pids = await world.warmed(2)
    await world.run("sesn_2", "true", OPEN_TO_ALL)
    await until(lambda: not any(map(start_ticks, pids)))
    assert not set(await world.warmed(2)) & set(pids)
    await world.server.close()
    assert world.blanks() == []
    world.server = BubblewrapSandboxes(msgspec.structs.replace(WARM, warm_seconds=2.0), world.root)
    await world.run("sesn_3", "true")
    (pid,) = await world.warmed()
    for session in ("sesn_1", "sesn_2", "sesn_3"):
        await world.server.destroy(session)
    await until(lambda: world.left() == [])
    assert start_ticks(pid) is None


SERVER_TO_KILL = """
import sys, anyio
from pathlib import Path
from tests.contracts.test_warm import World
async def main():
    world = World(Path(sys.argv[1]))
    await world.run("sesn_1", "true")
    print(*await world.warmed(), flush=True)
    await anyio.sleep_forever()
anyio.run(main)
"""


async def test_warm_sandboxes_die_with_their_server(world: World) -> None:
    path = os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])
    argv = [sys.executable, "-c", SERVER_TO_KILL, str(world.root)]
    async with await anyio.open_process(argv, env={"PYTHONPATH": path}, cwd="/", stderr=subprocess.DEVNULL) as victim:
        assert victim.stdout is not None
        with anyio.fail_after(SECONDS_MAX):
            pid = int(await victim.stdout.receive())
        victim.kill()
        await victim.wait()
    await until(lambda: start_ticks(pid) is None)
    for blank in world.blanks():
        # As is done with all that is no session's.
        await world.server.destroy(blank.path.name)


async def test_a_server_that_dies_while_it_hands_one_over_leaves_nothing_that_hangs(world: World) -> None:
    await world.run("sesn_1", "true")
    await world.warmed()
    (blank,) = world.blanks()
    directory = world.directory("sesn_2")
    directory.server.mkdir(parents=True)
    directory.adopt(blank)
    # The gate is still shut. It dies with the server, here by its orderly end.
    await world.server.close()
    await until(lambda: not directory.is_running())
    world.server = BubblewrapSandboxes(WARM, world.root)
    assert (await world.run("sesn_2", "echo works")).endswith("works")
