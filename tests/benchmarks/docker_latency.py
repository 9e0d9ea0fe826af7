"""How long a tool call takes in a container, cold and warm, beside a bubblewrap sandbox."""

from __future__ import annotations

import statistics
import tempfile
import time

import anyio

from corral.config_sections import SandboxSettings
from corral.domain.ids import new_id
from corral.interfaces.sandbox import Sandbox, SandboxCall
from corral.sandboxes.bubblewrap import BubblewrapSandboxes
from corral.sandboxes.docker import DockerSandboxes
from corral.sandboxes.local import LocalSandboxes
from tests import docker_engine
from tests.benchmarks.temporary import passable

NAME = "A tool call: `echo hi` in a container"
COLD = 8
WARM = 100


def run() -> list[tuple[str, float, str, str]]:
    if reason := docker_engine.why_not():
        return [("not measured", 0.0, "", reason)]
    return anyio.run(_measure, backend_options={"use_uvloop": True})


async def _measure() -> list[tuple[str, float, str, str]]:
    with tempfile.TemporaryDirectory() as directory:
        settings = docker_engine.settings_for_docker(SandboxSettings(directory=directory))
        containers = DockerSandboxes(settings, passable(directory))
        cold, warm = await _times(containers)
    with tempfile.TemporaryDirectory() as directory:
        beside = BubblewrapSandboxes(SandboxSettings(directory=directory), passable(directory))
        cold_beside, warm_beside = await _times(beside)
    return [
        ("cold: start the container, echo hi, p50", statistics.median(cold), "ms", ""),
        ("cold: bubblewrap, p50", statistics.median(cold_beside), "ms", "same run"),
        ("warm: echo hi, p50", statistics.median(warm), "ms", "aim: < 6"),
        ("warm: echo hi, p99", statistics.quantiles(warm, n=100)[98], "ms", ""),
        ("warm: bubblewrap, p50", statistics.median(warm_beside), "ms", "same run"),
    ]


async def _times(sandboxes: LocalSandboxes) -> tuple[list[float], list[float]]:
    """Milliseconds of cold calls and of warm ones."""
    await sandboxes.start()
    names = [f"sesn_bench{number}" for number in range(COLD)]
    cold: list[float] = []
    for name in names:
        start = time.perf_counter()
        await _echo(await sandboxes.open(name))
        cold.append((time.perf_counter() - start) * 1000)
    sandbox = await sandboxes.open(names[0])
    warm = [await _timed_echo(sandbox) for _ in range(WARM)]
    for name in names:
        await sandboxes.destroy(name)
    await sandboxes.close()
    return cold, warm


async def _echo(sandbox: Sandbox) -> None:
    reply = await sandbox.call(SandboxCall(call_id=new_id("sevt"), operation="bash", arguments={"command": "echo hi"}))
    assert not reply.is_error, reply


async def _timed_echo(sandbox: Sandbox) -> float:
    start = time.perf_counter()
    await _echo(sandbox)
    return (time.perf_counter() - start) * 1000
