"""Fixtures for the contract suites: every sandbox backend that can run here, over a directory of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import pytest

from corral.config_sections import SandboxSettings
from corral.errors import MachineUnfit
from corral.sandboxes.bubblewrap import BubblewrapSandboxes
from corral.sandboxes.directory import SessionDirectory
from corral.sandboxes.docker import DockerSandboxes
from corral.sandboxes.local import LocalSandboxes
from corral.sandboxes.process import ProcessSandboxes
from tests import docker_engine
from tests.places import stage

BACKENDS = {"bubblewrap": BubblewrapSandboxes, "docker": DockerSandboxes, "process": ProcessSandboxes}
SETTINGS = SandboxSettings(
    output_bytes_max=4_096,
    text_file_bytes_max=8_192,
    image_base64_bytes_max=4_096,
    pdf_bytes_max=8_192,
    glob_results_max=5,
    remembered_calls_max=8,
    warm=0,
)
"""Limits low enough to reach, and no sandboxes but those that are asked for."""


class Machine(NamedTuple):
    """A backend and a directory, which several servers may use one after another."""

    backend: str
    root: Path

    def server(self, settings: SandboxSettings = SETTINGS) -> LocalSandboxes:
        """What one server process would have."""
        if self.backend == "docker":
            settings = docker_engine.settings_for_docker(settings)
        return BACKENDS[self.backend](settings, self.root)

    @property
    def isolates(self) -> bool:
        """Whether what runs inside is kept in, and sees directories of its own."""
        return self.backend != "process"

    def directory(self, session_id: str) -> SessionDirectory:
        """Where the backend keeps this session."""
        return SessionDirectory(self.root / "sandboxes", session_id)


@pytest.fixture(params=list(BACKENDS))
async def machine(request: pytest.FixtureRequest, root: Path) -> AsyncIterator[Machine]:
    """Each backend in turn; whatever a test leaves running is destroyed."""
    machine = Machine(str(request.param), root)
    if machine.backend == "docker" and (reason := docker_engine.why_not()):
        pytest.skip(reason)
    stage(root / "sandboxes", machine.backend)
    server = machine.server()
    try:
        await server.start()
    except MachineUnfit as error:
        pytest.skip(error.message)
    yield machine
    for place in (root / "sandboxes" / "sessions").glob("*"):
        await server.destroy(place.name)
    await server.close()


@pytest.fixture
async def server(machine: Machine) -> AsyncIterator[LocalSandboxes]:
    """One server."""
    server = machine.server()
    yield server
    await server.close()
