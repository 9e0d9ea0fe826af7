"""Where layers are built, as far as it is the same for all backends: who builds, with which way out, and with what.

A build happens in a sandbox like any other, over a draft instead of a session's files. It has a user of its own, the
same filter of system calls and the same limits as a session, and no secret is in it: what is installed may run what it
likes. It dies with the server. How a command is enclosed is the backend's part (`bubblewrap_building.py`,
`docker_building.py`); which commands there are is `layers.py`'s.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from corral.config_sections import SandboxSettings
from corral.domain.egress import EgressPolicy
from corral.errors import PackagesFailed, SandboxUnavailable
from corral.interfaces.sandbox import Fact
from corral.sandboxes.directory import UID_CLAIM, claim_uid, give_back_uid
from corral.sandboxes.egress.inside import PORT, SOCKET, WayOut, way_out
from corral.sandboxes.egress.outlet import Egress
from corral.sandboxes.local import RUN_DAEMON
from corral.sandboxes.packages.inside import LAYER
from corral.sandboxes.packages.managers import TABLE
from corral.sandboxes.packages.output import Command

LIBRARY = "/opt/corral/lib"
"""Where the daemon's programs are inside, those of a build among them."""
PLACES = {"packages": LAYER, "home": "/home/agent", "tmp": "/tmp"}
"""What of a draft is writable inside, and where."""
OWN_SECONDS_MAX = 600.0
PROBE_SECONDS_MAX = 60.0
SITE_PACKAGES = "site-packages"
"""Asked like the version of a tool: where the base's Python looks last for its own packages."""
_ASKED = {
    **{name: argv for manager in TABLE.values() for name, argv in manager.tools.items()},
    SITE_PACKAGES: ("python3", "-I", "-c", "import site; print(site.getsitepackages()[-1])"),
}
_SCRIPT = "\n".join(
    f"command -v {argv[0]} >/dev/null && said=$({shlex.join(argv)} 2>/dev/null | head -n 1) && "
    f'[ -n "$said" ] && printf "%s\\t%s\\n" {name} "$said"'
    for name, argv in _ASKED.items()
)
QUESTION = ("/bin/bash", "-c", f"{_SCRIPT}\ntrue")
"""A command that says the versions of all tools that there are."""


class Workshop(ABC):
    """Where a backend builds layers. A `base` is what tells a system that packages are added to from others."""

    def __init__(self, root: Path, settings: SandboxSettings, egress: Egress, resources: Mapping[str, int]) -> None:
        self._root, self._settings, self._egress, self._resources = root, settings, egress, resources

    @abstractmethod
    def tools(self, base: str) -> Mapping[str, str]:
        """Versions of the tools that the base has, by name, and `SITE_PACKAGES`. Blocking."""

    @abstractmethod
    def lacking(self, tool: str, advice: str) -> str:
        """A sentence about a tool that the base does not have."""

    @abstractmethod
    def why_no_apt(self) -> str | None:
        """What to tell who wants apt packages; None where the base is a root file system that apt may add to."""

    def claim(self, draft: Path, *, apt: bool) -> int:
        """Give the draft, and a copy of the base if `apt`, to the user that builds it; its uid. Blocking."""
        if apt:
            self.copy_base(draft)
        if os.geteuid() != 0:
            return os.geteuid()
        settings = self._settings
        uid = claim_uid(self._root, draft, first=settings.uid_first, count=settings.uid_count)
        for name in (each for each in os.listdir(draft) if each != UID_CLAIM):
            run_program("chown", "-R", "-h", f"{uid}:{uid}", str(draft / name))
        return uid

    def copy_base(self, draft: Path) -> None:
        """Put a copy of the base into the draft, for apt to add to. Blocking."""
        raise NotImplementedError

    def release(self, draft: Path, uid: int) -> None:
        """Let the user go that the draft was given to, before the draft is removed. Blocking."""
        give_back_uid(self._root, draft, uid)

    @asynccontextmanager
    async def network(self, draft: Path, uid: int) -> AsyncGenerator[Mapping[str, str]]:
        """A way to the package managers and nowhere else while it is open; the variables that lead there."""
        key, policy = f"layer {draft.name}", EgressPolicy(endpoints=self._egress.package_managers.endpoints)
        await self._egress.attach(key, draft / "egress", uid, policy)
        try:
            yield self.way_out(draft).variables
        finally:
            await self._egress.detach(key)

    def way_out(self, draft: Path) -> WayOut:
        """What is put into a build so that it finds the package managers. Blocking."""
        egress = self._egress
        return way_out(draft / "egress", egress.ca_file, egress.package_managers, egress.manager_files)

    @abstractmethod
    def start(
        self, argv: Sequence[str], draft: Path, environment: Mapping[str, str], *, uid: int, base: str, apt: bool
    ) -> Command:
        """Start a command over the draft, enclosed. Blocking; it may die with the calling thread."""

    def command(self, python: str, argv: Sequence[str], *, networked: bool = True, at_door: bool = False) -> list[str]:
        """`argv` with what surrounds it inside: see `daemon/building.py`."""
        way_out = {"egress_port": PORT, "egress_socket": SOCKET if networked else ""}
        json = msgspec.json.encode({"resources": self._resources, "at_door": at_door, **way_out}).decode()
        return [python, "-I", "-S", "-c", RUN_DAEMON % "building", LIBRARY, json, *argv]

    def explain(self, base: str) -> Iterator[Fact]:
        """What can be installed, for `corral doctor`. Blocking."""
        try:
            tools = self.tools(base)
        except SandboxUnavailable as error:
            yield Fact("package managers", False, error.message)
            return
        for name, manager in TABLE.items():
            missing = [tool for tool in manager.tools if tool not in tools]
            versions = ", ".join(tools.get(tool, "") for tool in manager.tools)
            if name != "apt" or self.why_no_apt() is None:
                yield Fact(
                    f"{name} packages", True, f"none, no {missing[0]}: {manager.advice}" if missing else versions
                )


def answer(said: str) -> Mapping[str, str]:
    """What `QUESTION` says, by tool."""
    lines = (line.split("\t", 1) for line in said.splitlines() if "\t" in line)
    return {name: version for name, version in lines if name in _ASKED}


def run_program(program: str, *arguments: str) -> None:
    """Run one of the machine's own programs. Raises `PackagesFailed`."""
    path = shutil.which(program) or f"/bin/{program}"
    done = subprocess.run([path, *arguments], capture_output=True, timeout=OWN_SECONDS_MAX, check=False)
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip()[-500:]
        raise PackagesFailed(f"The place for a build could not be made: {said}")
