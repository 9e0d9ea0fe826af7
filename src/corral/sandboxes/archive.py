"""A sandbox's files as one compressed tar: the program that packs and unpacks them, in a process of its own.

Both sides are hostile. What is packed was made by code that nobody read, and what is unpacked may have been tampered
with. So the process first becomes the sandbox's own user, for whom nothing is within reach that the sandbox had not
already; and it still goes from an open directory to a name in it, never along a path, follows no link, opens nothing
that is there already, and counts what it reads and writes.

Format: zstd over tar with pax headers (names as bytes, times in nanoseconds, GNU sparse 1.0), readable by any tar.
Regular files, directories, symbolic and hard links with their modes and times; no owners, devices, pipes or sockets.
It is started by `packing.py`, imports nothing of Corral, and says what went wrong on its standard error.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import stat
import sys
import tarfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
BLOCK_BYTES = 512
PIECE_BYTES = 256 * 1024
LEVEL = 1
"""Three times as fast as zlib at a better ratio; waiting for a restore costs more than the bytes."""
DEPTH_MAX = 500
SEGMENTS_MAX = 10_000
"""Of one sparse file; what lies behind is packed as if it were full."""
SPARSE_BYTES_MAX = 4 * 1024 * 1024 * 1024
"""A sparse file with more data is packed as if it were full: its size would not fit into the plain header, and readers
take the longer header's for the size with all holes."""
MEMORY_BYTES_MAX = 1024 * 1024 * 1024
NANOSECONDS = 1_000_000_000


class Readable(Protocol):
    """Where an archive comes from."""

    def read(self, size: int, /) -> bytes:
        """Up to so many bytes; none at the end."""
        ...


class Writable(Protocol):
    """Where an archive goes."""

    def write(self, data: bytes, /) -> object:
        """All of it."""
        ...


class Refused(Exception):
    """This cannot be packed or unpacked, whoever tries."""


class Budget:
    """Counts names and bytes down, and raises `Refused` when there are too many."""

    def __init__(self, names_max: int, bytes_max: int) -> None:
        self._names, self._bytes = names_max, bytes_max

    def name(self) -> None:
        """One more name."""
        self._names -= 1
        if self._names < 0:
            raise Refused("too many files")

    def data(self, size: int) -> None:
        """So many bytes more."""
        self._bytes -= size
        if self._bytes < 0:
            raise Refused("too many bytes")


class Segment(NamedTuple):
    """A part of a sparse file that has data."""

    offset: int
    size: int


# -------------------------------------------------------------------------------------------------- packing


class Packer:
    """Writes trees below one directory into a tar."""

    def __init__(self, target: Writable, budget: Budget) -> None:
        self._target, self._budget = target, budget
        self._linked: dict[tuple[int, int], str] = {}
        """Where files with several names were packed first."""

    def tree(self, folder: int, name: str, path: str, depth: int = 0) -> None:
        """Pack what `name` in `folder` is, and all below it, as `path`."""
        if depth > DEPTH_MAX:
            raise Refused("directories are nested too deep")
        about = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if not (stat.S_ISDIR(about.st_mode) or stat.S_ISREG(about.st_mode) or stat.S_ISLNK(about.st_mode)):
            return
        self._budget.name()
        header = _header(path, about)
        known = self._linked.get((about.st_dev, about.st_ino))
        if known is not None and not stat.S_ISDIR(about.st_mode):
            header.type, header.linkname = tarfile.LNKTYPE, known
            self._put(header)
            return
        if about.st_nlink > 1 and not stat.S_ISDIR(about.st_mode):
            self._linked[about.st_dev, about.st_ino] = path
        if stat.S_ISLNK(about.st_mode):
            header.type, header.linkname = tarfile.SYMTYPE, os.readlink(name, dir_fd=folder)
            self._put(header)
        elif stat.S_ISREG(about.st_mode):
            with _opened(folder, name, FILE, about) as descriptor:
                self._file(descriptor, header, about)
        else:
            header.type = tarfile.DIRTYPE
            self._put(header)
            with _opened(folder, name, DIRECTORY, about) as inner:
                for below in sorted(os.listdir(inner)):
                    self.tree(inner, below, f"{path}/{below}", depth + 1)

    def _put(self, header: tarfile.TarInfo) -> None:
        self._target.write(header.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"))

    def _file(self, descriptor: int, header: tarfile.TarInfo, about: os.stat_result) -> None:
        segments = [Segment(0, about.st_size)]
        table = b""
        found = list(_segments(descriptor, about.st_size)) if about.st_blocks * BLOCK_BYTES < about.st_size else []
        if found and sum(segment.size for segment in found) < SPARSE_BYTES_MAX:
            segments = found
            numbers = [len(segments), *(number for segment in segments for number in segment)]
            table = _padded("".join(f"{number}\n" for number in numbers).encode())
            header.pax_headers = {
                **header.pax_headers,
                "GNU.sparse.major": "1",
                "GNU.sparse.minor": "0",
                "GNU.sparse.name": header.name,
                "GNU.sparse.realsize": str(about.st_size),
            }
        header.size = len(table) + sum(segment.size for segment in segments)
        self._put(header)
        self._target.write(table)
        for segment in segments:
            self._copy(descriptor, segment)
        self._target.write(bytes(-header.size % BLOCK_BYTES))

    def _copy(self, descriptor: int, segment: Segment) -> None:
        self._budget.data(segment.size)
        offset, end = segment.offset, segment.offset + segment.size
        while offset < end:
            piece = os.pread(descriptor, min(PIECE_BYTES, end - offset), offset)
            if not piece:
                raise Refused("a file became shorter")
            offset += len(piece)
            self._target.write(piece)


def _header(path: str, about: os.stat_result) -> tarfile.TarInfo:
    header = tarfile.TarInfo(path)
    header.mode = stat.S_IMODE(about.st_mode)
    header.mtime = about.st_mtime_ns // NANOSECONDS
    header.pax_headers = {"mtime": f"{header.mtime}.{about.st_mtime_ns % NANOSECONDS:09d}"}
    return header


@contextmanager
def _opened(folder: int, name: str, flags: int, about: os.stat_result) -> Generator[int]:
    """A descriptor of what `about` was told of, however it denies itself to its own user."""
    try:
        descriptor = os.open(name, flags, dir_fd=folder)
    except PermissionError:
        descriptor = _open_denied(folder, name, flags, about)
    try:
        if os.fstat(descriptor).st_ino != about.st_ino:
            raise Refused("a file was replaced")
        yield descriptor
    finally:
        # Permissions are content too: what was lifted to read it is put back.
        if os.fstat(descriptor).st_mode != about.st_mode:
            os.fchmod(descriptor, stat.S_IMODE(about.st_mode))
        os.close(descriptor)


def _open_denied(folder: int, name: str, flags: int, about: os.stat_result) -> int:
    """Open it with permissions that its owner may give himself."""
    handle = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        if os.fstat(handle).st_ino != about.st_ino:
            raise Refused("a file was replaced")
        os.chmod(f"/proc/self/fd/{handle}", stat.S_IMODE(about.st_mode) | 0o700)
        return os.open(name, flags, dir_fd=folder)
    finally:
        os.close(handle)


def _segments(descriptor: int, size: int) -> Iterator[Segment]:
    """Where the data is. Ends with an empty segment, as tar's readers expect."""
    start = 0
    for _ in range(SEGMENTS_MAX):
        try:
            start = os.lseek(descriptor, start, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            break
        end = min(os.lseek(descriptor, start, os.SEEK_HOLE), size)
        yield Segment(start, end - start)
        start = end
    else:
        yield Segment(start, size - start)
    yield Segment(size, 0)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK_BYTES)


# ------------------------------------------------------------------------------------------------ unpacking


class Unpacker:
    """Makes files below one directory, in which nothing has the given names yet."""

    def __init__(self, root: int, names: frozenset[str], budget: Budget) -> None:
        self._root, self._names, self._budget = root, names, budget
        self._open: list[tuple[str, int]] = []
        """The directory that was used last, as the way there."""
        self._directories: list[tarfile.TarInfo] = []

    def take(self, archive: tarfile.TarFile) -> None:
        """Unpack all of it. Raises `Refused`."""
        for member in archive:
            known: Any = archive  # the stubs lack `members`
            known.members.clear()  # or it would keep them all
            self._budget.name()
            *parents, name = _parts(member.name, self._names)
            folder = self._walk(parents)
            if member.isdir():
                os.mkdir(name, 0o700, dir_fd=folder)
                self._directories.append(member)
            elif member.issym():
                os.symlink(member.linkname, name, dir_fd=folder)
                os.utime(name, ns=_times(member), dir_fd=folder, follow_symlinks=False)
            elif member.islnk():
                self._link(member, folder, name)
            elif member.isreg() or member.sparse is not None:
                self._file(archive, member, folder, name)
            else:
                raise Refused("the archive holds what is no file")
        # Last, and inner ones first: making something in a directory changes its time, and needs its permissions.
        for member in reversed(self._directories):
            descriptor = self._walk(_parts(member.name, self._names))
            os.fchmod(descriptor, stat.S_IMODE(member.mode))
            os.utime(descriptor, ns=_times(member))
        self._walk([])

    def _walk(self, parts: list[str]) -> int:
        """A descriptor of a directory; only of real ones, one step at a time."""
        common = 0
        while common < min(len(parts), len(self._open)) and self._open[common][0] == parts[common]:
            common += 1
        while len(self._open) > common:
            os.close(self._open.pop()[1])
        for part in parts[common:]:
            folder = self._open[-1][1] if self._open else self._root
            self._open.append((part, os.open(part, DIRECTORY, dir_fd=folder)))
        return self._open[-1][1] if self._open else self._root

    def _link(self, member: tarfile.TarInfo, folder: int, name: str) -> None:
        *parents, source = _parts(member.linkname, self._names)
        here = os.dup(folder)  # walking elsewhere may close it
        try:
            there = self._walk(parents)
            os.link(source, name, src_dir_fd=there, dst_dir_fd=here, follow_symlinks=False)
        finally:
            os.close(here)

    def _file(self, archive: tarfile.TarFile, member: tarfile.TarInfo, folder: int, name: str) -> None:
        source: Any = archive.fileobj  # the stubs lack `seek` in streams
        descriptor = os.open(name, NEW_FILE, 0o600, dir_fd=folder)
        try:
            source.seek(member.offset_data)
            sparse: Any = member.sparse  # the stubs say int; it is pairs
            segments: list[tuple[int, int]] = [(0, member.size)] if sparse is None else sparse
            for offset, size in segments:
                self._budget.data(size)
                _fill(source, descriptor, Segment(offset, size))
            os.ftruncate(descriptor, member.size)
            os.fchmod(descriptor, stat.S_IMODE(member.mode))
            os.utime(descriptor, ns=_times(member))
        finally:
            os.close(descriptor)


def _fill(source: Readable, descriptor: int, segment: Segment) -> None:
    offset, left = segment
    while left:
        piece = source.read(min(PIECE_BYTES, left))
        if not piece:
            raise Refused("the archive is too short")
        left -= len(piece)
        while piece:
            written = os.pwrite(descriptor, piece, offset)
            offset += written
            piece = piece[written:]


def _parts(path: str, names: frozenset[str]) -> list[str]:
    parts = path.split("/")
    if parts[0] not in names or len(parts) > DEPTH_MAX + 2 or any(part in ("", ".", "..") for part in parts):
        raise Refused("the archive holds a path that leads elsewhere")
    return parts


def _times(member: tarfile.TarInfo) -> tuple[int, int]:
    seconds, _, fraction = member.pax_headers.get("mtime", str(int(member.mtime))).partition(".")
    time = int(seconds) * NANOSECONDS + int((fraction + "0" * 9)[:9])
    return time, time


# -------------------------------------------------------------------------------------------------- program


class Task:
    """What is to be done: the fields of the JSON argument."""

    action: str
    directory: str
    names: list[str]
    uid: int
    names_max: int
    bytes_max: int

    def __init__(self, text: str) -> None:
        self.__dict__.update(json.loads(text))


def main() -> None:
    """Pack to standard output, or unpack from standard input."""
    task = Task(sys.argv[1])
    sys.setrecursionlimit(4 * DEPTH_MAX + 1_000)
    os.umask(0)
    os.nice(5)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES_MAX, MEMORY_BYTES_MAX))
    root = os.open(task.directory, DIRECTORY)
    if os.geteuid() != task.uid:
        os.setgroups([])
        os.setresgid(task.uid, task.uid, task.uid)
        os.setresuid(task.uid, task.uid, task.uid)
    budget = Budget(task.names_max, task.bytes_max)
    try:
        if task.action == "pack":
            _pack(root, task.names, budget)
        else:
            _unpack(root, frozenset(task.names), budget)
    except (Refused, OSError, EOFError, ValueError, MemoryError, tarfile.TarError, zstd.ZstdError) as error:
        sys.exit(f"{type(error).__name__}: {error}"[:500])


def _pack(root: int, names: list[str], budget: Budget) -> None:
    with zstd.open(sys.stdout.buffer, "wb", level=LEVEL) as target:
        packer = Packer(target, budget)
        for name in names:
            packer.tree(root, name, name)
        target.write(bytes(2 * BLOCK_BYTES))
    sys.stdout.buffer.flush()


def _unpack(root: int, names: frozenset[str], budget: Budget) -> None:
    with (
        zstd.open(sys.stdin.buffer, "rb") as source,
        tarfile.open(fileobj=source, mode="r|", bufsize=PIECE_BYTES, errors="surrogateescape") as archive,
    ):
        Unpacker(root, names, budget).take(archive)
        while source.read(PIECE_BYTES):  # to the end, so that whoever writes can finish
            pass


if __name__ == "__main__":
    main()
