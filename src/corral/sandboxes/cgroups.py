"""Memory, CPU and process limits of whole sandboxes, by the kernel's cgroups: version 2, or the older 1.

Groups are named `corral/<digest of the sandbox root>/<session>`. A root server makes them at the top of the
hierarchy, because a sandbox outlives the server and whatever group that was started in; any other user makes them in
the highest group above the server that was delegated to it (by systemd, for instance). Where none is writable there
are only the limits per process that `bubblewrap.py` sets, and `corral doctor` says so. Freezing is here too, since
it is done by the same groups. Blocking; called from worker threads.

Source: Documentation/admin-guide/cgroup-v1 and cgroup-v2.rst of Linux.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

from corral.config_sections import SandboxSettings
from corral.errors import SandboxUnavailable

TOP = "corral"
CONTROLLERS = ("memory", "pids", "cpu")
CPU_PERIOD_MICROSECONDS = 100_000
FREEZE_SECONDS_MAX = 5.0
FREEZE_POLL_SECONDS = 0.001
REMOVE_SECONDS_MAX = 5.0
ATTEMPTS_MAX = 100
THREADS_OF_OURS = 2
"""bwrap itself, which waits outside, and the daemon's reserve; not charged to what an agent may start."""


class Limits(NamedTuple):
    """What one sandbox may use, all its processes together."""

    memory_bytes: int
    processes: int
    cpus: float

    @classmethod
    def of(cls, settings: SandboxSettings) -> Limits:
        """Those of the settings."""
        return cls(settings.memory_bytes_max, settings.processes_max, settings.cpus_max)

    def values(self, controller: str, *, old: bool) -> Iterator[tuple[str, str, bool]]:
        """The files to write for a controller, with their values, and whether the kernel may lack the file."""
        if controller == "memory" and old:
            yield "memory.limit_in_bytes", str(self.memory_bytes), False
            # Memory and swap together: the same limit means no swap.
            yield "memory.memsw.limit_in_bytes", str(self.memory_bytes), True
        elif controller == "memory":
            yield "memory.max", str(self.memory_bytes), False
            yield "memory.swap.max", "0", True
        elif controller == "pids":
            yield "pids.max", str(self.processes + THREADS_OF_OURS), False
        elif controller == "cpu" and old:
            yield "cpu.cfs_period_us", str(CPU_PERIOD_MICROSECONDS), False
            yield "cpu.cfs_quota_us", str(self._quota()), False
        elif controller == "cpu":
            yield "cpu.max", f"{self._quota()} {CPU_PERIOD_MICROSECONDS}", False

    def _quota(self) -> int:
        return max(1_000, round(self.cpus * CPU_PERIOD_MICROSECONDS))


class Group:
    """The cgroup of one sandbox: in version 1 a directory for each controller, in version 2 one for all."""

    def __init__(self, places: Mapping[str, Path], limits: Limits, *, old: bool) -> None:
        self._places, self._limits, self._old = places, limits, old
        """Places by controller; `freezer` is one of them in both versions."""

    def make(self) -> None:
        """Create it with its limits. What an earlier sandbox of the session left is made anew. Raises
        `SandboxUnavailable`."""
        self._rmdir()
        self._do(self._create)

    def _create(self) -> None:
        for controller, place in self._places.items():
            place.mkdir(parents=True, exist_ok=True)
            for name, value, optional in self._limits.values(controller, old=self._old):
                if not optional or (place / name).exists():
                    _write(place / name, value)

    def put(self, *pids: int) -> None:
        """Move processes into it; what they start from now on is in it too. A process that is gone is an error. Raises
        `SandboxUnavailable`."""
        for pid in pids:
            for place in self._distinct():
                self._do(partial(_write, place / "cgroup.procs", str(pid)))

    def _do(self, step: Callable[[], None]) -> None:
        """Servers that start, and others who share the group, take away what they find empty: then it is made again."""
        for attempt in range(1, ATTEMPTS_MAX + 1):
            try:
                return step()
            except OSError as error:
                if not _is_gone(error) or attempt == ATTEMPTS_MAX:
                    raise SandboxUnavailable(f"The sandbox's limits could not be set: {error}") from error
            with suppress(OSError):  # if it cannot be made, the step shows why
                self._create()

    def take_over(self, former: Group) -> None:
        """Hold what `former` holds, with the same limits, and be there in its place. Nothing in it may be starting
        others meanwhile."""
        self._rmdir()
        try:
            for old, new in zip(former._distinct(), self._distinct(), strict=True):
                old.rename(new)
        except OSError:
            # Version 2 gives no group another name.
            self.make()
            self.put(*{*former.processes(), *self.processes()})
            former.remove_if_empty()

    def oom_kills(self) -> int:
        """How often the kernel has ended a process of it for want of memory."""
        place = self._places.get("memory")
        if place is None:
            return 0
        return _field(place / ("memory.oom_control" if self._old else "memory.events"), "oom_kill")

    def processes(self) -> list[int]:
        """Those in it, as the host numbers them."""
        try:
            text = (self._distinct()[0] / "cgroup.procs").read_text(encoding="ascii")
        except OSError:
            return []
        return [int(pid) for pid in text.split()]

    def can_freeze(self) -> bool:
        """Whether `freeze` and `thaw` do anything here."""
        return "freezer" in self._places

    def freeze(self) -> None:
        """Stop everything in it where it stands. It can be killed in version 1 only after `thaw`."""
        self._set_frozen("1", "FROZEN")

    def thaw(self) -> None:
        """Let everything in it go on. Harmless when nothing is frozen or there is no group."""
        self._set_frozen("0", "THAWED")

    def _set_frozen(self, new: str, old: str) -> None:
        place = self._places.get("freezer")
        if place is None:
            return
        try:
            self._write_frozen(place, new, old)
        except OSError as error:
            # Its last process has ended, and the group with it.
            if not _is_gone(error):
                raise

    def _write_frozen(self, place: Path, new: str, old: str) -> None:
        _write(place / ("freezer.state" if self._old else "cgroup.freeze"), old if self._old else new)
        deadline = time.monotonic() + FREEZE_SECONDS_MAX
        while not self._is(place, new, old):
            if time.monotonic() > deadline:
                raise SandboxUnavailable("The sandbox does not stop or go on when the kernel is told so.")
            time.sleep(FREEZE_POLL_SECONDS)

    def _is(self, place: Path, new: str, old: str) -> bool:
        if self._old:
            return (place / "freezer.state").read_text(encoding="ascii").strip() == old
        return _field(place / "cgroup.events", "frozen") == int(new)

    def remove(self) -> None:
        """Remove it; what is in it must have been killed. Never raises: an empty group that stays is reaped later."""
        deadline = time.monotonic() + REMOVE_SECONDS_MAX
        # The last of a process goes a moment after its death is known.
        while not self._rmdir() and time.monotonic() < deadline:
            time.sleep(FREEZE_POLL_SECONDS)

    def remove_if_empty(self) -> None:
        """Remove it unless something is in it. Never raises and never waits."""
        self._rmdir()

    def _rmdir(self) -> bool:
        return all(_rmdir(place) for place in self._distinct())

    def _distinct(self) -> list[Path]:
        return list(dict.fromkeys(self._places.values()))


class Cgroups:
    """Where this server makes the groups of its sandboxes. Made by `find`."""

    def __init__(self, bases: Mapping[str, Path], *, old: bool) -> None:
        self._bases, self.old = bases, old
        self.controllers = [name for name in CONTROLLERS if name in bases]
        """Those whose limits are in force."""

    def group(self, session: str, limits: Limits) -> Group:
        """The group of a session, whether it exists or not."""
        return Group({name: base / session for name, base in self._bases.items()}, limits, old=self.old)

    def reap(self) -> None:
        """Remove what dead sandboxes of this and of other servers have left: groups without a process."""
        for base in set(self._bases.values()):
            for server in _subdirectories(base.parent):
                for session in _subdirectories(server):
                    _rmdir(session)
                if server != base:
                    _rmdir(server)

    def remove(self) -> None:
        """Remove this server's own place when it is empty and would be made again by itself."""
        for base in set(self._bases.values()):
            if self.old or not self.controllers:
                _rmdir(base)
                _rmdir(base.parent)

    def missing(self) -> list[str]:
        """The limits that cannot be set here."""
        return [name for name in CONTROLLERS if name not in self.controllers]


def find(root: Path) -> Cgroups | None:
    """What this machine lets us use, after a trial; None when that is nothing. `root` is where sandboxes are kept."""
    digest = hashlib.sha256(os.fsencode(root.absolute())).hexdigest()[:12]
    for found in (version_2(digest), version_1(digest)):
        works = found is not None and bool(found.controllers) and _works(found)
        if found is not None:
            found.reap()
            found.remove()
        if works:
            return found
    return None


def _works(found: Cgroups) -> bool:
    """Whether a process of ours can be moved into a group with limits."""
    group = found.group(f"trial-{secrets.token_hex(8)}", Limits(1 << 28, 16, 1.0))
    try:
        group.make()
        # It waits for the end of its input, which is us.
        with subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE, env={}) as process:
            group.put(process.pid)
    except (OSError, SandboxUnavailable):
        return False
    finally:
        group.remove()
    return True


def version_1(digest: str) -> Cgroups | None:
    """A hierarchy for each controller; None when none is writable."""
    if os.geteuid() != 0:
        return None
    bases: dict[str, Path] = {}
    for controller, mount in _mounts("cgroup"):
        base = mount / TOP / digest
        if controller in (*CONTROLLERS, "freezer") and _mkdir(base):
            bases[controller] = base
    return Cgroups(bases, old=True) if bases else None


def version_2(digest: str) -> Cgroups | None:
    """The one hierarchy, with the controllers that are handed down to us, perhaps none; None when not writable."""
    mount = next((mount for _, mount in _mounts("cgroup2")), None)
    above = None if mount is None else _delegated(mount)
    if above is None:
        return None
    place = above
    for name in (TOP, digest):
        _enable(place)
        place = place / name
        if not _mkdir(place):
            return None
    _enable(place)
    enabled = _words(place / "cgroup.subtree_control")
    return Cgroups(
        {name: place for name in (*CONTROLLERS, "freezer") if name == "freezer" or name in enabled}, old=False
    )


def _delegated(mount: Path) -> Path | None:
    """The highest group in which we may make others and move our processes to them."""
    if os.geteuid() == 0:
        return mount if os.access(mount, os.W_OK) else None
    lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    own = next((line[3:] for line in lines if line.startswith("0::/")), "/")
    # Strictly above: a group with processes of its own cannot hand controllers down.
    above = list(reversed((mount / own.lstrip("/")).parents))
    inside = [place for place in above if place.is_relative_to(mount)]
    return next((place for place in inside if all(os.access(p, os.W_OK) for p in _switches(place))), None)


def _switches(place: Path) -> tuple[Path, ...]:
    return (place, place / "cgroup.procs", place / "cgroup.subtree_control")


def _enable(place: Path) -> None:
    """Hand down the controllers that are there; a kernel that refuses one leaves it out."""
    handed = _words(place / "cgroup.subtree_control")
    for name in CONTROLLERS:
        if name in _words(place / "cgroup.controllers") and name not in handed:
            try:
                _write(place / "cgroup.subtree_control", f"+{name}")
            except OSError:
                continue


def _mounts(kind: str) -> Iterator[tuple[str, Path]]:
    """Mounted hierarchies as (controller or "", where)."""
    for line in Path("/proc/self/mounts").read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        _, where, found, options = line.split(" ")[:4]
        if found == kind:
            for controller in options.split(",") if kind == "cgroup" else ("",):
                yield controller, Path(where)


def _mkdir(place: Path) -> bool:
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return True


def _is_gone(error: OSError) -> bool:
    """Another server that starts takes away what it finds empty."""
    return error.errno in (errno.ENOENT, errno.ENODEV)


def _rmdir(place: Path) -> bool:
    """Whether it is gone. The kernel refuses while anything is in it."""
    try:
        place.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _subdirectories(place: Path) -> list[Path]:
    try:
        return [Path(entry.path) for entry in os.scandir(place) if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []


def _words(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").split()
    except OSError:
        return []


def _field(path: Path, name: str) -> int:
    """A number from a file of `name number` lines; 0 when there is none."""
    words = _words(path)
    return int(words[words.index(name) + 1]) if name in words[:-1] else 0


def _write(path: Path, value: str) -> None:
    """One write, never creating a file: the kernel's groups are directories of its own files."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, value.encode("ascii"))
    finally:
        os.close(descriptor)
