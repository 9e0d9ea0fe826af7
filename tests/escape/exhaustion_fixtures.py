"""A hostile sandbox with small limits, an innocent one beside it, and what must still be true after an attack."""

from __future__ import annotations

import os
import resource
from collections.abc import AsyncIterator
from itertools import count
from pathlib import Path

import anyio
import msgspec
import pytest

from corral.config_sections import SandboxSettings
from corral.domain.content import TextBlock
from corral.errors import MachineUnfit
from corral.interfaces.sandbox import Sandbox, SandboxCall, SandboxOperation, SandboxReply
from corral.sandboxes.bubblewrap import BubblewrapSandboxes
from corral.sandboxes.directory import SessionDirectory
from corral.sandboxes.docker import DockerSandboxes
from corral.sandboxes.local import LocalSandboxes
from tests import docker_engine
from tests.places import stage

MEBIBYTE = 1024 * 1024
HOSTILE, NEIGHBOUR = "sesn_hostile", "sesn_neighbour"
LIMITS = SandboxSettings(
    memory_bytes_max=96 * MEBIBYTE,
    processes_max=32,
    disk_bytes_max=20 * MEBIBYTE,
    disk_files_max=500,
    disk_free_bytes_min=0,
    shared_memory_bytes_max=8 * MEBIBYTE,
    output_bytes_max=4_096,
    answer_seconds_max=60.0,
)
SERVER_GROWTH_BYTES_MAX = 256 * MEBIBYTE
CALL_SECONDS_MAX = 100


class Arena:
    """Both sandboxes and their server."""

    def __init__(self, root: Path, server: LocalSandboxes) -> None:
        self.root, self.server = root, server
        self._ids = count(1)
        self._memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    async def sandbox(self, session_id: str = HOSTILE) -> Sandbox:
        """The session's, as the harness would get it."""
        return await self.server.open(session_id)

    def directory(self, session_id: str = HOSTILE) -> SessionDirectory:
        """Where it keeps its files."""
        return SessionDirectory(self.root, session_id)

    async def tool(
        self, operation: SandboxOperation, session_id: str = HOSTILE, /, **arguments: object
    ) -> SandboxReply:
        """One call."""
        sandbox = await self.sandbox(session_id)
        call = SandboxCall(call_id=f"sevt_{next(self._ids)}", operation=operation, arguments=arguments)
        with anyio.fail_after(CALL_SECONDS_MAX):
            return await sandbox.call(call)

    async def bash(self, command: str, seconds: float = 30) -> SandboxReply:
        """One command of the hostile one."""
        return await self.tool("bash", command=command, timeout_ms=int(seconds * 1000))

    async def python(self, program: str, seconds: float = 30) -> SandboxReply:
        """One hostile program, kept where limits on files do not count it."""
        quoted = program.replace("'", "'\"'\"'")
        return await self.bash(f"python3 -c '{quoted}'", seconds)

    def processes(self, session_id: str = HOSTILE) -> list[int]:
        """The host's numbers of all in the sandbox, zombies too."""
        record = self.directory(session_id).record()
        assert record is not None
        return descendants(record.pid)

    async def unharmed(self) -> None:
        """The server is small, the neighbour answers, and the hostile sandbox itself is of use again."""
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - self._memory) * 1024
        assert grown < SERVER_GROWTH_BYTES_MAX, grown
        answer = await self.tool("bash", NEIGHBOUR, command="echo fine > here && cat here")
        assert text(answer) == "fine" and not answer.is_error, answer
        await self.tool("bash", restart=True)
        answer = await self.bash("echo fine")
        assert text(answer) == "fine" and not answer.is_error, answer
        # The daemon and the shell that has just answered.
        assert len(self.processes()) <= 2, self.processes()

    def limited_by_cgroups(self) -> bool:
        """Whether memory is limited for the sandbox as a whole here."""
        group = self.server.group(HOSTILE)
        return group is not None


def descendants(root: int) -> list[int]:
    """A process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            parent = Path(f"/proc/{name}/stat").read_bytes().rpartition(b")")[2].split()[1]
        except OSError:
            continue
        children.setdefault(int(parent), []).append(int(name))
    found = [root]
    for pid in found:
        found.extend(children.get(pid, ()))
    return found


def text(reply: SandboxReply) -> str:
    """All of a reply that is text."""
    return "\n".join(block.text for block in reply.content if isinstance(block, TextBlock))


@pytest.fixture(params=["bubblewrap", "docker"])
async def arena(request: pytest.FixtureRequest, root: Path) -> AsyncIterator[Arena]:
    """Small limits, and both sandboxes running, with each backend that isolates."""
    settings = msgspec.structs.replace(LIMITS, directory=str(root))
    if request.param == "docker":
        if reason := docker_engine.why_not():
            pytest.skip(reason)
        server = DockerSandboxes(docker_engine.settings_for_docker(settings), root)
    else:
        server = BubblewrapSandboxes(settings, root)
    stage(root, str(request.param))
    try:
        await server.start()
    except MachineUnfit as error:
        pytest.skip(error.message)
    arena = Arena(root, server)
    try:
        await server.open(NEIGHBOUR)
        await server.open(HOSTILE)
        yield arena
    finally:
        for session_id in (HOSTILE, NEIGHBOUR):
            await server.destroy(session_id)
        await server.close()
