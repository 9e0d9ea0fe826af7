"""What every sandbox backend promises about files: mounted ones are read only, outputs are what they seem."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import anyio
import pytest

from corral.domain.content import TextBlock
from corral.domain.file import Mount
from corral.errors import NotFound
from corral.interfaces.sandbox import Sandbox, SandboxCall
from corral.sandboxes.local import LocalSandboxes
from corral.storage.blobs import DiskBlobs
from tests.contracts.conftest import Machine

SESSION = "sesn_files"
SECONDS_MAX = 60
BIG = bytes(range(256)) * 20_000

pytestmark = pytest.mark.anyio


@pytest.fixture
def blobs(tmp_path: Path) -> Iterator[DiskBlobs]:
    opened = DiskBlobs(tmp_path / "blobs")
    yield opened
    opened.close()


async def stored(blobs: DiskBlobs, data: bytes) -> str:
    async def chunks() -> AsyncIterator[bytes]:
        yield data

    async with blobs.put(chunks()) as blob:
        return blob.sha256


class Shell:
    """Runs commands with fresh ids."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._count = 0

    async def __call__(self, command: str) -> str:
        self._count += 1
        call = SandboxCall(call_id=f"sevt_f{self._count}", operation="bash", arguments={"command": command})
        with anyio.fail_after(SECONDS_MAX):
            reply = await self._sandbox.call(call)
        (block,) = reply.content
        assert isinstance(block, TextBlock)
        return block.text


def uploads(machine: Machine) -> Path:
    """Where commands find them: the process backend has no /mnt/session of its own."""
    inside = Path("/mnt/session/uploads")
    return inside if machine.isolates else machine.directory(SESSION).files / "uploads"


def outputs(machine: Machine) -> Path:
    return uploads(machine).with_name("outputs")


async def test_mounted_files_are_read_inside(machine: Machine, server: LocalSandboxes, blobs: DiskBlobs) -> None:
    shell = Shell(await server.open(SESSION))
    mounts = [Mount("a.csv", await stored(blobs, b"a,b")), Mount("deep/er/big", await stored(blobs, BIG))]
    await server.mount(SESSION, mounts, blobs)
    assert await shell(f"cd {uploads(machine)} && cat a.csv && stat -c ' %s' deep/er/big") == f"a,b {len(BIG)}"


async def test_mounted_files_cannot_be_changed_inside(
    machine: Machine, server: LocalSandboxes, blobs: DiskBlobs
) -> None:
    if not machine.isolates:
        pytest.skip("the process backend isolates nothing")
    shell = Shell(await server.open(SESSION))
    await server.mount(SESSION, [Mount("d/a", await stored(blobs, b"a"))], blobs)
    for command in ("echo x > d/a", "rm -f d/a", "chmod 777 d/a", "touch new", "mv d e", "ln d/a /workspace/a"):
        assert await shell(f"cd {uploads(machine)} && {{ {command}; }} >/dev/null 2>&1; echo $?") != "0", command
    assert await shell(f"cat {uploads(machine)}/d/a") == "a"


async def test_mounts_follow_what_is_wanted(machine: Machine, server: LocalSandboxes, blobs: DiskBlobs) -> None:
    shell = Shell(await server.open(SESSION))
    one, two = await stored(blobs, b"one"), await stored(blobs, b"two")
    look = f"cd {uploads(machine)} && find . -type f | sort | xargs -r grep -H ."
    await server.mount(SESSION, [Mount("x/a", one), Mount("b", one)], blobs)
    await server.mount(SESSION, [Mount("x/a", two), Mount("c", one)], blobs)
    assert await shell(look) == "./c:one\n./x/a:two"
    await server.mount(SESSION, [Mount("x", one)], blobs)
    assert await shell(look) == "./x:one"
    await server.mount(SESSION, [], blobs)
    assert await shell(f"ls -A {uploads(machine)} | wc -l") == "0"


async def test_another_server_knows_what_is_mounted(machine: Machine, server: LocalSandboxes, blobs: DiskBlobs) -> None:
    shell = Shell(await server.open(SESSION))
    mounts = [Mount("a", await stored(blobs, b"one")), Mount("b", await stored(blobs, b"two"))]
    await server.mount(SESSION, mounts, blobs)
    (machine.directory(SESSION).files / "uploads" / "b").unlink()  # as after a crash between note and file
    later = machine.server()
    await later.mount(SESSION, mounts, blobs)
    assert await shell(f"cd {uploads(machine)} && cat a b") == "onetwo"
    await later.mount(SESSION, mounts[1:], blobs)
    assert await shell(f"ls {uploads(machine)}") == "b"
    await later.close()


async def test_a_file_without_bytes_is_left_out(machine: Machine, server: LocalSandboxes, blobs: DiskBlobs) -> None:
    shell = Shell(await server.open(SESSION))
    await server.mount(SESSION, [Mount("gone", "0" * 64), Mount("here", await stored(blobs, b"x"))], blobs)
    assert await shell(f"ls {uploads(machine)}") == "here"


async def test_outputs_are_found_and_read(machine: Machine, server: LocalSandboxes) -> None:
    assert await server.outputs(SESSION) is None
    shell = Shell(await server.open(SESSION))
    assert await server.outputs(SESSION) == []
    assert await shell(f"cd {outputs(machine)} && mkdir d && echo hi > d/a && printf %5000000s > big; echo $?") == "0"
    found = {output.path: output for output in await server.outputs(SESSION) or ()}
    assert {path: output.size_bytes for path, output in found.items()} == {b"d/a": 3, b"big": 5_000_000}
    assert b"".join([chunk async for chunk in server.read_output(SESSION, b"d/a")]) == b"hi\n"
    assert len(b"".join([chunk async for chunk in server.read_output(SESSION, b"big")])) == 5_000_000
    assert [output.stamp for output in await server.outputs(SESSION) or ()] == [
        found[b"big"].stamp,
        found[b"d/a"].stamp,
    ]
    await shell(f"echo ho > {outputs(machine)}/d/a")
    changed = {output.path: output for output in await server.outputs(SESSION) or ()}
    assert changed[b"d/a"].stamp != found[b"d/a"].stamp


async def test_links_and_other_things_among_the_outputs_are_no_outputs(
    machine: Machine, server: LocalSandboxes
) -> None:
    shell = Shell(await server.open(SESSION))
    made = "ln -s /etc/passwd link; ln -s / root; mkfifo pipe; ln -s d/../link twice; mkdir d; echo x > d/real"
    assert await shell(f"cd {outputs(machine)} && {{ {made}; }}; echo $?") == "0"
    assert [output.path for output in await server.outputs(SESSION) or ()] == [b"d/real"]
    for path in (
        b"link",
        b"root/etc/passwd",
        b"pipe",
        b"twice",
        b"../workspace",
        b"d/../d/real",
        b"/etc/passwd",
        b"",
        b"d",
    ):
        with pytest.raises(NotFound):
            await anext(server.read_output(SESSION, path))
