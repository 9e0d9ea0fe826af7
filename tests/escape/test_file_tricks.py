"""Tricks with names: links, `..`, magic links, pipes, devices and names that are not text.

Tried against the file tools, which run inside, and against what the server itself does with a sandbox's files from
outside: listing and reading outputs, mounting uploads, counting the disk, removing a session's directory. A secret
file on the host, which every user may read, must never be seen, and must be as it was afterwards.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from corral.domain.file import Mount
from corral.errors import NotFound, SandboxLost
from corral.interfaces.sandbox import SandboxCall, SandboxOperation
from corral.sandboxes.disk import Account, Space
from corral.storage.blobs import DiskBlobs
from tests.escape.conftest import Attack
from tests.escape.exhaustion_fixtures import HOSTILE, LIMITS, NEIGHBOUR, Arena, arena, text

__all__ = ["arena"]

pytestmark = pytest.mark.anyio

SECRET = "what only the host knows"
RACE_ROUNDS = 150
DEPTH = 4_096
MAGIC = (
    "{path}",
    "/workspace/../../../../..{path}",
    "link",
    "relative",
    "/proc/self/root{path}",
    "/proc/1/root{path}",
    "/proc/1/cwd/../../..{path}",
    "/proc/self/cwd/../../../..{path}",
    "/proc/thread-self/root{path}",
    "to-root{path}",
    "to-daemon{path}",
    "/dev/fd/../../../..{path}",
)
TOGGLE = """
import os, sys
secret = sys.argv[1]
os.chdir('/mnt/session/outputs')
os.makedirs('real', exist_ok=True)
open('real/file', 'w').write('innocent')
os.symlink(os.path.dirname(secret), 'false')
os.link('real/file', 'here') if not os.path.exists('here') else None
open('real/' + os.path.basename(secret), 'w').write('innocent')
print('ready', flush=True)
while 1:
    os.rename('real', 'turn'); os.rename('false', 'real')
    os.rename('real', 'false'); os.rename('turn', 'real')
"""


@pytest.fixture
def secret() -> Iterator[Path]:
    """Below a directory that everybody may enter, so that only the sandbox itself stands in the way."""
    folder = Path(tempfile.mkdtemp(prefix="corral-secret-"))
    folder.chmod(0o755)
    path = folder / "secret.txt"
    path.write_text(SECRET, encoding="utf-8")
    path.chmod(0o666)
    yield path
    assert path.read_text(encoding="utf-8") == SECRET, "an attack has written to the host"
    assert sorted(folder.iterdir()) == [path]
    path.unlink()
    folder.rmdir()


async def all_outputs(arena: Arena) -> dict[bytes, bytes]:
    """What a client could list and download."""
    found: dict[bytes, bytes] = {}
    for output in await arena.server.outputs(HOSTILE) or ():
        try:
            async with aclosing(arena.server.read_output(HOSTILE, output.path)) as chunks:
                found[output.path] = b"".join([chunk async for chunk in chunks])
        except NotFound:
            continue
    return found


async def test_no_name_leads_the_file_tools_out(arena: Arena, secret: Path, attack: Attack) -> None:
    links = {
        "link": secret,
        "relative": f"../../../..{secret}",
        "to-root": "/proc/self/root",
        "to-daemon": "/proc/1/root",
    }
    await arena.bash("; ".join(f"ln -s {target} {name}" for name, target in links.items()))
    uses: dict[SandboxOperation, dict[str, object]] = {
        "read": {},
        "write": {"content": "overwritten"},
        "edit": {"old_string": "only", "new_string": "overwritten"},
    }
    for pattern in MAGIC:
        path = pattern.format(path=secret)
        with attack(f"search {pattern}"):
            reply = await arena.tool("grep", path=os.path.dirname(path) or ".", pattern="only the host")
            assert SECRET not in text(reply)
            reply = await arena.tool("glob", path=os.path.dirname(path) or ".", pattern="secret.*")
            assert reply.is_error or "secret.txt" not in text(reply)
    for pattern in MAGIC:
        for operation, arguments in uses.items():
            with attack(f"{operation} {pattern}"):
                reply = await arena.tool(operation, file_path=pattern.format(path=secret), **arguments)
                assert SECRET not in text(reply)
    await arena.unharmed()


async def test_what_is_no_plain_file_does_not_hang_the_file_tools(arena: Arena, attack: Attack) -> None:
    make = "mkfifo pipe; ln -s self self; ln -s /dev/zero zero; ln -s /dev/stdin in; ln -s /dev/tty tty; "
    await arena.bash(make + "python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"socket\")'")
    for name in ("pipe", "socket", "self", "zero", "in", "tty", "/dev/random", "/proc/self/mem", "/proc/1/mem"):
        with attack(f"file tools on {name}"), anyio.fail_after(60):
            assert (await arena.tool("read", file_path=name)).is_error
            assert (await arena.tool("write", file_path=name, content="x")).is_error
            assert (await arena.tool("edit", file_path=name, old_string="a", new_string="b")).is_error
            await arena.tool("grep", path=name, pattern="x")
    with attack("glob round in circles"), anyio.fail_after(60):
        await arena.bash("mkdir -p a/b && ln -s ../.. a/b/up && ln -s / slash")
        await arena.tool("glob", pattern="**/*.nothing")
    await arena.unharmed()


async def test_names_that_are_not_text_are_only_names(arena: Arena, attack: Attack) -> None:
    names = [
        b"new\nline",
        b"\x1b[31mred\x07",
        b"\xff\xfe",
        b"x" * 255,
        b"-rf",
        b"$(touch hit)",
        b"a\\b'\"c",
        b"\xc2\x85",
    ]
    with attack("names that are not text"):
        program = (
            f"import os\nfor name in {names!r}:\n open(b'/mnt/session/outputs/' + name, 'wb').write(b'plain text')"
        )
        await arena.tool("write", file_path="make.py", content=program)
        made = await arena.bash("python3 make.py; ln -s /mnt/session/outputs found")
        assert not made.is_error, made
        for operation, arguments in {"glob": {"pattern": "*", "path": "found"}, "grep": {"pattern": "plain"}}.items():
            reply = await arena.tool("grep" if operation == "grep" else "glob", **{"path": "found/", **arguments})
            text(reply).encode("utf-8")
        assert not (arena.directory().files / "workspace" / "hit").exists()
        assert set(await all_outputs(arena)) == set(names)
    with attack(f"{DEPTH} directories deep"):
        deep = f"import os\nfor _ in range({DEPTH}):\n os.mkdir('d'); os.chdir('d')\nopen('x', 'w')"
        # Over the limit on files, on purpose: that is no reason for the counting to fail.
        await arena.tool("write", file_path="deep.py", content=deep)
        await arena.bash("cd /mnt/session/outputs && python3 /workspace/deep.py", seconds=60)
        await all_outputs(arena)
        account = Account(arena.directory().files, Space(1 << 40, 1 << 40))
        assert (await anyio.to_thread.run_sync(account.count, None)).files > LIMITS.disk_files_max
        await arena.tool("glob", path="/mnt/session/outputs", pattern="**/x")
        await arena.server.destroy(HOSTILE)
        assert not arena.directory().path.exists()
    await arena.unharmed()


async def test_outputs_are_plain_files_of_the_sandbox_and_nothing_else(
    arena: Arena, secret: Path, attack: Attack
) -> None:
    with attack("outputs that are links, pipes and sockets"):
        lines = (
            "cd /mnt/session/outputs; mkdir folder; echo mine > folder/mine; chmod 000 folder/mine; echo x > x",
            f"ln -s {secret} link; ln -s {secret.parent} folder-link; mkfifo pipe; ln -s pipe to-pipe",
            "ln folder/mine hard",
            f"ln -s /proc/self/fd/0 magic; ln {secret} stolen; ln /etc/passwd passwd; ln /proc/self/environ environ",
            "mknod device c 1 3; chmod u+s x",
            "python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"socket\")'",
        )
        await arena.bash("; ".join(lines))
        with anyio.fail_after(60):
            found = await all_outputs(arena)
        assert set(found) <= {b"folder/mine", b"hard", b"x"} and SECRET.encode() not in b"".join(found.values())
        for path in (b"../workspace/x", b"../../server/instance.json", b"/etc/passwd", b"folder/../../home", b"", b"."):
            with pytest.raises(NotFound):
                async with aclosing(arena.server.read_output(HOSTILE, path)) as chunks:
                    assert not [chunk async for chunk in chunks]
    await arena.unharmed()


async def test_races_with_links_lead_no_reader_astray(arena: Arena, secret: Path, attack: Attack) -> None:
    await arena.tool("write", file_path="toggle.py", content=TOGGLE)
    await arena.bash(f"setsid python3 toggle.py {secret} >ready 2>&1 & while ! grep -qs ready ready; do :; done")
    with attack("a race with the listing and reading of outputs"):
        for _ in range(RACE_ROUNDS):
            for path, data in (await all_outputs(arena)).items():
                assert SECRET.encode() not in data, path
    with attack("a race with the counting of the disk"):
        account = Account(arena.directory().files, Space(1 << 40, 1 << 40))
        for _ in range(10):
            used = await anyio.to_thread.run_sync(account.count, None)
            assert used.files < LIMITS.disk_files_max
    with attack("a race with the removal of everything"):
        await arena.server.destroy(HOSTILE)
        assert not arena.directory().path.exists()
    await arena.unharmed()


async def test_uploads_cannot_be_bent_from_inside(arena: Arena, secret: Path, attack: Attack, tmp_path: Path) -> None:
    blobs = DiskBlobs(tmp_path / "blobs")

    async def chunks() -> AsyncIterator[bytes]:
        yield b"uploaded"

    async with blobs.put(chunks()) as blob:
        sha256 = blob.sha256
    with attack("links among the uploads"):
        uploads = "/mnt/session/uploads"
        bend = f"ln -s {secret.parent} uploads/a; mv uploads away; rm -rf uploads; mkdir uploads/b; touch uploads/c"
        await arena.bash(f"cd /mnt/session; {bend}")
        mount = Mount(path=f"a/{secret.name}", sha256=sha256)
        await arena.server.mount(HOSTILE, [mount], blobs)
        assert text(await arena.bash(f"cat {uploads}/a/{secret.name}")) == "uploaded"
        await arena.bash(
            f"echo bent >> {uploads}/a/{secret.name}; chmod u+w {uploads}/a/{secret.name}; rm -f {uploads}/a/*"
        )
        assert text(await arena.bash(f"cat {uploads}/a/{secret.name}")) == "uploaded"
        await arena.server.mount(HOSTILE, [], blobs)
        assert text(await arena.bash(f"ls {uploads}/a 2>/dev/null; echo")) == "(no output)"
    blobs.close()
    await arena.unharmed()


async def test_a_neighbour_is_out_of_reach(arena: Arena, secret: Path, attack: Attack) -> None:
    neighbour = arena.directory(NEIGHBOUR)
    await arena.tool("bash", NEIGHBOUR, command="echo private > private; chmod 644 private")
    places = (neighbour.socket, arena.directory().socket, neighbour.files / "workspace" / "private", neighbour.path)
    for place in places:
        with attack(f"reach {place.name} of a session"):
            connect = f'import socket, sys; socket.socket(socket.AF_UNIX).connect("{place}")'
            assert (await arena.bash(f"python3 -c '{connect}'")).is_error
            assert (await arena.bash(f"ls -d {place}")).is_error
    with attack("bind over the own socket"):
        # A place of that name can be made inside, and is another one.
        bind = f'import socket; socket.socket(socket.AF_UNIX).bind("{arena.directory().socket}")'
        await arena.bash(f"mkdir -p {arena.directory().server}; python3 -c '{bind}'")
    await arena.unharmed()


async def test_a_sandbox_that_dies_says_so_and_the_next_has_its_files(arena: Arena, attack: Attack) -> None:
    with attack("the end of the daemon"):
        await arena.bash("echo kept > kept")
        sandbox = await arena.sandbox()
        await anyio.to_thread.run_sync(arena.directory().kill_instance)
        with pytest.raises(SandboxLost):
            await sandbox.call(SandboxCall(call_id="sevt_lost", operation="bash", arguments={"command": "true"}))
        assert text(await arena.bash("cat kept")) == "kept"
    await arena.unharmed()
