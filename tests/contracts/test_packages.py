"""Packages of environments: installed once, shared, offline in sessions; and what happens when that fails.

The packages are made here and lie in a directory that the machine is set up to take them from, so no registry is
needed. Some of them are hostile.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping
from itertools import count
from pathlib import Path
from typing import IO, NamedTuple, TypeAlias

import anyio
import anyio.from_thread
import anyio.to_thread
import msgspec
import pytest
from structlog.testing import capture_logs

from corral.config_sections import EgressSettings, PackagesSettings, SandboxSettings
from corral.domain.environment import Limited, Packages, Recipe
from corral.errors import MachineUnfit, PackagesFailed
from corral.interfaces.sandbox import Sandboxes
from corral.sandboxes.bubblewrap import BubblewrapSandboxes
from corral.sandboxes.directory import SessionDirectory, remove_tree
from corral.sandboxes.docker import DockerSandboxes
from corral.sandboxes.egress.outlet import Egress
from corral.sandboxes.packages.layers import Layers, seal
from corral.sandboxes.process import ProcessSandboxes
from tests import docker_engine
from tests.contracts.egress_world import bounded
from tests.contracts.local_index import Index
from tests.contracts.test_sandboxes import Hands
from tests.places import stage

NETWORK = Limited(allow_package_managers=True)


Server: TypeAlias = "BubblewrapSandboxes | DockerSandboxes"


def recipe(**packages: tuple[str, ...]) -> Recipe:
    return Recipe(networking=NETWORK, packages=Packages(**packages))


class Machine(NamedTuple):
    """A directory that servers use one after another, and what its package managers are set up to use."""

    backend: str
    root: Path
    packages: Index

    def server(self, settings: PackagesSettings | None = None, *, images: Mapping[str, str] = {}) -> Server:
        """What one server process would have; `images` are for single environments in containers."""
        machine = EgressSettings(machine=self.packages.machine)

        def egress(place: Path) -> Egress:
            return Egress(machine, place)

        if self.backend == "docker":
            sandbox = docker_engine.settings_for_docker(SandboxSettings(), images=images)
            return DockerSandboxes(sandbox, self.root, egress, packages=settings)
        return BubblewrapSandboxes(SandboxSettings(), self.root, egress, packages=settings)

    @property
    def layers(self) -> Path:
        return self.root / "sandboxes" / "layers"

    def leftovers(self) -> list[str]:
        """What is there of layers, their logs and locks aside, and of users that were claimed."""
        places = [*self.layers.glob("*"), *(self.layers / "drafts").glob("*")]
        names = [place.name for place in places if place.name not in ("drafts", "logs", "locks")]
        return [*names, *os.listdir(self.root / "sandboxes" / "uids")] if os.geteuid() == 0 else names


@pytest.fixture(params=["bubblewrap", "docker"])
async def machine(request: pytest.FixtureRequest, root: Path) -> AsyncIterator[Machine]:
    """With each backend that isolates."""
    backend = str(request.param)
    if backend == "docker" and (reason := docker_engine.why_not()):
        pytest.skip(reason)
    # Not below /tmp, which is a sandbox's own.
    place = Path(tempfile.mkdtemp(prefix="corral-test-", dir="/var/tmp"))
    machine = Machine(backend, root, Index(place))
    stage(root / "sandboxes", backend)
    server = machine.server()
    try:
        await server.start()
    except MachineUnfit as error:
        pytest.skip(error.message)
    (root / "sandboxes" / "uids").mkdir(exist_ok=True)
    yield machine
    for session in (root / "sandboxes" / "sessions").glob("*"):
        await server.destroy(session.name)
    await server.close()
    remove_tree(machine.packages.place)


@pytest.fixture
async def server(machine: Machine) -> AsyncIterator[Server]:
    server = machine.server()
    yield server
    await server.close()


async def opened(server: Sandboxes, session_id: str, recipe: Recipe) -> Hands:
    return Hands(await server.open(session_id, recipe), count(time.monotonic_ns()))


def needs(facts: Server, name: str) -> None:
    """Skip where the base lacks a package manager."""
    detail = next(fact.detail for fact in facts.explain() if fact.name == f"{name} packages")
    if detail.startswith("none"):
        pytest.skip(f"the base has no {name}")


# ---------------------------------------------------------------------------------------------- installed once


@pytest.mark.requirement("F036")
@bounded
async def test_packages_are_there_offline_and_a_second_session_does_not_install(
    machine: Machine, server: Server
) -> None:
    machine.packages.wheel("probe_a", needs=["probe_b"])
    machine.packages.wheel("probe_b", "2.5")
    wanted = recipe(pip=("probe_a==1.0",))
    with capture_logs() as logs:
        hands = await opened(server, "sesn_1", wanted)
        assert await hands.bash("python3 -c 'import probe_a, probe_b; print(probe_b.version)'; probe_a") == (
            "2.5\nprobe_a 1.0"
        )
        remove_tree(machine.packages.place)
        other = machine.server()
        assert await (await opened(other, "sesn_2", wanted)).bash("probe_b") == "probe_b 2.5"
        await other.close()
    assert [log["event"] for log in logs].count("packages_build_started") == 1
    assert "nothing written" in await hands.bash(
        "touch /opt/corral/packages/x 2>/dev/null || echo nothing written; id -u; ls -ld /opt/corral/packages/pip"
    )


@pytest.mark.requirement("F036")
@bounded
async def test_node_modules_are_required_imported_and_run(machine: Machine, server: Server) -> None:
    await server.start()
    needs(server, "npm")
    hands = await opened(server, "sesn_1", recipe(npm=(machine.packages.npm("probe-n"),)))
    assert await hands.bash("node -e \"console.log(require('probe-n'))\"; probe-n") == "1.0.0\nprobe-n 1.0.0"
    await hands.bash("echo \"import v from 'probe-n'; console.log(v)\" > a.mjs")
    assert await hands.bash("node a.mjs") == "1.0.0"


@bounded
async def test_sessions_that_want_one_set_at_once_share_one_build(machine: Machine) -> None:
    machine.packages.wheel("probe_a")
    servers = [machine.server(), machine.server()]
    with capture_logs() as logs:
        async with anyio.create_task_group() as tasks:
            for number in range(4):
                tasks.start_soon(servers[number % 2].open, f"sesn_{number}", recipe(pip=("probe_a",)))
    assert [log["event"] for log in logs].count("packages_build_started") == 1
    for server in servers:
        await server.close()


@bounded
async def test_an_agents_own_installs_need_no_flags_and_win_over_the_layer(machine: Machine, server: Server) -> None:
    for version in ("1.0", "2.0"):
        machine.packages.wheel("probe_a", version)
    machine.packages.wheel("probe_c")
    hands = await opened(server, "sesn_1", recipe(pip=("probe_a==1.0",)))
    assert (
        await hands.bash("pip install -q probe_c && probe_c && python3 -m pip install -q -U probe_a") == "probe_c 1.0"
    )
    assert await hands.bash("probe_a; PYTHONPATH=. python3 -c 'import probe_a; print(probe_a.version)'") == (
        "probe_a 2.0\n2.0"
    )
    again = await opened(server, "sesn_2", recipe(pip=("probe_a==1.0",)))
    assert await again.bash("probe_a") == "probe_a 1.0"


@bounded
async def test_an_agents_own_node_modules_are_on_path(machine: Machine, server: Server) -> None:
    await server.start()
    needs(server, "npm")
    spec = machine.packages.npm("probe-n").removeprefix("file:")
    hands = await opened(server, "sesn_1", Recipe(networking=NETWORK))
    assert await hands.bash(f"npm install -g --silent {spec} && probe-n") == "probe-n 1.0.0"
    assert await hands.bash("node -e \"console.log(require('probe-n'))\"") == "1.0.0"


# -------------------------------------------------------------------------------------------------- what fails


@bounded
async def test_a_package_that_does_not_exist_is_named_and_nothing_stays(machine: Machine, server: Server) -> None:
    machine.packages.wheel("probe_a")
    with pytest.raises(PackagesFailed, match=r"(?s)pip packages .*\(no-such-thing==9\).*No matching distribution"):
        await server.open("sesn_1", recipe(pip=("probe_a", "no-such-thing==9")))
    assert machine.leftovers() == []
    await server.open("sesn_1", recipe(pip=("probe_a",)))


@bounded
async def test_a_set_that_contradicts_itself_is_refused_with_the_reason(machine: Machine, server: Server) -> None:
    machine.packages.wheel("probe_a", needs=["probe_c==1.0"])
    machine.packages.wheel("probe_b", needs=["probe_c==2.0"])
    for version in ("1.0", "2.0"):
        machine.packages.wheel("probe_c", version)
    with pytest.raises(PackagesFailed, match=r"(?s)\(probe_a, probe_b\).*conflict"):
        await server.open("sesn_1", recipe(pip=("probe_a", "probe_b")))
    assert machine.leftovers() == []


@bounded
async def test_a_failure_is_remembered_for_a_while_and_then_tried_again(machine: Machine) -> None:
    server, wanted = machine.server(), recipe(pip=("probe_a",))
    with capture_logs() as logs:
        for _ in range(3):
            with pytest.raises(PackagesFailed):
                await server.open("sesn_1", wanted)
    assert [log["event"] for log in logs].count("packages_build_started") == 1
    await server.close()
    machine.packages.wheel("probe_a")
    forgetful = machine.server(PackagesSettings(failure_seconds=0))
    await forgetful.open("sesn_1", wanted)
    await forgetful.close()


@bounded
async def test_a_build_that_takes_too_long_is_ended(machine: Machine) -> None:
    machine.packages.source("probe_s", hostile="import time\nprint('asleep', flush=True)\ntime.sleep(600)")
    server = machine.server(PackagesSettings(build_seconds_max=1))
    with pytest.raises(PackagesFailed, match=r"probe_s.*longer than 1 seconds"):
        await server.open("sesn_1", recipe(pip=("probe_s",)))
    await server.close()
    assert machine.leftovers() == []


@bounded
async def test_a_build_that_fills_the_disk_is_ended(machine: Machine) -> None:
    fill = "with open('/tmp/big', 'wb') as file:\n    for _ in range(64): file.write(b'x' * 1048576)"
    machine.packages.source("probe_s", hostile=f"{fill}\nimport time\ntime.sleep(600)")
    server = machine.server(PackagesSettings(layer_bytes_max=32 * 1024 * 1024))
    with pytest.raises(PackagesFailed, match=r"probe_s.*more than 32 MiB"):
        await server.open("sesn_1", recipe(pip=("probe_s",)))
    await server.close()
    assert machine.leftovers() == []


@bounded
async def test_what_is_installed_runs_where_there_is_nothing_to_steal_and_no_way_out(
    machine: Machine, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-never-inside")
    hostile = """
import os, socket
found['environment'] = [name for name, value in os.environ.items() if 'never-inside' in value]
found['uid'] = os.stat('/home/agent').st_uid
for name, try_it in {
    'host': lambda: open('/etc/shadow'), 'kernel': lambda: open('/proc/sys/kernel/core_pattern', 'r+'),
    'usr': lambda: open('/usr/corral-was-here', 'w'), 'root': lambda: os.listdir('/root'),
    'network': lambda: socket.create_connection(('1.1.1.1', 53), 2), 'sessions': lambda: os.listdir('ROOT'),
}.items():
    try:
        try_it()
        found[name] = 'open'
    except OSError:
        found[name] = 'closed'
os.symlink('/etc/passwd', '/opt/corral/packages/link')
os.mkfifo('/opt/corral/packages/fifo')
open('/opt/corral/packages/suid', 'w').close()
os.chmod('/opt/corral/packages/suid', 0o4777)
"""
    machine.packages.source("probe_s", hostile=hostile.replace("ROOT", str(machine.root)))
    hands = await opened(server, "sesn_1", recipe(pip=("probe_s",)))
    found = await hands.bash("python3 -c 'import probe_s; print(probe_s.found)'")
    assert "'open'" not in found and found.count("closed") == 6
    assert "'environment': []" in found
    (layer,) = machine.layers.glob("*/packages")
    assert not (layer / "fifo").exists()
    assert (layer / "link").readlink() == Path("/etc/passwd")
    status = (layer / "suid").stat()
    assert (status.st_mode & 0o7777, status.st_uid) == (0o755, os.geteuid())


def hanging(machine: Machine, hang: Path) -> None:
    """Make a package whose installation never ends while `hang` is there, and holds it open."""
    os.mkfifo(hang, 0o666)
    hang.chmod(0o666)
    code = f"import os, time\nif os.path.exists('{hang}'):\n    held = open('{hang}', 'w')\n    time.sleep(600)"
    machine.packages.source("probe_s", hostile=code)


async def opened_by_a_build(hang: Path) -> IO[bytes]:
    """Until the build, deep inside, has come to where it hangs; what it holds open."""
    return await anyio.to_thread.run_sync(lambda: hang.open("rb"), abandon_on_cancel=True)


async def ended(held: IO[bytes]) -> None:
    """Until nobody holds it open any more."""
    with held:
        assert await anyio.to_thread.run_sync(held.read, abandon_on_cancel=True) == b""


KILLED = """
import sys, anyio
from pathlib import Path
from tests import docker_engine
from tests.contracts.egress_world import bounded
from tests.contracts.local_index import Index
from tests.contracts.test_packages import Machine, recipe
backend, root, packages = sys.argv[1:]
server = Machine(backend, Path(root), Index(Path(packages))).server()
anyio.run(server.open, "sesn_1", recipe(pip=("probe_s",)))
"""


@bounded
async def test_a_server_that_is_killed_takes_its_build_along_and_the_next_one_builds(
    machine: Machine, server: Server
) -> None:
    hang = machine.packages.place / "hang"
    hanging(machine, hang)
    command = [sys.executable, "-c", KILLED, machine.backend, str(machine.root), str(machine.packages.place)]
    process = await anyio.open_process(command, cwd=Path(__file__).parents[2])
    try:
        held = await opened_by_a_build(hang)
        (draft,) = (machine.layers / "drafts").glob("*")
    finally:
        process.kill()
        await process.wait()
    await ended(held)
    hang.unlink()
    await server.open("sesn_1", recipe(pip=("probe_s",)))
    assert not draft.exists()


@bounded
async def test_waiting_for_a_build_can_be_cut_short_and_the_build_goes_on(machine: Machine, server: Server) -> None:
    machine.packages.wheel("probe_a")
    with capture_logs() as logs:
        with anyio.move_on_after(0.2) as scope:
            await server.open("sesn_1", recipe(pip=("probe_a",)))
        await server.open("sesn_1", recipe(pip=("probe_a",)))
    assert scope.cancelled_caught
    assert [log["event"] for log in logs].count("packages_build_started") == 1


@bounded
async def test_a_server_that_stops_ends_its_builds_and_leaves_nothing(machine: Machine) -> None:
    hang = machine.packages.place / "hang"
    hanging(machine, hang)
    server = machine.server()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(server.open, "sesn_1", recipe(pip=("probe_s",)))
        (await opened_by_a_build(hang)).close()
        tasks.cancel_scope.cancel()
    await server.close()
    assert machine.leftovers() == []


@bounded
async def test_a_server_that_stops_begins_no_build(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.packages.source("probe_s", hostile="import time\ntime.sleep(600)")
    server = machine.server()
    closing: list[asyncio.Task[None]] = []
    step = "_lock"
    lock: Callable[[Layers, str], int] = getattr(Layers, step)

    def locked_too_late(layers: Layers, key: str) -> int:
        found = lock(layers, key)
        anyio.from_thread.run_sync(lambda: closing.append(asyncio.create_task(server.close())))
        return found

    monkeypatch.setattr(Layers, step, locked_too_late)
    with pytest.raises(PackagesFailed, match="stopping"):
        await server.open("sesn_1", recipe(pip=("probe_s",)))
    await closing[0]
    assert machine.leftovers() == []


@bounded
async def test_apt_says_what_it_needs(machine: Machine, server: Server) -> None:
    remedy = {"bubblewrap": "corral base build", "docker": r"image of your own .*sandbox\.docker\.images"}
    with pytest.raises(PackagesFailed, match=remedy[machine.backend]):
        await server.open("sesn_1", recipe(apt=("hello",)))


@bounded
async def test_a_manager_that_the_base_lacks_is_named_with_a_remedy(server: Server) -> None:
    await server.start()
    facts = {fact.name: fact.detail for fact in server.explain()}
    lacking = [name for name in ("cargo", "gem", "go") if facts[f"{name} packages"].startswith("none")]
    if not lacking:
        pytest.skip("the base has every package manager")
    with pytest.raises(PackagesFailed, match=rf"{lacking[0]} packages .*some-thing.*the sandbox's (base|image) has no"):
        await server.open("sesn_1", recipe(**{lacking[0]: ("some-thing",)}))


@bounded
async def test_sandboxes_without_isolation_refuse_packages(root: Path) -> None:
    server = ProcessSandboxes(SandboxSettings(), root)
    with pytest.raises(PackagesFailed, match="process"):
        await server.open("sesn_1", recipe(pip=("probe_a",)))
    await server.close()


@pytest.mark.requirement("F036")
@bounded
async def test_another_image_is_another_layer_and_another_name_is_not(machine: Machine) -> None:
    if machine.backend != "docker":
        pytest.skip("only containers have images")
    machine.packages.wheel("probe_a")
    other = docker_engine.image_with({"COLOUR": "green", "PYTHONPATH": "/elsewhere"})
    server = machine.server(images={"alias": docker_engine.image_id(), "other": other})
    for number, environment in enumerate(("", "alias", "other")):
        wanted = msgspec.structs.replace(recipe(pip=("probe_a",)), environment=environment)
        hands = await opened(server, f"sesn_{number}", wanted)
        assert await hands.bash("probe_a") == "probe_a 1.0"
        if environment == "other":
            assert await hands.bash('echo "$COLOUR ${PYTHONPATH##*:}"') == "green /elsewhere"
            # Programs change PYTHONPATH; an environment's packages do not go with that.
            assert await hands.bash("PYTHONPATH=. python3 -c 'import probe_a; print(probe_a.version)'") == "1.0"
        assert len([*machine.layers.glob("*/packages")]) == (2 if environment == "other" else 1)
    await server.close()


@bounded
async def test_layers_that_nobody_uses_are_pruned(machine: Machine, server: Server) -> None:
    machine.packages.wheel("probe_a")
    machine.packages.wheel("probe_b")
    for number, name in enumerate(("probe_a", "probe_b")):
        await server.open(f"sesn_{number}", recipe(pip=(name,)))
        await server.destroy(f"sesn_{number}")
    old, kept = sorted(machine.layers.glob("?" * 32))
    os.utime(old, (0, 0))
    await machine.server().start()
    assert not old.exists() and kept.exists()


def test_a_sealed_tree_is_open_to_read_and_closed_to_write(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c").write_text("x", encoding="utf-8")
    (tmp_path / "a" / "b" / "c").chmod(0o6777)
    (tmp_path / "a" / "b").chmod(0)
    seal(tmp_path)
    assert ((tmp_path / "a" / "b").stat().st_mode & 0o7777) == 0o755
    assert ((tmp_path / "a" / "b" / "c").stat().st_mode & 0o7777) == 0o755


def test_a_sessions_uid_and_a_builds_are_never_the_same(tmp_path: Path) -> None:
    directory = SessionDirectory(tmp_path, "sesn_1")
    directory.make(uid_first=os.geteuid() or 210_000, uid_count=2)
    if os.geteuid() == 0:
        assert [int(name) for name in os.listdir(tmp_path / "uids")] == [directory.owner()]
    directory.remove()
