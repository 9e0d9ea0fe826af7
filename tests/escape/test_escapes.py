"""Hostile code in a sandbox: every attack is tried against the whole configuration, and none gets through.

The attacks that need no privilege are also run without isolation (`process`), where they succeed: that shows that they
are attacks and not typing errors. Nothing here changes the host: forbidden files are opened and closed, never written.
"""

from __future__ import annotations

import json
import os
import platform
import socket
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, suppress
from importlib.resources import files
from pathlib import Path

import anyio
import pytest

from corral.config_sections import SandboxSettings
from corral.domain.content import TextBlock
from corral.interfaces.sandbox import Sandbox, SandboxCall
from corral.sandboxes import seccomp
from corral.sandboxes.bubblewrap import BubblewrapSandboxes
from corral.sandboxes.docker import DockerSandboxes
from corral.sandboxes.process import ProcessSandboxes
from tests import docker_engine
from tests.escape.attacks import ATTACKS
from tests.escape.conftest import Attack
from tests.places import stage

pytestmark = pytest.mark.anyio

BACKENDS = {"bubblewrap": BubblewrapSandboxes, "docker": DockerSandboxes, "process": ProcessSandboxes}
ISOLATING = ["bubblewrap", "docker"]
SECONDS_MAX = 120
REAL_WITHOUT_ISOLATION = [
    "reach the host's loopback",
    "reach an abstract socket",
    "use keyctl",
    "change personality",
    "connect to a session's socket",
    "see /sys at all",
    "make a netlink socket of any family",
]
"""Attacks that any user of any machine can carry out, so that they must succeed where nothing isolates."""


OF_BUBBLEWRAP = ("see /sys at all", "see cgroups", "open the kernel's sysrq", "register for the host's pressure")
"""A container has a read-only /sys, and files of /proc that are masked by mounts of its engine's choice."""


class GotThrough(Exception):
    """An attack succeeded."""


@pytest.fixture(params=ISOLATING)
def backend(request: pytest.FixtureRequest) -> str:
    """Each backend that isolates, in turn."""
    if request.param == "docker" and (reason := docker_engine.why_not()):
        pytest.skip(reason)
    return str(request.param)


def refused_calls() -> list[str]:
    """Every call that the filter refuses, with its number here."""
    table = json.loads(files("corral.sandboxes").joinpath("system_calls.json").read_text(encoding="ascii"))
    numbers: dict[str, int] = table[platform.machine()]
    return [f"{name}={numbers[name]}" for name in sorted(seccomp.REFUSED | seccomp.MISSING) if name in numbers]


@pytest.fixture
def host() -> Iterator[dict[str, str]]:
    """Two listeners on the host, which a sandbox must not reach."""
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as abstract:
        name = f"corral-escape-{os.getpid()}"
        abstract.bind(f"\0{name}")
        abstract.listen()
        yield {
            "HOST_PORT": str(tcp.getsockname()[1]),
            "HOST_SOCKET": name,
            "SERVER_PID": str(os.getpid()),
            "REFUSED_CALLS": ",".join(refused_calls()),
        }


@asynccontextmanager
async def sandbox_of(backend: str, root: Path) -> AsyncGenerator[Sandbox]:
    settings = SandboxSettings(directory=str(root))
    if backend == "docker":
        settings = docker_engine.settings_for_docker(settings)
    sandboxes = BACKENDS[backend](settings, root)
    stage(root, backend)
    await sandboxes.start()
    try:
        yield await sandboxes.open("sesn_hostile")
    finally:
        await sandboxes.destroy("sesn_hostile")
        await sandboxes.close()


async def attempt(backend: str, root: Path, host: dict[str, str], names: list[str]) -> dict[str, bool]:
    source = Path(__file__).with_name("attacks.py").read_text(encoding="utf-8")
    host = {**host, "SESSION_SOCKET": str(root / "sessions" / "sesn_hostile" / "server" / "socket")}
    variables = " ".join(f"{name}={value}" for name, value in host.items())
    quoted = " ".join(f'"{name}"' for name in names)
    async with sandbox_of(backend, root) as sandbox:
        with anyio.fail_after(SECONDS_MAX):
            write = {"file_path": "attacks.py", "content": source}
            await sandbox.call(SandboxCall(call_id="write", operation="write", arguments=write))
            run = {"command": f"{variables} python3 attacks.py {quoted}"}
            reply = await sandbox.call(SandboxCall(call_id="run", operation="bash", arguments=run))
    return json.loads("".join(block.text for block in reply.content if isinstance(block, TextBlock)))


async def test_no_attack_gets_out_of_a_sandbox(
    backend: str, root: Path, host: dict[str, str], monkeypatch: pytest.MonkeyPatch, attack: Attack
) -> None:
    monkeypatch.setenv("CORRAL_ESCAPE_SECRET", "visible to the server only")
    names = [name for name in ATTACKS if backend == "bubblewrap" or name not in OF_BUBBLEWRAP]
    got_through = await attempt(backend, root, host, names)
    assert set(got_through) == set(names)
    for name, success in got_through.items():
        with suppress(GotThrough), attack(name):
            if success:
                raise GotThrough
    assert [name for name, success in got_through.items() if success] == []


async def test_without_isolation_the_attacks_succeed(root: Path, host: dict[str, str]) -> None:
    got_through = await attempt("process", root, host, REAL_WITHOUT_ISOLATION)
    assert all(got_through.values()), got_through


async def test_ordinary_programs_run_under_the_filter(backend: str, root: Path) -> None:
    """Threads, child processes, pipes, sockets between processes, shared memory, timers: what real programs need."""
    program = (
        "import concurrent.futures as f, multiprocessing as m, socket, subprocess, tempfile, asyncio, mmap, sqlite3\n"
        "a, b = socket.socketpair(); a.send(b'x'); assert b.recv(1) == b'x'\n"
        "assert list(f.ThreadPoolExecutor(4).map(abs, [-1, -2])) == [1, 2]\n"
        "q = m.get_context('fork').Pool(2); assert q.map(abs, [-3]) == [3]; q.terminate()\n"
        "assert subprocess.run(['sort'], input=b'b\\na\\n', stdout=-1).stdout == b'a\\nb\\n'\n"
        "asyncio.run(asyncio.sleep(0)); mmap.mmap(-1, 4096)[0] = 1\n"
        "sqlite3.connect('x.db').execute('create table t(a)'); print('fine')\n"
    )
    async with sandbox_of(backend, root) as sandbox:
        with anyio.fail_after(SECONDS_MAX):
            write = {"file_path": "program.py", "content": program}
            await sandbox.call(SandboxCall(call_id="write", operation="write", arguments=write))
            bash = {"command": "python3 program.py"}
            reply = await sandbox.call(SandboxCall(call_id="run", operation="bash", arguments=bash))
        assert reply.content == (TextBlock(text="fine"),), reply
