"""Where bubblewrap builds layers: see `packages/workshop.py`.

With apt packages, the draft holds a copy of the base, and that is what the build sees, writable.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from corral.config_sections import SandboxSettings
from corral.errors import PackagesFailed
from corral.sandboxes.bases import Base
from corral.sandboxes.bubblewrap_inside import Programs, arguments
from corral.sandboxes.child import end
from corral.sandboxes.egress.outlet import Egress
from corral.sandboxes.packages.output import Command
from corral.sandboxes.packages.workshop import PLACES, PROBE_SECONDS_MAX, QUESTION, Workshop, answer, run_program

Start = Callable[[Sequence[str], int], "subprocess.Popen[bytes]"]
"""Runs a bwrap command as a user, with its output in a pipe. It dies with the calling thread."""

WRITABLE_FOR_APT = ("usr", "etc", "var", "srv", "bin", "sbin", "lib", "lib32", "lib64", "libx32")
"""Not /opt: Corral's own parts are there, and sandboxes do not see the base's."""
NO_APT = (
    "The environment's apt packages could not be installed: this server's sandboxes use the machine's own /usr, which "
    "apt must not add to. Its operator can make a base with `corral base build` and name it as `base` in the "
    "`[sandbox]` section of corral.toml."
)


class BubblewrapWorkshop(Workshop):
    """See the module."""

    def __init__(
        self,
        root: Path,
        settings: SandboxSettings,
        base: Base,
        programs: Programs,
        *,
        egress: Egress,
        resources: Mapping[str, int],
        start: Start,
    ) -> None:
        super().__init__(root, settings, egress, resources)
        self._base, self._programs, self._start = base, programs, start

    def tools(self, base: str) -> Mapping[str, str]:
        """See `Workshop.tools`: each is asked in a sandbox without anything."""
        argv = [*arguments(self._programs, None, self._settings.shared_memory_bytes_max, None), "--", *QUESTION]
        uid = self._settings.uid_first if os.geteuid() == 0 else os.geteuid()
        process = self._start(argv, uid)
        try:
            said = process.communicate(timeout=PROBE_SECONDS_MAX)[0].decode("utf-8", "replace")
        except subprocess.TimeoutExpired as error:
            end(process)
            process.communicate()
            raise PackagesFailed("The sandbox's base did not tell its tools in time.") from error
        if process.returncode:
            raise PackagesFailed(f"The sandbox's base did not tell its tools: {said[-500:].strip()}")
        return answer(said)

    def lacking(self, tool: str, advice: str) -> str:
        """See `Workshop.lacking`."""
        return f"the sandbox's base has no `{tool}`. On the server, {advice}, in /usr or in its base."

    def why_no_apt(self) -> str | None:
        """See `Workshop.why_no_apt`."""
        return NO_APT if self._base.is_host else None

    def copy_base(self, draft: Path) -> None:
        """See `Workshop.copy_base`."""
        (draft / "base").mkdir(mode=0o755)
        parts = [str(self._base.path / name) for name in WRITABLE_FOR_APT if os.path.lexists(self._base.path / name)]
        run_program("cp", "-a", "--reflink=auto", "--no-preserve=ownership", "--", *parts, str(draft / "base"))

    def start(
        self, argv: Sequence[str], draft: Path, environment: Mapping[str, str], *, uid: int, base: str, apt: bool
    ) -> Command:
        """See `Workshop.start`."""
        mounts = (*_places(draft), *(_apt(draft) if apt else ()))
        shared = self._settings.shared_memory_bytes_max
        command = [
            *arguments(self._programs, None, shared, self.way_out(draft), extra=mounts),
            "--die-with-parent",
            *(part for name, value in environment.items() for part in ("--setenv", name, value)),
            *("--", *self.command(self._programs.python.executable, argv)),
        ]
        if apt:
            # dpkg refuses anybody but root; inside, and with no capability, that is but a number.
            command[command.index("--uid") + 1] = command[command.index("--gid") + 1] = "0"
        process = self._start(command, uid)
        try:
            return _Child(process)
        except OSError:
            end(process)
            raise


class _Child:
    """Implements `Command`: bwrap, a child of ours."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None, "the output must be a pipe"
        self._process, self._stdout = process, process.stdout
        self.output, self.ended = process.stdout.fileno(), os.pidfd_open(process.pid)

    def end(self) -> None:
        """See `Command.end`."""
        end(self._process)

    def close(self, seconds_max: float) -> int:
        """See `Command.close`."""
        os.close(self.ended)
        self._stdout.close()
        return self._process.wait(seconds_max)


def _places(draft: Path) -> Iterator[str]:
    for name, place in PLACES.items():
        yield from ("--bind", str(draft / name), place)


def _apt(draft: Path) -> Iterator[str]:
    """Mounted over what a sandbox sees of the base."""
    for name in WRITABLE_FOR_APT:
        path = draft / "base" / name
        if path.is_dir() and not path.is_symlink():
            yield from ("--bind", str(path), f"/{name}")
