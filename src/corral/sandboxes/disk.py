"""How much disk the sandboxes of one server use, found out cheaply; and how little the host has left.

No quota or image file works for every user on every file system, so the server counts. Counting a tree is dear, and
asking the file system what is free costs microseconds: as long as less has gone from it since the last count than a
sandbox may still write, the sandbox cannot be over its limit, whoever wrote. Only otherwise is it counted again. What
follows from being over is in `limited.py`.

A count is of blocks, not of lengths, and includes what is deleted but still open or mapped. Only bytes in files whose
descriptors are on their way through a socket are missed; the floor under the host's free space is there for those.
"""

from __future__ import annotations

import os
import re
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

BLOCK_BYTES = 512
COUNT_SECONDS_MAX = 60.0
FIRST_COUNT_SECONDS = 1.0
PIECE_BYTES = 64 * 1024
DENIED = b"Permission denied"
MAPPED_AND_DELETED = re.compile(
    rb"^([0-9a-f]+)-([0-9a-f]+) \S+ \S+ ([0-9a-f]+):([0-9a-f]+) (\d+) .* \(deleted\)$", re.M
)


class Space(NamedTuple):
    """Bytes and files: what is free, used, or allowed."""

    bytes: int
    files: int

    def __sub__(self, other: Space) -> Space:
        return Space(self.bytes - other.bytes, self.files - other.files)

    def within(self, limit: Space) -> bool:
        """Whether neither is over its limit."""
        return self.bytes <= limit.bytes and self.files <= limit.files


def free(place: Path) -> Space:
    """What is left for ordinary users where `place` is."""
    about = os.statvfs(place)
    # Some file systems have no fixed number of files and report none at all.
    return Space(about.f_bavail * about.f_frsize, about.f_favail if about.f_files else 1 << 62)


class Account:
    """What one sandbox uses. Blocking, but for `suspect`."""

    def __init__(self, files: Path, limit: Space) -> None:
        self._files, self.limit = files, limit
        self.used = Space(0, 0)
        """By the last count; nothing before the first, which is put off a little: most sandboxes are new and empty."""
        self._free_then = free(files)
        self._first_count_at: float | None = time.monotonic() + FIRST_COUNT_SECONDS

    def suspect(self, free_now: Space, ceiling: Space) -> bool:
        """Whether it may be over the ceiling, by what has gone from the file system since it was counted."""
        if self._first_count_at is not None and time.monotonic() > self._first_count_at:
            return True
        return not (self._free_then - free_now).within(ceiling - self.used)

    def count(self, daemon: int | None) -> Space:
        """Count anew. `daemon` is the host's number of the sandbox's first process, if it runs."""
        free_before = free(self._files)
        counted = _count(self._files)
        if counted is None:
            # It hides something from us, as an ordinary user can: assume that all that has gone went there.
            gone = self._free_then - free_before
            counted = Space(self.used.bytes + max(0, gone.bytes), self.used.files + max(0, gone.files))
        unlinked = sum(_unlinked(self._files.stat().st_dev, daemon)) if daemon is not None else 0
        self.used = Space(counted.bytes + unlinked, counted.files)
        self._free_then, self._first_count_at = free_before, None
        return self.used


def _count(place: Path) -> Space | None:
    """Bytes and files below `place`; None when not all of it could be seen.

    `du` never follows a link, however the tree changes meanwhile, and does not mind how deep it is.
    """
    numbers: list[int] = []
    for unit in ("--block-size=1", "--inodes"):
        try:
            words = _said(["env", "LC_ALL=C", "du", "--summarize", "--one-file-system", unit, "--", str(place)])
        except OSError:
            return None
        if not words:
            return None
        numbers.append(int(words[0]))
    return Space(*numbers)


def _said(command: list[str]) -> list[bytes]:
    """What `du` answers; nothing when it was denied something or took too long.

    Its complaints are looked through and not kept: each names a whole path, of any length, and there may be one for
    each directory."""
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        patience = threading.Timer(COUNT_SECONDS_MAX, process.kill)
        patience.start()
        try:
            assert process.stdout is not None and process.stderr is not None
            seen = b""
            while piece := process.stderr.read(PIECE_BYTES):
                seen = seen[-len(DENIED) :] + piece
                # A file that goes while we count is no reason for distrust; a directory that is closed to us is.
                if DENIED in seen:
                    process.kill()
                    return []
            answer = process.stdout.read(PIECE_BYTES).split()
            return answer if process.wait() >= 0 else []
        finally:
            patience.cancel()


def _unlinked(device: int, daemon: int) -> Iterator[int]:
    """The sizes of files on this device that have no name any more and live on in the sandbox's processes."""
    seen: set[int] = set()
    mapped: dict[int, int] = {}
    for pid in _family(daemon):
        for about in _opened(pid):
            if about.st_dev == device and not about.st_nlink and about.st_ino not in seen:
                seen.add(about.st_ino)
                yield about.st_blocks * BLOCK_BYTES
        for major, minor, inode, size in _mapped(pid):
            if os.makedev(major, minor) == device:
                mapped[inode] = max(mapped.get(inode, 0), size)
    yield from (size for inode, size in mapped.items() if inode not in seen)


def _opened(pid: int) -> Iterator[os.stat_result]:
    try:
        names = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return
    for name in names:
        try:
            # Asks about what is open, without opening it.
            about = os.stat(f"/proc/{pid}/fd/{name}")
        except OSError:
            continue
        if stat.S_ISREG(about.st_mode):
            yield about


def _mapped(pid: int) -> Iterator[tuple[int, int, int, int]]:
    """Device, inode and size of each mapping of a deleted file."""
    try:
        text = Path(f"/proc/{pid}/maps").read_bytes()
    except OSError:
        return
    for first, last, major, minor, inode in MAPPED_AND_DELETED.findall(text):
        yield int(major, 16), int(minor, 16), int(inode), int(last, 16) - int(first, 16)


def _family(daemon: int) -> list[int]:
    """The daemon and all that runs in the sandbox: as its first process it inherits every orphan."""
    children: dict[int, list[int]] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            fields = Path(f"/proc/{name}/stat").read_bytes().rpartition(b")")[2].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(name))
    found = [daemon]
    for pid in found:
        found.extend(children.get(pid, ()))
    return found
