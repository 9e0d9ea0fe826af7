"""Attacks that exhaust: each hits a limit of its own sandbox and nothing else.

Run against bubblewrap only, with limits of a few megabytes; never without isolation. After each the server, a second
sandbox and the first one itself must be of use.
"""

from __future__ import annotations

import os

import anyio
import pytest

from tests.escape.conftest import Attack
from tests.escape.exhaustion_fixtures import LIMITS, MEBIBYTE, NEIGHBOUR, Arena, arena, text

__all__ = ["arena"]

pytestmark = pytest.mark.anyio

OVERSHOOT_BYTES_MAX = 1024 * MEBIBYTE
"""The disk is watched, so something fast gets somewhat over before it is stopped."""
FILL = "for i in $(seq 2000); do head -c 1M /dev/zero > {place}/$$-$i || exit; done"


def used_bytes(arena: Arena) -> int:
    files = arena.directory().files
    return sum(
        os.lstat(os.path.join(place, name)).st_blocks * 512 for place, _, names in os.walk(files) for name in names
    )


def still_there(pids: list[int]) -> list[int]:
    return [pid for pid in pids if os.path.exists(f"/proc/{pid}")]


async def test_a_fork_bomb_ends_with_a_restart_of_bash(arena: Arena, attack: Attack) -> None:
    with attack("fork bomb"):
        await arena.bash(":(){ :|:& };:", seconds=2)
        assert len(arena.processes()) <= LIMITS.processes_max + 4
        await arena.unharmed()
    with attack("fork bomb that leaves its session"):
        program = "import os\nwhile 1:\n try:\n  if os.fork() == 0: os.setsid()\n except OSError: pass"
        await arena.python(program, seconds=2)
        assert len(arena.processes()) <= LIMITS.processes_max + 4
        await arena.unharmed()


async def test_memory_runs_out_for_the_command_and_nobody_else(arena: Arena, attack: Attack) -> None:
    with attack("memory hog"):
        reply = await arena.python("x = bytearray(1 << 30)")
        assert reply.is_error and "MemoryError" in text(reply), reply
        await arena.unharmed()
    with attack("many memory hogs"):
        hog = "python3 -c 'x = bytearray(40 << 20); import time; time.sleep(2)'"
        reply = await arena.bash(f"for i in 1 2 3 4 5 6; do {hog} & done; wait", seconds=20)
        if arena.limited_by_cgroups():
            assert reply.is_error and "the sandbox's memory limit of 96 MiB was reached" in text(reply), reply
        await arena.unharmed()


async def test_shared_memory_is_small(arena: Arena, attack: Attack) -> None:
    with attack("/dev/shm fill"):
        reply = await arena.bash("head -c 64M /dev/zero > /dev/shm/x")
        assert reply.is_error and "No space left" in text(reply), reply
        await arena.bash("rm /dev/shm/x")
        await arena.unharmed()


@pytest.mark.parametrize("place", ["/workspace", "/tmp", "/home/agent", "/mnt/session/outputs"])
async def test_a_writer_over_the_disk_limit_is_stopped(arena: Arena, attack: Attack, place: str) -> None:
    with attack(f"disk fill in {place}"):
        reply = await arena.bash(FILL.format(place=place), seconds=60)
        assert reply.is_error and "killed: the sandbox's disk limit of 20 MiB is reached" in text(reply), reply
        assert used_bytes(arena) < LIMITS.disk_bytes_max + OVERSHOOT_BYTES_MAX
        refused = await arena.tool("write", file_path="more", content="x")
        assert refused.is_error and "remove files with bash first" in text(refused), refused
        more = await arena.bash(FILL.format(place="/tmp"), seconds=60)
        assert more.is_error and "disk limit" in text(more), more
        removed = await arena.bash(f"rm -f {place}/*-* /tmp/*-*")
        assert not removed.is_error, removed
        written = await arena.tool("write", file_path="more", content="x")
        assert not written.is_error, written
        await arena.unharmed()


async def test_disk_is_counted_however_it_is_used(arena: Arena, attack: Attack) -> None:
    with attack("one large file"):
        reply = await arena.bash("head -c 1G /dev/zero > large")
        assert reply.is_error and used_bytes(arena) <= LIMITS.disk_bytes_max + MEBIBYTE, reply
        await arena.bash("rm -f large")
    with attack("a file with a hole of a terabyte"):
        assert (await arena.bash("truncate -s 1T hole")).is_error
    with attack("files that are deleted and kept open"):
        keep = "import os\nkept = []\nwhile 1:\n f = open('x', 'wb'); f.write(bytes(1 << 20)); os.unlink('x')"
        reply = await arena.python(f"{keep}\n kept.append(f)", seconds=30)
        assert reply.is_error and "disk limit" in text(reply), reply
    # What was deleted and kept open is free only when its keeper is gone, which takes a moment after a kill.
    await arena.unharmed()
    with attack("files without number"):
        reply = await arena.python("for i in range(100000): open(f'n{i}', 'x').close()", seconds=60)
        assert reply.is_error and "the sandbox's limit of 500 files is reached" in text(reply), reply
        assert not (await arena.bash("find . -name 'n*' -delete", seconds=60)).is_error
    await arena.unharmed()


async def test_a_background_writer_is_stopped_too(arena: Arena, attack: Attack) -> None:
    with attack("disk fill after the call"):
        await arena.bash(f"setsid bash -c '{FILL.format(place='/workspace')}; sleep 1000' >/dev/null 2>&1 &")
        while len(arena.processes()) > 1:
            # Waits for the server's own look, which comes within a second, at the pace of the sandbox's answers.
            await arena.tool("glob", pattern="nothing")
        assert used_bytes(arena) < LIMITS.disk_bytes_max + OVERSHOOT_BYTES_MAX
        await arena.bash("rm -f ./*-*")
        await arena.unharmed()


async def test_floods_of_output_are_cut(arena: Arena, attack: Attack) -> None:
    floods = {
        "output flood": "yes | head -c 5G",
        "a line of a gigabyte": "head -c 1G /dev/zero | tr '\\0' x",
        "binary output": "head -c 1M /dev/urandom",
        "bytes that are not UTF-8": "yes $'\\xff\\xfe\\x80' | head -c 1M",
        "terminal escapes": "yes $'\\e[2J\\e]0;title\\a' | head -c 1M",
        "errors without end": "yes >&2 | head -c 1G",
    }
    for name, command in floods.items():
        with attack(name):
            reply = await arena.bash(command, seconds=3)
            # What cannot be decoded is replaced, which makes it longer.
            assert len(text(reply).encode()) < 4 * LIMITS.output_bytes_max, (name, len(text(reply)))
            assert name != "terminal escapes" or "\x1b[" not in text(reply)
    await arena.unharmed()


async def test_processes_cannot_outlive_their_sandbox(arena: Arena, attack: Attack) -> None:
    with attack("daemonised processes"):
        daemonise = "import os, time\nif os.fork() == 0:\n os.setsid()\n if os.fork() == 0: time.sleep(1000)"
        await arena.python(daemonise)
        await arena.bash("nohup setsid sleep 1000 >/dev/null 2>&1 & disown")
        outlived = arena.processes()
        assert len(outlived) > 3
        await arena.server.destroy("sesn_hostile")
        assert not still_there(outlived)
    with attack("zombies"):
        zombies = "import os, time\nfor _ in range(20):\n if os.fork() == 0: os._exit(0)\ntime.sleep(1000)"
        await arena.python(zombies, seconds=2)
        await arena.unharmed()
    with attack("processes that outlive an interrupt"):
        with anyio.move_on_after(2):
            await arena.bash("trap '' TERM INT HUP; setsid sleep 1000 & sleep 1000", seconds=60)
        await arena.unharmed()


async def test_tables_of_the_kernel_are_not_used_up(arena: Arena, attack: Attack) -> None:
    until_refused = "\nkept = []\ntry:\n while 1: kept.append(take())\nexcept OSError: print(len(kept))"
    with attack("descriptors"):
        program = "import os\nfor _ in range(4): os.fork()\ntake = lambda: os.open('/dev/null', 0)" + until_refused
        counts = [int(line) for line in text(await arena.python(program)).split()]
        assert counts and max(counts) < LIMITS.open_files_max
    with attack("terminals"):
        await arena.python("import os\ntake = os.openpty" + until_refused)
        os.close(sum(os.openpty()[:1]))
    if os.geteuid() == 0:
        # An ordinary user's sandboxes are all that user to the kernel, and share the number of watches.
        with attack("inotify"):
            take = "import ctypes\nlibc = ctypes.CDLL(None)\ndef take():\n n = libc.inotify_init()\n"
            take += " if n < 0: raise OSError\n return n"
            await arena.bash(f'python3 -c "{take}{until_refused}\nimport time; time.sleep(1000)" >/dev/null 2>&1 &')
            check = "import ctypes; print(ctypes.CDLL(None).inotify_init() >= 0)"
            assert text(await arena.tool("bash", NEIGHBOUR, command=f"python3 -c '{check}'")) == "True"
    await arena.unharmed()


async def test_the_daemon_cannot_be_stopped_from_inside(arena: Arena, attack: Attack) -> None:
    for name in ("KILL", "STOP", "TERM", "INT", "SEGV", "ABRT", "QUIT", "HUP", "USR1"):
        with attack(f"SIG{name} to the daemon"):
            await arena.bash(f"kill -{name} 1")
            assert text(await arena.bash("echo still here")) == "still here"
    with attack("kill everything"):
        await arena.bash("kill -9 -1")
    with attack("garbage on descriptors of the shell"):
        noise = "for fd in $(ls /proc/$$/fd); do [ $fd -gt 2 ] && head -c 5000 /dev/urandom >&$fd; done 2>/dev/null"
        await arena.bash(noise, seconds=3)
        assert text(await arena.tool("bash", NEIGHBOUR, command="echo fine")) == "fine"
    await arena.unharmed()
