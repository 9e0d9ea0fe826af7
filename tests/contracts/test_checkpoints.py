"""What local sandboxes promise when they rest: files come back as they were, nothing else stays, and no crash hurts."""

from __future__ import annotations

import asyncio
import os
import secrets
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import anyio
import anyio.to_thread
import msgspec
import pytest

from corral.config_sections import SandboxSettings
from corral.domain.content import TextBlock
from corral.domain.file import REFERENCE_KIND, Mount
from corral.domain.query import RecordsQuery
from corral.engines.bus import LocalBus
from corral.errors import CorralError, SandboxError, Unavailable
from corral.interfaces.records import Records
from corral.interfaces.sandbox import SandboxCall, Upkeep
from corral.sandboxes.checkpoints import KIND, Checkpoints
from corral.sandboxes.directory import (
    SessionDirectory,
    give_back_lost_uids,
    give_back_uid,
    remove_tree,
    start_ticks,
)
from corral.sandboxes.hosts import MOVED, Hosts
from corral.sandboxes.lifecycle import EXPIRED, FILES_LOST, RESTARTED, RESTORED
from corral.sandboxes.local import LocalSandboxes
from corral.storage.blobs import DiskBlobs
from corral.storage.ephemeral import EphemeralStore
from tests.contracts.conftest import SETTINGS, Machine

SESSION, WORKSPACE = "sesn_rests", "wrkspc_1"
SECONDS_MAX = 60
SOON = msgspec.structs.replace(SETTINGS, pause_seconds=0.0, checkpoint_seconds=0.0)
"""Rests as soon as nobody waits."""

pytestmark = pytest.mark.anyio


class MovableClock:
    """Moves when told."""

    def __init__(self) -> None:
        self.time = datetime(2026, 1, 1, tzinfo=UTC)

    def now(self) -> datetime:
        return self.time


class House(NamedTuple):
    """A machine with everything beside its sandboxes."""

    machine: Machine
    records: Records
    blobs: DiskBlobs
    clock: MovableClock
    sessions: set[str]

    async def owner(self, session_id: str) -> str | None:
        return WORKSPACE if session_id in self.sessions else None

    @asynccontextmanager
    async def serving(self, settings: SandboxSettings = SETTINGS, host: str | None = None) -> AsyncGenerator[Server]:
        """A server over it all; several may follow each other."""
        async with AsyncExitStack() as stack:
            server = self.machine.server(settings)
            stack.push_async_callback(server.close)
            upkeep = Upkeep(self.records, self.blobs, self.clock, self.owner, host)
            await stack.enter_async_context(server.attended(upkeep))
            yield Server(server)

    @property
    def root(self) -> Path:
        return self.machine.root / "sandboxes"

    def files(self) -> Path:
        return self.machine.directory(SESSION).files

    async def kept(self, kind: str) -> int:
        return len(await self.records.page(RecordsQuery(kind=kind, workspace_id=None, limit=100)))

    def blob_files(self) -> list[Path]:
        return [path for path in (self.machine.root / "blobs").rglob("*") if path.is_file() and path.name != "lock"]

    def left(self) -> list[str]:
        """What is on disk of any session."""
        found = [path for name in ("sessions", "uids", "trash") for path in (self.root / name).glob("*")]
        return [str(path) for path in found]


class Server:
    """A server, with commands."""

    def __init__(self, sandboxes: LocalSandboxes) -> None:
        self.sandboxes = sandboxes

    async def run(self, command: str) -> list[str]:
        """The texts of the result."""
        sandbox = await self.sandboxes.open(SESSION)
        call = SandboxCall(call_id=f"sevt_{secrets.token_hex(4)}", operation="bash", arguments={"command": command})
        with anyio.fail_after(SECONDS_MAX):
            reply = await sandbox.call(call)
        assert not reply.is_error, reply
        return [block.text for block in reply.content if isinstance(block, TextBlock)]

    async def rest(self) -> None:
        """Put the sandbox away now."""
        await self.sandboxes.close()
        await self.sandboxes.put_away(SESSION)


async def until(condition: Callable[[], bool]) -> None:
    """Until it holds; what a server does by itself sends no news."""
    with anyio.fail_after(SECONDS_MAX):
        while not await anyio.to_thread.run_sync(condition):  # noqa: ASYNC110  # files have no event to wait for
            await anyio.sleep(0.02)


@pytest.fixture
def house(machine: Machine) -> Iterator[House]:
    blobs = DiskBlobs(machine.root / "blobs")
    bus = LocalBus(frames_max=1, bytes_max=1)
    clock = MovableClock()
    yield House(machine, EphemeralStore(bus=bus, clock=clock).records, blobs, clock, {SESSION})
    blobs.close()


async def test_what_runs_here_is_not_used_when_another_machine_has_gone_on_meanwhile(house: House) -> None:
    async with house.serving(host="here") as server:
        assert await server.run("echo x > x; cat x") == ["x"]
        await Hosts(house.records, house.clock, "there").take(SESSION, WORKSPACE)
        first, *rest = await server.run("ls")
        assert MOVED in (first, *rest) and "x" not in (first, *rest)
        assert await Hosts(house.records, house.clock, "").of(SESSION) == "here"
        assert MOVED not in await server.run("ls")
        await server.sandboxes.destroy(SESSION)


ODD = """
mkdir -p deep/er shut; echo one > deep/er/one; ln deep/er/one hard; ln -s /etc/passwd out; ln -s deep/er/one in
printf two > $'odd\\377\\nname'; chmod 640 deep/er/one; chmod 400 $'odd\\377\\nname'
truncate -s 3G sparse; printf end | dd of=sparse bs=1 seek=3000000000 conv=notrunc 2>/dev/null
mkfifo pipe; echo x > shut/x; chmod 0 shut/x; touch -d '2001-02-03 04:05:06.123456789' deep hard; chmod 0 shut
"""
LOOK = """
chmod 700 shut; find . ! -type p ! -path . -printf '%P %y %s %n %l ' -exec stat -c '%a %.9Y' {} ';' | sort; cat in hard
tail -c 3 sparse; [ hard -ef in ] && echo same; du -k sparse | cut -f1; chmod 0 shut
"""


async def test_a_sandbox_rests_on_time_whatever_the_grain_of_the_clock(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The server's event loop counts milliseconds, and as floats these two are less than 0.6 seconds apart.
    now, paused, rests = 20263.0, 20263.3, 20263.6
    assert rests - now < 0.6
    async with house.serving(msgspec.structs.replace(SETTINGS, pause_seconds=0.3, checkpoint_seconds=0.6)) as server:
        loop, files = asyncio.get_running_loop(), house.files()
        monkeypatch.setattr(loop, "time", lambda: now)
        await server.run("echo x > x")
        for now in (paused, rests):  # noqa: B007  # read by the clock
            for _ in range(3):
                await asyncio.sleep(0)
        await anyio.to_thread.run_sync(wait_until, lambda: not files.exists())
        monkeypatch.undo()
        await server.sandboxes.destroy(SESSION)


def wait_until(condition: Callable[[], bool]) -> None:
    """In a thread, by a clock of its own."""
    deadline = time.monotonic() + SECONDS_MAX
    while not condition():
        assert time.monotonic() < deadline
        threading.Event().wait(0.02)


async def test_files_come_back_as_they_were(house: House) -> None:
    async with house.serving() as server:
        await server.run(f"{ODD} cd ~; {ODD} cd /workspace" if isolated(house) else ODD)
        before = await server.run(LOOK)
    async with house.serving(SOON) as server:
        await server.run("true")
        await until(lambda: house.left() == [])
    async with house.serving() as server:
        told, looked = await server.run(LOOK)
        assert (told, looked) == (RESTORED, before[0])
        assert "same" in looked and "981173106.123456789" in looked
        (found,) = await server.run("cd ~; " + LOOK if isolated(house) else "cat in")
        assert "one" in found, "it is told once"
        await server.sandboxes.destroy(SESSION)


def isolated(house: House) -> bool:
    return house.machine.isolates


async def test_a_checkpoint_takes_the_place_of_the_last_and_nothing_outlives_the_session(house: House) -> None:
    async with house.serving(SOON) as server:
        for number in range(3):
            await server.run(f"echo {number} >> log")
            await until(lambda: not house.files().exists())
            assert (await house.kept(KIND), await house.kept(REFERENCE_KIND), len(house.blob_files())) == (1, 1, 1)
    async with house.serving() as server:
        assert (await server.run("cat log"))[-1] == "0\n1\n2"
        await server.sandboxes.destroy(SESSION)
        assert (await house.kept(KIND), await house.kept(REFERENCE_KIND), house.blob_files()) == (0, 0, [])
        assert house.left() == []


async def test_a_session_that_rests_can_be_deleted(house: House) -> None:
    async with house.serving(SOON) as server:
        await server.run("echo x > x")
        await until(lambda: not house.files().exists())
        await server.sandboxes.destroy(SESSION)
    assert (await house.kept(KIND), house.blob_files(), house.left()) == (0, [], [])


async def test_outputs_of_a_session_that_rests_are_listed_and_read(house: House) -> None:
    outputs = "/mnt/session/outputs" if isolated(house) else house.machine.directory(SESSION).files / "outputs"
    async with house.serving(SOON) as server:
        await server.run(f"echo report > {outputs}/a; mkdir {outputs}/d; echo more > {outputs}/d/b")
        before = await server.sandboxes.outputs(SESSION)
        await until(lambda: not house.files().exists())
        assert before is not None and [output.path for output in before] == [b"a", b"d/b"]
        assert await server.sandboxes.outputs(SESSION) == list(before) or tuple(before)
        assert not house.files().exists(), "listing needs no files"
        assert b"".join([chunk async for chunk in server.sandboxes.read_output(SESSION, b"d/b")]) == b"more\n"
        await server.rest()
        assert house.left() == [] and len(house.blob_files()) == 1, "what was only looked at is not packed again"


async def test_uploads_are_put_in_anew(house: House) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"uploaded"

    uploads = "/mnt/session/uploads" if isolated(house) else house.machine.directory(SESSION).files / "uploads"
    async with house.blobs.put(chunks()) as blob:
        mounts = [Mount("in.txt", blob.sha256)]
    async with house.serving() as server:
        for _ in range(2):
            await server.sandboxes.open(SESSION)
            await server.sandboxes.mount(SESSION, mounts, house.blobs)
            assert (await server.run(f"cat {uploads}/in.txt"))[-1] == "uploaded"
            await server.rest()
            assert not house.files().exists()
        await server.sandboxes.destroy(SESSION)


# ------------------------------------------------------------------------------------------------------ failures


async def test_when_the_files_cannot_be_stored_they_stay_and_it_is_tried_again(house: House) -> None:
    store = house.machine.root / "blobs" / "incoming"
    async with house.serving() as server:
        await server.run("echo kept > file")
    store.rename(store.with_name("away"))
    async with house.serving(SOON) as server:
        with pytest.raises(Unavailable):
            await server.rest()
        assert (house.files() / "workspace" / "file").read_text(encoding="ascii") == "kept\n"
        store.with_name("away").rename(store)
    quick = msgspec.structs.replace(SOON, reap_seconds=0.05)
    async with house.serving(quick):
        await until(lambda: not house.files().exists())
    async with house.serving() as server:
        assert await server.run("cat file") == [RESTORED, "kept"]
        await server.sandboxes.destroy(SESSION)


async def test_too_many_bytes_are_not_packed_and_stay(house: House) -> None:
    small = msgspec.structs.replace(SETTINGS, checkpoint_bytes_max=1_000, checkpoint_seconds=0.0, pause_seconds=0.0)
    async with house.serving(small) as server:
        await server.run("head -c 2000 /dev/urandom > big")
        with pytest.raises(CorralError, match="too many bytes"):
            await server.rest()
        assert await server.run("stat -c %s big") == [RESTARTED, "2000"]
    assert house.blob_files() == []


async def test_a_checkpoint_that_was_tampered_with_is_refused(house: House) -> None:
    async with house.serving(SOON) as server:
        await server.run("echo x > x")
        await until(lambda: not house.files().exists())
        (blob,) = house.blob_files()
        blob.write_bytes(blob.read_bytes()[:-1] + b"\0")
        with pytest.raises(SandboxError, match="cannot be"):
            await server.run("true")
        assert not house.files().exists()


async def test_bytes_that_are_gone_are_admitted(house: House) -> None:
    async with house.serving(SOON) as server:
        await server.run("echo x > x")
        await until(lambda: not house.files().exists())
        house.blob_files()[0].unlink()
    async with house.serving() as server:
        assert await server.run("ls | wc -l") == [FILES_LOST, "0"]
        await server.sandboxes.destroy(SESSION)


async def test_a_call_that_may_have_run_before_the_checkpoint_is_not_run_again(house: House) -> None:
    async with house.serving(SOON) as server:
        await server.run("echo x > x")
        await until(lambda: not house.files().exists())
    async with house.serving() as server:
        sandbox = await server.sandboxes.open(SESSION)
        resumed = SandboxCall(call_id="sevt_r", operation="bash", arguments={"command": "rm x"}, resumed=True)
        with pytest.raises(SandboxError, match="unknown whether"):
            await sandbox.call(resumed)
        assert await server.run("cat x") == ["x"]
        await server.sandboxes.destroy(SESSION)


async def test_an_open_that_comes_in_the_middle_goes_first(house: House) -> None:
    async with house.serving(SOON) as server:
        await server.run("head -c 100000000 /dev/zero | tr '\\0' x > big; head -c 9000000 /dev/urandom > random")
        for _ in range(3):
            assert (await server.run("stat -c %s big random"))[-1] == "100000000\n9000000"
        await server.sandboxes.destroy(SESSION)
    assert house.left() == [] and house.blob_files() == []


# -------------------------------------------------------------------------------------------- crashes between steps


async def died(house: House, *, until_call: str) -> None:
    """Put the session away, by a server that dies right before it does this."""

    class Died(BaseException):
        pass

    def die(*_: object, **__: object) -> Awaitable[None]:
        raise Died

    server = house.machine.server()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"corral.sandboxes.{until_call}", die)
        with pytest.raises(Died):
            async with server.attended(Upkeep(house.records, house.blobs, house.clock, house.owner)):
                await server.put_away(SESSION)
    await server.close()


@pytest.mark.parametrize(
    "step",
    [
        "checkpoints.Checkpoints.save",
        "checkpoints.Checkpoints._put",
        "checkpoints.Checkpoints._give_up",
        "checkpoints.Checkpoints._drop_reference",
        "directory.SessionDirectory.remove",
        "directory.give_back_uid",
        "directory.remove_tree",
    ],
)
async def test_a_server_that_dies_while_it_puts_away_loses_nothing(house: House, step: str) -> None:
    async with house.serving() as server:
        await server.run("echo one > file")
        await server.rest()
        await server.run("echo two > file")
    await died(house, until_call=step)
    async with house.serving() as server:
        assert (await server.run("cat file"))[-1] == "two"
        await until(lambda: not list((house.root / "trash").glob("*")))
        await server.rest()
        assert (await house.kept(REFERENCE_KIND), len(house.blob_files())) == (1, 1)
        await server.sandboxes.destroy(SESSION)
        assert (await house.kept(REFERENCE_KIND), house.blob_files(), house.left()) == (0, [], [])


@pytest.mark.parametrize("step", ["save", "_put", "_give_up"])
async def test_nothing_is_left_of_a_session_that_is_deleted_while_it_is_put_away(house: House, step: str) -> None:
    async with house.serving() as server, anyio.create_task_group() as tasks:
        await server.run("echo one > file")
        await server.rest()
        await server.run("echo two > file")
        go_on: Callable[..., Awaitable[object]] = getattr(Checkpoints, step)

        async def deleted_meanwhile(*args: object, **named: object) -> object:
            patch.undo()
            house.sessions.clear()
            tasks.start_soon(server.sandboxes.destroy, SESSION)
            await anyio.wait_all_tasks_blocked()
            return await go_on(*args, **named)

        patch = pytest.MonkeyPatch()
        patch.setattr(Checkpoints, step, deleted_meanwhile)
        await server.rest()
    assert (await house.kept(KIND), await house.kept(REFERENCE_KIND), house.blob_files(), house.left()) == (
        0,
        0,
        [],
        [],
    )


# ---------------------------------------------------------------------------------------------- age, and the nobody's


async def test_a_sandbox_that_is_too_old_is_removed_and_the_agent_is_told(house: House) -> None:
    async with house.serving() as server:
        await server.run("echo old > file")
        house.clock.time += timedelta(days=31)
        assert await server.run("cat file") == ["old"], "it is not taken from under an agent"
        await server.rest()
        assert (house.blob_files(), house.left()) == ([], [])
        assert await server.run("ls | wc -l") == [EXPIRED, "0"]
        await server.run("echo new > file")
        await server.rest()
        assert await server.run("cat file") == [RESTORED, "new"]
        await server.sandboxes.destroy(SESSION)


async def test_checkpoints_that_are_too_old_are_removed_by_themselves(house: House) -> None:
    async with house.serving(SOON) as server:
        await server.run("echo old > file")
        await until(lambda: not house.files().exists())
    house.clock.time += timedelta(days=31)
    async with house.serving(msgspec.structs.replace(SETTINGS, reap_seconds=0.05)) as server:
        await until(lambda: house.blob_files() == [])
        assert await server.run("ls | wc -l") == [EXPIRED, "0"]
        await server.sandboxes.destroy(SESSION)


async def test_what_belongs_to_no_session_is_removed_when_a_server_starts(house: House) -> None:
    async with house.serving(SOON) as server:
        await server.run("echo x > x")
        await until(lambda: not house.files().exists())
    async with house.serving() as server:
        await server.run("sleep 1000 & echo y > y")
        record = house.machine.directory(SESSION).record()
        assert record is not None
    # Deleted, and the server killed before it let go of the sandbox.
    house.sessions.clear()
    (house.root / "uids").mkdir(exist_ok=True)
    claim = house.root / "uids" / "299999"
    claim.touch()
    os.utime(claim, (0, 0))
    async with house.serving():
        await until(lambda: house.left() == [] and house.blob_files() == [])
        assert start_ticks(record.pid) is None
    assert (await house.kept(KIND), await house.kept(REFERENCE_KIND)) == (0, 0)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives users away")
async def test_a_user_is_free_when_its_directory_is_gone_but_not_while_that_is_being_made(tmp_path: Path) -> None:
    gone, begun = SessionDirectory(tmp_path, "sesn_gone"), SessionDirectory(tmp_path, "sesn_begun")
    gone.make(uid_first=210_000, uid_count=2)
    remove_tree(gone.path)  # by the `rm` of a server that was killed meanwhile
    begun.server.mkdir(parents=True)
    claimed = begun.claim_uid(210_000, 2)
    give_back_lost_uids(tmp_path, used=())
    assert os.listdir(tmp_path / "uids") == [str(claimed)]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives users away")
async def test_a_user_is_not_given_back_by_whom_it_belonged_to_before(tmp_path: Path) -> None:
    before, now = SessionDirectory(tmp_path, "sesn_before"), SessionDirectory(tmp_path, "sesn_now")
    before.make(uid_first=210_000, uid_count=1)
    give_back_uid(tmp_path, before.server, 210_000)
    now.make(uid_first=210_000, uid_count=1)
    before.remove()  # again, after a crash
    assert os.listdir(tmp_path / "uids") == ["210000"]
    now.remove()
    assert os.listdir(tmp_path / "uids") == []


async def test_running_sandboxes_are_left_alone_by_the_reaper(house: House) -> None:
    async with house.serving() as server:
        await server.run("export COLOUR=green; echo x > x")
        async with house.serving(msgspec.structs.replace(SOON, reap_seconds=0.01)):
            for _ in range(5):
                assert await server.run("echo $COLOUR") == ["green"]
        await server.sandboxes.destroy(SESSION)


# ---------------------------------------------------------------------------------------------------------- pausing


async def test_background_processes_stop_while_nobody_uses_the_sandbox_and_go_on_afterwards(house: House) -> None:
    counter = "(i=0; while :; do i=$((i+1)); echo $i > count; done) >/dev/null 2>&1 & echo $!"
    pausing = msgspec.structs.replace(SETTINGS, pause_seconds=0.3)
    async with house.serving(pausing) as server:
        await server.run(counter)
        await until(lambda: states(house) == {"T"})
        count = house.files() / "workspace" / "count"
        first = count.read_text(encoding="ascii")
        assert states(house) == {"T"} and count.read_text(encoding="ascii") == first
        look = '[ "$(cat count)" != "$before" ]'
        wait = f"before=$(cat count); for i in $(seq 10000); do {look} && echo went on && break; done"
        assert await server.run(wait) == ["went on"]
        await server.sandboxes.destroy(SESSION)


def states(house: House) -> set[str]:
    """Of all processes of the sandbox but its daemon."""
    record = house.machine.directory(SESSION).record()
    assert record is not None
    parents: dict[int, tuple[int, str]] = {}
    for place in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = place.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[:2]
        except OSError:
            continue
        parents[int(place.parent.name)] = (int(parent), state)
    found, below = {record.pid}, set[str]()
    while more := {pid for pid, (parent, _) in parents.items() if parent in found} - found:
        found |= more
        below |= {parents[pid][1] for pid in more}
    return below
