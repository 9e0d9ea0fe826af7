"""Where bubblewrap builds layers: a sandbox like any other, over a draft instead of a session's files.

It has a user of its own, the same filter of system calls and the same limits as a session, and no secret is in it:
what is installed may run what it likes. It dies with the server. With apt packages, the draft holds a copy of the
base, and that is what the build sees, writable.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from corral.config_sections import SandboxSettings
from corral.domain.egress import EgressPolicy
from corral.errors import PackagesFailed
from corral.sandboxes.bases import Base
from corral.sandboxes.bubblewrap_inside import HOME, Programs, arguments
from corral.sandboxes.child import end
from corral.sandboxes.directory import UID_CLAIM, claim_uid, give_back_uid
from corral.sandboxes.egress.inside import PORT, SOCKET, WayOut, way_out
from corral.sandboxes.egress.outlet import Egress
from corral.sandboxes.packages.inside import LAYER
from corral.sandboxes.packages.managers import TABLE

Start = Callable[[Sequence[str], int], "subprocess.Popen[bytes]"]
"""Runs a bwrap command as a user, with its output in a pipe."""

PROBE_SECONDS_MAX = 60.0
COPY_SECONDS_MAX = 600.0
WRITABLE_FOR_APT = ("usr", "etc", "var", "srv", "bin", "sbin", "lib", "lib32", "lib64", "libx32")
"""Not /opt: Corral's own parts are there, and sandboxes do not see the base's."""
RUN = """\
import json, os, resource, socket, subprocess, sys, threading
given = json.loads(sys.argv[1])
for name, value in given["limits"].items():
    number = getattr(resource, name)
    hard = resource.getrlimit(number)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(number, (value, value))
sys.path.append(given["library"])
from corral.sandboxes.daemon.forward import Forwarder
listener = socket.create_server(("127.0.0.1", given["port"]), backlog=64)
threading.Thread(target=Forwarder(listener, given["socket"]).serve, daemon=True).start()
os.umask(0o022)
try:
    code = subprocess.call(sys.argv[2:], stdin=subprocess.DEVNULL)
except OSError as error:
    sys.exit(f"{sys.argv[2]}: {error.strerror}")
sys.exit(code if code >= 0 else 128 - code)
"""
"""What a build's first process is: it sets limits, leads connections to the way out, and runs one command."""


class BubblewrapWorkshop:
    """Implements `layers.Workshop`."""

    def __init__(
        self,
        root: Path,
        settings: SandboxSettings,
        base: Base,
        programs: Programs,
        *,
        egress: Egress,
        limits: Mapping[str, int],
        start: Start,
    ) -> None:
        self._root, self._settings, self._base, self._programs = root, settings, base, programs
        self._egress, self._limits, self._start = egress, limits, start

    def tools(self) -> Mapping[str, str]:
        """See `Workshop.tools`: each is asked in a sandbox without anything."""
        asked = {name: argv for manager in TABLE.values() for name, argv in manager.tools.items()}
        script = "\n".join(
            f"command -v {argv[0]} >/dev/null && said=$({' '.join(argv)} 2>/dev/null | head -n 1) && "
            f'[ -n "$said" ] && printf "%s\\t%s\\n" {name} "$said"'
            for name, argv in asked.items()
        )
        argv = [
            *arguments(self._programs, None, self._settings.shared_memory_bytes_max, None),
            "--",
            "/bin/bash",
            "-c",
            f"{script}\ntrue",
        ]
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
        lines = (line.split("\t", 1) for line in said.splitlines() if "\t" in line)
        return {name: version for name, version in lines if name in asked}

    def identity(self) -> str:
        """See `Workshop.identity`."""
        return self._base.identity()

    def takes_apt(self) -> bool:
        """See `Workshop.takes_apt`."""
        return not self._base.is_host

    def claim(self, draft: Path, *, apt: bool) -> int:
        """See `Workshop.claim`."""
        if apt:
            self._copy_base(draft)
        if os.geteuid() != 0:
            return os.geteuid()
        settings = self._settings
        uid = claim_uid(self._root, draft, first=settings.uid_first, count=settings.uid_count)
        for name in (each for each in os.listdir(draft) if each != UID_CLAIM):
            _run("chown", "-R", "-h", f"{uid}:{uid}", str(draft / name))
        return uid

    def _copy_base(self, draft: Path) -> None:
        (draft / "base").mkdir(mode=0o755)
        parts = [str(self._base.path / name) for name in WRITABLE_FOR_APT if os.path.lexists(self._base.path / name)]
        _run("cp", "-a", "--reflink=auto", "--no-preserve=ownership", "--", *parts, str(draft / "base"))

    def release(self, draft: Path, uid: int) -> None:
        """See `Workshop.release`."""
        give_back_uid(self._root, draft, uid)

    @asynccontextmanager
    async def network(self, draft: Path, uid: int) -> AsyncGenerator[Mapping[str, str]]:
        """See `Workshop.network`."""
        key, policy = f"layer {draft.name}", EgressPolicy(endpoints=self._egress.package_managers.endpoints)
        await self._egress.attach(key, draft / "egress", uid, policy)
        try:
            yield self._way_out(draft).variables
        finally:
            await self._egress.detach(key)

    def start(
        self, argv: Sequence[str], draft: Path, uid: int, environment: Mapping[str, str], *, apt: bool
    ) -> subprocess.Popen[bytes]:
        """See `Workshop.start`."""
        python = self._programs.python.executable
        mounts = (*_places(draft), *(_apt(draft) if apt else ()))
        shared = self._settings.shared_memory_bytes_max
        command = [
            *arguments(self._programs, None, shared, self._way_out(draft), extra=mounts),
            "--die-with-parent",
            *(part for name, value in environment.items() for part in ("--setenv", name, value)),
            *("--", python, "-I", "-S", "-c", RUN, json.dumps(self._inside()), *argv),
        ]
        if apt:
            # dpkg refuses anybody but root; inside, and with no capability, that is but a number.
            command[command.index("--uid") + 1] = command[command.index("--gid") + 1] = "0"
        return self._start(command, uid)

    def _way_out(self, draft: Path) -> WayOut:
        egress = self._egress
        return way_out(draft / "egress", egress.ca_file, egress.package_managers, egress.manager_files)

    def _inside(self) -> Mapping[str, object]:
        return {"limits": dict(self._limits), "port": PORT, "socket": SOCKET, "library": "/opt/corral/lib"}


def _places(draft: Path) -> Iterator[str]:
    yield from ("--bind", str(draft / "packages"), LAYER)
    yield from ("--bind", str(draft / "home"), HOME, "--bind", str(draft / "tmp"), "/tmp")


def _apt(draft: Path) -> Iterator[str]:
    """Mounted over what a sandbox sees of the base."""
    for name in WRITABLE_FOR_APT:
        path = draft / "base" / name
        if path.is_dir() and not path.is_symlink():
            yield from ("--bind", str(path), f"/{name}")


def _run(program: str, *arguments: str) -> None:
    path = shutil.which(program) or f"/bin/{program}"
    done = subprocess.run([path, *arguments], capture_output=True, timeout=COPY_SECONDS_MAX, check=False)
    if done.returncode:
        raise PackagesFailed(f"The base could not be copied: {done.stderr.decode('utf-8', 'replace').strip()[-500:]}")
