"""What tests of the way out share: a server with sandboxes that have one, and a shell in each of them."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from itertools import count
from pathlib import Path
from typing import ParamSpec

import anyio
import pytest
from prometheus_client import CollectorRegistry

from corral.config_sections import EgressSettings, SandboxSettings
from corral.domain.content import TextBlock
from corral.domain.environment import Limited, Recipe
from corral.interfaces.sandbox import Sandbox, SandboxCall
from corral.sandboxes.bubblewrap import BubblewrapSandboxes
from corral.sandboxes.docker import DockerSandboxes
from corral.sandboxes.egress.outlet import Egress
from tests import docker_engine
from tests.contracts.egress_hosts import ALLOWED
from tests.places import stage

P = ParamSpec("P")
SECONDS_MAX = 120
ONE_HOST = Recipe(networking=Limited(allowed_hosts=(ALLOWED,)))


def bounded(check: Callable[P, Awaitable[None]]) -> Callable[P, Awaitable[None]]:
    @functools.wraps(check)
    async def run(*args: P.args, **kwargs: P.kwargs) -> None:
        with anyio.fail_after(SECONDS_MAX):
            await check(*args, **kwargs)

    return pytest.mark.anyio(run)


class Server:
    """What one server process has, and a shell in each of its sandboxes."""

    def __init__(
        self, root: Path, settings: EgressSettings, *, own_ports: tuple[int, ...] = (), backend: str = "bubblewrap"
    ) -> None:
        self.registry, self.backend = CollectorRegistry(), backend

        def egress(place: Path) -> Egress:
            return Egress(settings, place, own_ports=own_ports, registry=self.registry)

        stage(root, backend)
        sandbox = SandboxSettings(directory=str(root))
        if backend == "docker":
            sandbox = docker_engine.settings_for_docker(sandbox)
        self.sandboxes = (DockerSandboxes if backend == "docker" else BubblewrapSandboxes)(sandbox, root, egress)

    async def open(self, session_id: str = "sesn_1", recipe: Recipe = ONE_HOST) -> Shell:
        """A sandbox by this recipe."""
        return Shell(await self.sandboxes.open(session_id, recipe))

    def refused(self, reason: str) -> float:
        """How often, by the metrics."""
        return self.registry.get_sample_value("corral_egress_refused_total", {"reason": reason}) or 0

    async def counted(self, reason: str, times: int = 1) -> None:
        """Wait until refusals are among the metrics."""
        for _ in range(1_000):
            if self.refused(reason) >= times:
                return
            await anyio.sleep(0.02)
        pytest.fail(f"{reason} was not counted")


class Shell:
    """Runs commands in one sandbox."""

    numbers = count(1)

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox

    async def __call__(self, command: str) -> str:
        """What it says, and `exit N` when that is not 0."""
        arguments = {"command": f"{{ {command}\n}} 2>&1; code=$?; [ $code = 0 ] || echo exit $code"}
        call = SandboxCall(call_id=f"sevt_{next(self.numbers)}", operation="bash", arguments=arguments)
        reply = await self._sandbox.call(call)
        return "".join(block.text for block in reply.content if isinstance(block, TextBlock))

    async def python(self, program: str) -> str:
        """What a Python program says."""
        return await self(f"python3 - <<'END'\n{program}\nEND")
