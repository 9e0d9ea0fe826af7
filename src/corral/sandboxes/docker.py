"""The backend over the API of Docker or Podman: every session in a container of its own, of an image of your choice.

The container runs the same daemon as the other backends over the same directories, so files, uploads and outputs are
where `directory.py` says, and what is learnt of them elsewhere holds here. The engine must be on this machine, and be
root's: it mounts the session's directories, and the daemon inside runs as their owner, which is a host uid of the
sandbox's own when the server is root, and the server's user otherwise.

An engine passes no open socket on. So the daemon fetches it: it knocks at a door, a socket in a directory that is
mounted into its container only; who knocks must be the container's first process, as the kernel tells, which also
shows that the engine is on this machine. It gets the listening socket, whose path is nowhere inside, and the door is
taken away before any tool runs. Containers have labels, are found again after a restart, and are removed when they
end; what an engine that died left over is removed at the next start.
"""

from __future__ import annotations

import hashlib
import os
import platform
import socket
import struct
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from corral.config_sections import SandboxSettings
from corral.domain.environment import Recipe
from corral.errors import MachineUnfit, PackagesFailed, SandboxUnavailable
from corral.interfaces.sandbox import Fact
from corral.sandboxes import programs, seccomp
from corral.sandboxes.connection import short_socket_path
from corral.sandboxes.directory import SessionDirectory, start_ticks
from corral.sandboxes.docker_container import LIBRARY, Parts, accounts, container, variables
from corral.sandboxes.docker_engine import Engine, EngineApi, Started
from corral.sandboxes.egress import inside
from corral.sandboxes.egress.outlet import Egress
from corral.sandboxes.launched import Launched
from corral.sandboxes.local import LocalSandboxes

SERVER_LABEL, SESSION_LABEL = "corral.server", "corral.session"
LOOK_SECONDS = 0.5
"""How often a server that waits at the door looks whether the container still runs."""
READY = b"ready"
"""As in `daemon/arrival.py`."""
WHO_KNOCKS = (
    "Sandboxes need a local engine, on the same machine and in the same namespaces as the server, and a runtime whose "
    "processes are the machine's own, as runc's and crun's are. gVisor's (runsc) are not."
)
PACKAGES = (
    "The session's environment wants packages, which are not installed into containers. Put them into an image, and "
    "name it for this environment under `[sandbox.docker.images]`."
)
SAID_BYTES_MAX = 2_000
NOTED = ".corral-start"
NOTING_ERRORS = ("/bin/sh", "-c", f'exec "$0" "$@" 2>/tmp/{NOTED}')
"""Engines keep what a container said only as long as the container."""
PYTHON = '#!/bin/sh\nexec python3 "$@"\n'


class DockerSandboxes(LocalSandboxes):
    """See the module."""

    def __init__(
        self, settings: SandboxSettings, data_dir: Path, egress: Callable[[Path], Egress] | None = None
    ) -> None:
        directory = settings.directory and Path(settings.directory).expanduser().absolute()
        root = directory or data_dir.absolute() / "sandboxes"
        super().__init__(settings, root, egress(root / "egress") if egress else None)
        self._engine = EngineApi(settings.docker)
        self._parts: Parts | None = None
        self._server = hashlib.sha256(os.fsencode(self._root)).hexdigest()[:16]
        """Which containers are ours: those over this directory, whichever process made them."""

    def prepare(self) -> None:
        """See `LocalSandboxes.prepare`."""
        self._check(self._engine.look())
        try:
            for place in (self._root, self._root / "sessions", self._root / "programs"):
                place.mkdir(mode=0o700, parents=True, exist_ok=True)
            rg = programs.ripgrep()
            own = {"python": PYTHON, **({} if rg is None else {"rg": rg})}
            daemon = programs.stage_daemon(self._root, Path(sys.executable))
            self._parts = Parts(daemon, programs.stage(self._root, "container", own))
        except OSError as error:
            raise MachineUnfit(f"Sandboxes cannot be kept in {self._root}: {error}") from error
        try:
            self._engine.variables_of(self._settings.docker.image)
            self._sweep()
        except SandboxUnavailable as error:
            raise MachineUnfit(error.message) from error

    def _check(self, engine: Engine) -> None:
        wanted = self._settings.docker.runtime
        if not sys.platform.startswith("linux") or engine.os_type != "linux":
            raise MachineUnfit("Containers share files and sockets with the server, which needs Linux for both.")
        if not seccomp.knows(platform.machine()):
            raise MachineUnfit(f"There is no system call filter for {platform.machine()} yet; sandboxes need one.")
        if any("rootless" in option for option in engine.security_options):
            raise MachineUnfit(
                "A rootless engine shifts user ids, so its containers cannot own a session's files. Use root's engine, "
                "or `--sandbox bubblewrap`, which needs no root."
            )
        if not any("seccomp" in option for option in engine.security_options):
            raise MachineUnfit("The engine was built without seccomp, and sandboxes need it.")
        if wanted is not None and wanted not in engine.runtimes:
            known = ", ".join(sorted(engine.runtimes))
            raise MachineUnfit(f"The engine has no runtime `{wanted}`; it has {known}. Install it, or choose another.")

    def _sweep(self) -> None:
        """Remove what did not get to run, and containers of sessions that are gone."""
        self._engine.remove({SERVER_LABEL: self._server}, running=False)
        for session_id in self._engine.values_of(SESSION_LABEL, {SERVER_LABEL: self._server}):
            if not (self._root / "sessions" / session_id).exists():
                self._engine.remove(self._labels(session_id))

    def _labels(self, session_id: str) -> Mapping[str, str]:
        return {SERVER_LABEL: self._server, SESSION_LABEL: session_id}

    async def furnish(self, recipe: Recipe) -> None:
        """See `LocalSandboxes.furnish`: here, packages are the image's part."""
        raise PackagesFailed(PACKAGES)

    def launch(self, directory: SessionDirectory, listener: int, recipe: Recipe) -> Launched:
        """See `LocalSandboxes.launch`."""
        assert self._parts is not None, "prepare() comes first"
        if directory.owner() == 0:
            raise SandboxUnavailable("The session's files belong to root, and no sandbox runs as root.")
        docker = self._settings.docker
        image = docker.images.get(recipe.environment, docker.image)
        way_out = self.way_out(directory, recipe)
        environment = variables({**self._engine.variables_of(image), **dict(recipe.variables)}) | dict(
            way_out.variables if way_out else {}
        )
        daemon = self.daemon_command(
            "python3",
            LIBRARY,
            listener=-1,
            root="/workspace",
            environment=environment,
            resources=self._resources(),
            names={},
            module="arrival",
            egress_socket=inside.SOCKET if way_out else "",
        )
        for name, text in accounts(directory.owner()).items():
            (directory.server / name).write_text(text, encoding="ascii")
            (directory.server / name).chmod(0o644)
        made = container(
            image,
            [*NOTING_ERRORS, *daemon],
            environment,
            directory=directory,
            parts=self._parts,
            way_out=way_out,
            labels=self._labels(directory.path.name),
            settings=self._settings,
        )
        with _door(directory) as door:
            started = self._engine.start(made)
            try:
                _hand_over(door, listener, started, directory, self._settings.start_seconds_max)
            except BaseException:
                self._engine.remove(self._labels(directory.path.name))
                raise
            finally:
                (directory.server / "door" / "socket").unlink(missing_ok=True)
                (directory.files / "tmp" / NOTED).unlink(missing_ok=True)
        return Launched(None, started.pid)

    def _resources(self) -> Mapping[str, int]:
        """What cgroups do not count; and memory once more, so that one process that wants too much can say so."""
        settings = self._settings
        limits = {"RLIMIT_CORE": 0, "RLIMIT_NOFILE": settings.open_files_max}
        return {**limits, "RLIMIT_FSIZE": settings.disk_bytes_max, "RLIMIT_DATA": settings.memory_bytes_max}

    def kill(self, directory: SessionDirectory) -> None:
        """See `LocalSandboxes.kill`."""
        super().kill(directory)
        self._engine.remove(self._labels(directory.path.name))

    def explain(self) -> list[Fact]:
        """See `LocalSandboxes.explain`."""
        docker = self._settings.docker
        try:
            engine = self._engine.look()
            self.prepare()
        except MachineUnfit as error:
            return [Fact("docker sandbox", False, error.message)]
        missing = {"memory": engine.memory_limit, "processes": engine.pids_limit, "processors": engine.cpu_cfs_quota}
        unlimited = ", ".join(name for name, limited in missing.items() if not limited)
        return [
            Fact(
                "docker engine",
                True,
                f"{engine.server_version} at {docker.host}, runtime {docker.runtime or 'default'}",
            ),
            Fact("docker image", True, docker.image),
            Fact("docker limits", not unlimited, f"the engine cannot limit {unlimited}" if unlimited else "cgroups"),
            Fact("system calls", True, "filtered by an allow-list (seccomp)"),
            Fact("sandbox directory", True, str(self._root)),
        ]


def _door(directory: SessionDirectory) -> socket.socket:
    """A socket that the container finds in its own mount. The caller closes and removes it."""
    place = directory.server / "door"
    place.mkdir(exist_ok=True)
    place.chmod(0o711)
    (place / "socket").unlink(missing_ok=True)
    door = socket.socket(socket.AF_UNIX)
    try:
        with short_socket_path(place / "socket") as short:
            door.bind(short)
        (place / "socket").chmod(0o666)
        door.listen(1)
    except BaseException:
        door.close()
        raise
    return door


def _hand_over(
    door: socket.socket, listener: int, started: Started, directory: SessionDirectory, seconds_max: float
) -> None:
    """Give the listening socket to the container's first process and to nobody else."""
    knocking = _accept(door, started, directory, time.monotonic() + seconds_max)
    with knocking:
        pid, uid, _ = struct.unpack("3i", knocking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if (pid, uid) != (started.pid, directory.owner()):
            raise SandboxUnavailable(
                f"Process {pid} of user {uid} asked for the sandbox's socket, and not the container's process "
                f"{started.pid} of user {directory.owner()}. {WHO_KNOCKS}"
            )
        knocking.settimeout(seconds_max)
        said = knocking.recv(SAID_BYTES_MAX)
        if said != READY:
            raise SandboxUnavailable(f"The sandbox did not start: {said.decode('utf-8', 'replace')}.")
        socket.send_fds(knocking, [b"\0"], [listener])


def _accept(door: socket.socket, started: Started, directory: SessionDirectory, deadline: float) -> socket.socket:
    door.settimeout(LOOK_SECONDS)
    while True:
        try:
            return door.accept()[0]
        except TimeoutError as error:
            if start_ticks(started.pid) is None:
                raise SandboxUnavailable(f"The sandbox did not start: {_noted(directory)}.") from error
            if time.monotonic() > deadline:
                raise SandboxUnavailable("The sandbox did not start in time.") from error


def _noted(directory: SessionDirectory) -> str:
    """What an instance said that ended before any tool ran."""
    try:
        # Not followed: whoever can write here could otherwise show us any file.
        descriptor = os.open(directory.files / "tmp" / NOTED, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return "its container ended without a word"
    with open(descriptor, "rb") as file:
        lines = file.read(SAID_BYTES_MAX).decode("utf-8", "replace").strip().splitlines()
    return lines[-1] if lines else "its container ended without a word"
