"""The backend without isolation: the daemon as a plain process of the server's user.

It exists for machines where nothing else works and for debugging, and must be asked for by name: commands can do
whatever the server's user can, and have the machine's own network, whole: an environment with limited networking is
refused, and placeholders of secrets stay placeholders, because nothing swaps them on their way. Files still have a
directory for each session, and the file tools know it as /workspace, but a shell sees the real paths. Nothing ends
with the daemon by itself, so what it leaves behind is found by a variable in its environment.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from corral.config_sections import SandboxSettings
from corral.domain.egress import EgressPolicy
from corral.domain.environment import SEALED, Limited, Recipe
from corral.errors import MachineUnfit, PackagesFailed, SandboxUnavailable
from corral.interfaces.sandbox import Fact
from corral.sandboxes import programs
from corral.sandboxes.directory import KILL_SECONDS_MAX, SessionDirectory
from corral.sandboxes.egress.outlet import Egress
from corral.sandboxes.launched import Launched
from corral.sandboxes.local import LocalSandboxes

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
MARK = "CORRAL_SANDBOX"
SWEEPS_MAX = 10
"""A process may start another while we look."""
NAMES = {
    "/workspace": "workspace",
    "/home/agent": "home",
    "/mnt/session/outputs": "outputs",
    "/mnt/session/uploads": "uploads",
}


class ProcessSandboxes(LocalSandboxes):
    """See the module."""

    as_server = True

    def __init__(
        self, settings: SandboxSettings, data_dir: Path, egress: Callable[[Path], Egress] | None = None
    ) -> None:
        directory = settings.directory and Path(settings.directory).expanduser().absolute()
        root = directory or data_dir.absolute() / "sandboxes"
        super().__init__(settings, root, egress(root / "egress") if egress else None)
        self._daemon: Path | None = None

    def prepare(self) -> None:
        """See `LocalSandboxes.prepare`."""
        if not sys.platform.startswith("linux") or not Path("/bin/bash").exists():
            raise MachineUnfit("`--sandbox process` needs Linux and /bin/bash.")
        try:
            for place in (self._root, self._root / "sessions", self._bin()):
                place.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._daemon = programs.stage_daemon(self._root, Path(sys.executable))
            rg = programs.ripgrep()
            if rg is not None and not os.path.lexists(self._bin() / "rg"):
                (self._bin() / "rg").symlink_to(rg)
        except OSError as error:
            raise MachineUnfit(f"Sandboxes cannot be kept in {self._root}: {error}") from error

    def _bin(self) -> Path:
        return self._root / "programs" / "bin"

    def egress_policy(self, recipe: Recipe) -> EgressPolicy | None:
        """None: programs here have the machine's network. An environment that promises less is refused, not faked."""
        # SEALED is what is opened when nothing was asked for, and promises nothing to anybody.
        if isinstance(recipe.networking, Limited) and recipe is not SEALED:
            raise SandboxUnavailable(
                "This server runs the `process` sandbox, which cannot limit networking; the environment asks for "
                "`limited`. Use `--sandbox bubblewrap`, or an environment with `unrestricted` networking."
            )
        return None

    async def furnish(self, recipe: Recipe) -> None:
        """See `LocalSandboxes.furnish`."""
        raise PackagesFailed("This server's sandboxes (`process`) install no packages, and the environment has some.")

    def launch(self, directory: SessionDirectory, listener: int, recipe: Recipe) -> Launched:
        """See `LocalSandboxes.launch`."""
        assert self._daemon is not None, "prepare() comes first"
        workspace = str(directory.files / "workspace")
        environment = {**dict(recipe.variables), **self._environment(directory)}
        command = self.daemon_command(
            sys.executable,
            str(self._daemon),
            listener=listener,
            root=workspace,
            environment=environment,
            resources={"RLIMIT_CORE": 0},
            names={shown: str(directory.files / name) for shown, name in NAMES.items()},
        )
        gate, gate_inside = socket.socketpair()
        with gate_inside, directory.log.open("wb") as log:
            process = subprocess.Popen(
                command,
                stdin=gate_inside.fileno(),
                stdout=log,
                stderr=log,
                env=environment,
                cwd=workspace,
                pass_fds=(listener,),
                start_new_session=True,
            )
        return Launched(process, process.pid, gate)

    def kill(self, directory: SessionDirectory) -> None:
        """See `LocalSandboxes.kill`."""
        super().kill(directory)
        mark = f"{MARK}={directory.path}".encode()
        for _ in range(SWEEPS_MAX):
            found = [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _has(pid, mark)]
            if not found:
                return
            for pid in found:
                _kill(pid, mark)

    def _environment(self, directory: SessionDirectory) -> Mapping[str, str]:
        """Nothing of the server's environment, which holds its keys."""
        return {
            MARK: str(directory.path),
            "PATH": f"{self._bin()}:{SYSTEM_PATH}",
            "HOME": str(directory.files / "home"),
            "TMPDIR": str(directory.files / "tmp"),
            "SHELL": "/bin/bash",
            "LANG": "C.UTF-8",
            "TERM": "dumb",
        }

    def explain(self) -> list[Fact]:
        """See `LocalSandboxes.explain`."""
        try:
            self.prepare()
        except MachineUnfit as error:
            return [Fact("process sandbox", False, error.message)]
        return [Fact("process sandbox", True, "runs, without any isolation: commands can do all that this user can")]

    async def explain_network(self) -> list[Fact]:
        """See `Sandboxes.explain_network`."""
        return [Fact("sandbox network", True, "the machine's own; environments with limited networking are refused")]


def _has(pid: int, mark: bytes) -> bool:
    try:
        return mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False


def _kill(pid: int, mark: bytes) -> None:
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        # Asked again now that the pidfd pins the process: it must not be a later one with the same pid.
        if _has(pid, mark):
            signal.pidfd_send_signal(process, signal.SIGKILL)
            select.select([process], [], [], KILL_SECONDS_MAX)
    except ProcessLookupError:
        return
    finally:
        os.close(process)
