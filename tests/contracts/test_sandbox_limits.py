"""Limits of whole sandboxes: the kernel's groups as they are made, used and removed, and the floor under the disk.

The groups are the machine's own; where none is writable those tests are skipped. What happens at a limit is in
`tests/escape/test_exhaustion.py`.
"""

from __future__ import annotations

import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import count, repeat
from pathlib import Path
from typing import ClassVar

import msgspec
import pytest

from corral.domain.file import Mount
from corral.errors import MachineUnfit, SandboxUnavailable
from corral.interfaces.sandbox import Sandbox, SandboxCall, SandboxReply
from corral.sandboxes import cgroups
from corral.sandboxes.bubblewrap import BubblewrapSandboxes
from corral.sandboxes.disk import Account, Space
from corral.sandboxes.process import ProcessSandboxes
from corral.storage.blobs import DiskBlobs
from tests.contracts.conftest import SETTINGS

LIMITS = cgroups.Limits(memory_bytes=64 << 20, processes=10, cpus=0.5)
TREES = Path("/sys/fs/cgroup")
_ids = count(1)


@pytest.fixture
def found(root: Path) -> Iterator[cgroups.Cgroups]:
    found = cgroups.find(root)
    if found is None:
        pytest.skip("no cgroup is writable here")
    yield found
    found.reap()
    found.remove()


@pytest.fixture
def cat() -> Iterator[subprocess.Popen[bytes]]:
    """A process that echoes what it is told."""
    with subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield process


def groups(name: str) -> list[Path]:
    return [*TREES.glob(f"corral/*/{name}"), *TREES.glob(f"*/corral/*/{name}")]


def echo(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(b"x\n")
    process.stdin.flush()
    return process.stdout.readline()


async def bash(sandbox: Sandbox, command: str) -> SandboxReply:
    call = SandboxCall(call_id=f"sevt_{next(_ids)}", operation="bash", arguments={"command": command})
    return await sandbox.call(call)


def test_a_group_holds_processes_freezes_them_and_is_removed(
    found: cgroups.Cgroups, cat: subprocess.Popen[bytes]
) -> None:
    group = found.group("sesn_group", LIMITS)
    group.make()
    group.put(cat.pid)
    assert group.processes() == [cat.pid] and group.oom_kills() == 0
    group.remove_if_empty()
    assert group.processes() == [cat.pid]
    if group.can_freeze():
        group.freeze()
        group.freeze()
        assert cat.stdin is not None and cat.stdout is not None
        cat.stdin.write(b"y\n")
        cat.stdin.flush()
        assert not select.select([cat.stdout], [], [], 0.2)[0], "what is frozen answers nothing"
        group.thaw()
        assert cat.stdout.readline() == b"y\n"
    assert echo(cat) == b"x\n"
    cat.kill()
    cat.wait()
    group.remove()
    assert not groups("sesn_group")
    group.thaw()


def test_version_2_freezes_where_only_that_is_there(cat: subprocess.Popen[bytes]) -> None:
    found = cgroups.version_2("0123456789ab")
    if found is None:
        pytest.skip("no group of version 2 is writable here")
    group = found.group("sesn_second", LIMITS)
    group.make()
    group.put(cat.pid)
    group.freeze()
    group.thaw()
    assert echo(cat) == b"x\n"
    cat.kill()
    cat.wait()
    group.remove()
    found.remove()
    assert not groups("sesn_second")


@pytest.mark.parametrize("version", [cgroups.version_1, cgroups.version_2])
def test_what_is_in_a_group_goes_over_to_another(
    version: Callable[[str], cgroups.Cgroups | None], cat: subprocess.Popen[bytes]
) -> None:
    found = version("0123456789ab")
    if found is None:
        pytest.skip("no group of this version is writable here")
    former, group = found.group("blank-1", LIMITS), found.group("sesn_taken", LIMITS)
    group.make()  # what a sandbox before has left
    former.make()
    former.put(cat.pid)
    group.take_over(former)
    assert group.processes() == [cat.pid] and not groups("blank-1")
    assert echo(cat) == b"x\n"
    cat.kill()
    cat.wait()
    group.remove()
    found.remove()
    assert not groups("sesn_taken")


def test_what_dead_servers_left_is_reaped_and_what_runs_is_not(
    root: Path, found: cgroups.Cgroups, cat: subprocess.Popen[bytes]
) -> None:
    stale, alive = found.group("sesn_stale", LIMITS), found.group("sesn_alive", LIMITS)
    stale.make()
    alive.make()
    alive.put(cat.pid)
    again = cgroups.find(root)
    assert again is not None and again.controllers == found.controllers
    assert not groups("sesn_stale") and alive.processes() == [cat.pid]
    cat.kill()
    cat.wait()
    alive.remove()


class Raced(cgroups.Limits):
    """Limits that are not set before somebody else has taken away what is empty, as servers do that start."""

    reaps: ClassVar[Iterator[Callable[[], None]]] = iter(())

    def values(self, controller: str, *, old: bool) -> Iterator[tuple[str, str, bool]]:
        next(self.reaps, lambda: None)()
        yield from super().values(controller, old=old)


def test_a_group_that_others_take_away_while_it_is_made_is_made_again(
    found: cgroups.Cgroups, cat: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Raced, "reaps", repeat(found.reap, 10))
    group = found.group("sesn_raced", Raced(*LIMITS))
    group.make()
    found.reap()
    monkeypatch.setattr(Raced, "reaps", repeat(found.reap, 10))
    group.put(cat.pid)
    (pids,) = {place for place in groups("sesn_raced") if (place / "pids.max").exists()} or (None,)
    assert pids is None or (pids / "pids.max").read_text(encoding="ascii").strip() != "max"
    assert {(place / "cgroup.procs").read_text(encoding="ascii") for place in groups("sesn_raced")} == {f"{cat.pid}\n"}
    cat.kill()
    cat.wait()
    group.remove()


@pytest.mark.anyio
async def test_a_sandbox_and_its_commands_are_in_its_group_until_it_is_destroyed(root: Path) -> None:
    server = BubblewrapSandboxes(msgspec.structs.replace(SETTINGS, cpus_max=0.5), root)
    try:
        await server.start()
    except MachineUnfit as error:
        pytest.skip(error.message)
    sandbox = await server.open("sesn_grouped")
    group = server.group("sesn_grouped")
    if group is None:
        await server.destroy("sesn_grouped")
        await server.close()
        pytest.skip("no cgroup is writable here")
    assert len(group.processes()) == 2, "bwrap and the daemon"
    await bash(sandbox, "sleep 1000 & sleep 1000 & true")
    assert len(group.processes()) == 5
    group.freeze()
    await server.destroy("sesn_grouped")
    assert not groups("sesn_grouped")
    await server.close()


@pytest.mark.anyio
async def test_cpu_time_is_limited(root: Path) -> None:
    server = BubblewrapSandboxes(msgspec.structs.replace(SETTINGS, cpus_max=0.2), root)
    try:
        await server.start()
    except MachineUnfit as error:
        pytest.skip(error.message)
    sandbox = await server.open("sesn_busy")
    limited = server.group("sesn_busy") is not None
    busy = (
        "import time; start = time.monotonic(), time.process_time()\nwhile time.process_time() - start[1] < .3: pass\n"
    )
    reply = await bash(sandbox, f"python3 -c '{busy}print(time.monotonic() - start[0] > 1)'")
    await server.destroy("sesn_busy")
    await server.close()
    if not limited:
        pytest.skip("no cgroup is writable here")
    assert "True" in str(reply.content), reply


@pytest.mark.anyio
@pytest.mark.parametrize("backend", [BubblewrapSandboxes, ProcessSandboxes])
async def test_a_full_disk_of_the_host_refuses_sandboxes_and_writes_but_not_commands(
    root: Path, backend: type[BubblewrapSandboxes | ProcessSandboxes], tmp_path: Path
) -> None:
    roomy, full = backend(SETTINGS, root), backend(msgspec.structs.replace(SETTINGS, disk_free_bytes_min=1 << 60), root)
    try:
        await roomy.start()
    except MachineUnfit as error:
        pytest.skip(error.message)
    with pytest.raises(SandboxUnavailable, match="the host's disk is nearly full"):
        await full.open("sesn_full")
    await roomy.open("sesn_full")
    await roomy.close()
    sandbox = await full.open("sesn_full")
    write = {"file_path": "x", "content": "x"}
    refused = await sandbox.call(SandboxCall(call_id="sevt_write", operation="write", arguments=write))
    assert refused.is_error and "the host's disk is nearly full" in str(refused.content)
    assert not (await bash(sandbox, "echo x")).is_error
    blobs = DiskBlobs(tmp_path / "blobs")
    await full.mount("sesn_full", [], blobs)
    with pytest.raises(SandboxUnavailable, match="the host's disk is nearly full"):
        await full.mount("sesn_full", [Mount(path="x", sha256="0" * 64)], blobs)
    blobs.close()
    await full.destroy("sesn_full")
    await full.close()


def test_files_are_counted_once_each_and_not_through_links(root: Path) -> None:
    files = root / "files"
    (files / "deep").mkdir(parents=True)
    (files / "one").write_bytes(bytes(1 << 20))
    (files / "deep" / "same").hardlink_to(files / "one")
    (files / "elsewhere").symlink_to("/usr")
    with open(files / "hole", "wb") as hole:
        hole.truncate(1 << 30)
    account = Account(files, Space(2 << 20, 10))
    assert account.suspect(Space(0, 0), account.limit)
    used = account.count(None)
    assert 1 << 20 <= used.bytes < 1.2 * (1 << 20) and used.files == 5
    assert used.within(account.limit)


COMPLAIN = """
import os, re, sys
from pathlib import Path
from corral.sandboxes.directory import remove_tree
from corral.sandboxes.disk import Account, Space
if os.geteuid() == 0:
    os.setresuid(54321, 54321, 54321)
place, home = Path(sys.argv[1], "tree"), os.open("/", os.O_PATH)
place.mkdir()
os.chdir(place)
for _ in range(400):
    os.mkdir("x" * 250)
    os.chdir("x" * 250)
for number in range(500):
    os.makedirs(f"{number}/inner")
    os.chmod(str(number), 0)
os.fchdir(home)
def most():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
before = most()
account = Account(place, Space(1 << 40, 1 << 40))
account.count(None)
remove_tree(place)
print(place.exists(), most() - before < 16 * 1024)
"""


def test_complaints_about_what_is_closed_are_not_gathered(root: Path) -> None:
    """Fifty megabytes of them, for a server that is an ordinary user: each names a whole path."""
    root.chmod(0o777)
    command = [sys.executable, "-c", COMPLAIN, str(root)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (done.stdout, done.stderr) == ("False True\n", "")


def test_an_account_is_suspected_only_when_enough_has_gone_from_the_disk(root: Path) -> None:
    account = Account(root, Space(1 << 60, 1 << 40))
    account.count(None)
    assert not account.suspect(Space(0, 0), account.limit)
    assert account.suspect(Space(-1 << 61, 0), account.limit)


def test_the_doctor_says_which_limits_are_in_force(root: Path) -> None:
    facts = {fact.name: fact.detail for fact in BubblewrapSandboxes(SETTINGS, root).explain()}
    if "sandbox limits" not in facts:
        pytest.skip(facts["bubblewrap sandbox"])
    found = cgroups.find(root)
    expected = "no cgroup is writable" if found is None else f"cgroup version {1 if found.old else 2}"
    assert facts["sandbox limits"].startswith(expected)
    assert "stopping the writer" in facts["sandbox disk"]
