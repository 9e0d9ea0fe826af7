"""What sandboxes see as their system: the machine's own /usr, or a root file system of its own.

    <root>/bases/<name>     made by `corral base build` or `corral base import`; changed by nobody afterwards

Here they are found, made and listed; mounting one is a backend's part. Blocking.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from corral.errors import Invalid, MachineUnfit
from corral.sandboxes.directory import remove_tree
from corral.sandboxes.packages.layers import seal

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
BOOTSTRAPPED = ("apt", "bash", "ca-certificates", "findutils", "git", "grep", "procps", "python3", "python3-pip", "sed")
"""What a base is made with, beside its distribution's minimum."""
NEEDED = ("etc", "usr/bin/bash", "usr/bin/env", "usr/bin/python3")


class Base(NamedTuple):
    """One base."""

    path: Path
    """A directory with `usr`, `etc` and so on; `/` for the machine's own."""

    @property
    def is_host(self) -> bool:
        """Whether it is the machine's own."""
        return self.path == Path("/")

    def identity(self) -> str:
        """Changes when the base does, tools aside: its release and, for one of its own, its list of packages."""
        digest = hashlib.sha256(b"host" if self.is_host else str(self.path).encode())
        names = ("etc/os-release", "usr/lib/os-release", *(() if self.is_host else ("var/lib/dpkg/status",)))
        for name in names:
            path = self.path / name
            digest.update(path.read_bytes() if path.is_file() else b"-")
        return digest.hexdigest()


HOST = Base(Path("/"))


def find(root: Path, configured: str | None) -> Base:
    """The base that the settings name, below `root` or anywhere. Raises `MachineUnfit`."""
    if configured is None:
        return HOST
    path = root / "bases" / configured if NAME.fullmatch(configured) else Path(configured).expanduser().absolute()
    if problem := unfit(path):
        raise MachineUnfit(
            f"The sandbox's base `{configured}` cannot be used: {problem}. `corral base list` shows what there is."
        )
    return Base(path)


def unfit(path: Path) -> str | None:
    """Why a directory is no base; None when it may be one."""
    if not path.is_dir():
        return f"there is no {path}"
    # Its links lead to places below it, once it is the root; so they are not followed here.
    missing = [name for name in NEEDED if not os.path.lexists(path / name)]
    return f"it has no {', '.join('/' + name for name in missing)}" if missing else None


class Bases:
    """The bases below one root."""

    def __init__(self, root: Path) -> None:
        self._directory = root / "bases"

    def list(self) -> list[tuple[str, str]]:
        """Name and release of each."""
        found = sorted(self._directory.iterdir()) if self._directory.is_dir() else []
        return [(place.name, _release(place)) for place in found if NAME.fullmatch(place.name)]

    def bootstrap(self, name: str, suite: str, mirror: str | None, packages: Sequence[str]) -> Path:
        """A new base, made by the distribution's own tool, which says on this process's stderr how far it is.

        Raises `MachineUnfit` when there is no tool or it fails, and `Invalid` for a name that cannot be."""
        self._check(name)
        tool = shutil.which("mmdebstrap")
        if tool is None:
            raise MachineUnfit(
                "A base is made by `mmdebstrap`, which is not installed: `apt install mmdebstrap`. Or make a root file "
                "system elsewhere (`docker export` gives one) and `corral base import FILE.tar`."
            )
        with tempfile.TemporaryDirectory(prefix="corral-base-") as scratch:
            tar = Path(scratch) / "base.tar"
            include = ",".join((*BOOTSTRAPPED, *packages))
            command = [tool, "--variant=minbase", f"--include={include}", "--", suite, str(tar)]
            done = subprocess.run([*command, *([mirror] if mirror else [])], check=False)
            if done.returncode:
                raise MachineUnfit(f"mmdebstrap failed with exit code {done.returncode}; what it said is above.")
            return self.unpack(name, tar)

    def unpack(self, name: str, tar: Path) -> Path:
        """A new base from a tar of a root file system, compressed or not; whole or not at all.

        Raises `MachineUnfit` when the tar cannot be read or holds no base, and `Invalid` for a name that cannot be."""
        self._check(name)
        self._directory.mkdir(parents=True, exist_ok=True)
        for place in (self._directory.parent, self._directory):
            place.chmod(0o711 if os.geteuid() == 0 else 0o700)
        draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=self._directory))
        try:
            _extract(tar, draft)
            if problem := unfit(draft):
                raise MachineUnfit(f"{tar} is no base: {problem.replace(str(draft), tar.name)}.")
            seal(draft)
            draft.rename(self._directory / name)
        except OSError as error:
            raise MachineUnfit(f"{tar} cannot be made a base: {error}") from error
        finally:
            remove_tree(draft)
        return self._directory / name

    def _check(self, name: str) -> None:
        if not NAME.fullmatch(name):
            raise Invalid(f"`{name}` cannot be a base's name: lower case letters, digits, `.`, `_` and `-`.")
        if (self._directory / name).exists():
            raise Invalid(f"There is a base `{name}` already, and sandboxes may be using it. Choose another name.")


def _extract(tar: Path, place: Path) -> None:
    """By the machine's own tar: it knows every compression, and lets no name or link lead out of `place`."""
    program = shutil.which("tar")
    if program is None:
        raise MachineUnfit("A base is unpacked by `tar`, which is not installed.")
    if not tar.is_file():
        raise MachineUnfit(f"There is no {tar}.")
    # Devices need root to be made, and no base needs any.
    left_out = ("--exclude=./dev/*", "--exclude=dev/*")
    command = [program, "--extract", "--file", str(tar), "--directory", str(place), "--no-same-owner", *left_out]
    done = subprocess.run(command, check=False, capture_output=True)
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()[-3:]
        raise MachineUnfit(f"{tar} cannot be unpacked: {' '.join(said)}")


def _release(base: Path) -> str:
    """What a base calls itself."""
    for name in ("etc/os-release", "usr/lib/os-release"):
        path = base / name
        if path.is_file():
            found = re.search(r'^PRETTY_NAME="?([^"\n]*)', path.read_text("utf-8", "replace"), re.MULTILINE)
            return found[1] if found else "unknown"
    return "unknown"
