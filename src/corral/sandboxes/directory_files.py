"""What passes between the server and a session's own directories: files put among its uploads, outputs taken out.

The outputs are hostile: whatever ran inside may have made links, pipes, endless trees and names that are not text, and
may change them while we look. So each step goes from an open directory to a name in it, never along a path, follows no
link, and takes regular files of the sandbox's own user only. The uploads are ours; inside, they are mounted read-only.
Blocking; called from worker threads.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress

import msgspec

from corral.domain.file import Output
from corral.errors import NotFound
from corral.sandboxes.directory import SessionDirectory

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
DEPTH_MAX = 32
ENTRIES_MAX = 20_000
"""Names that are looked at in one session's outputs."""


def outputs(directory: SessionDirectory) -> list[Output] | None:
    """The regular files in the outputs, sorted by path; None when there is no such directory."""
    try:
        root = _open_folder(directory, "outputs")
    except OSError:
        return None
    try:
        found = list(_files_under(root, b"", os.fstat(root).st_uid, [ENTRIES_MAX]))
        # What was removed while we looked only seemed to have fewer files.
        if os.lstat(directory.files / "outputs").st_ino != os.fstat(root).st_ino:
            return None
    except FileNotFoundError:
        return None
    finally:
        os.close(root)
    return sorted(found)


def _files_under(folder: int, prefix: bytes, owner: int, left: list[int]) -> Iterator[Output]:
    """`left` counts down the names that may still be looked at, for all levels together."""
    for name in os.listdir(folder):
        left[0] -= 1
        if left[0] < 0:
            return
        path = prefix + os.fsencode(name)
        with suppress(OSError):  # gone since, or closed to us
            about = os.stat(name, dir_fd=folder, follow_symlinks=False)
            if _is_output(about, owner):
                yield Output(path, about.st_size, _stamp(about))
            elif stat.S_ISDIR(about.st_mode) and path.count(b"/") < DEPTH_MAX:
                inner = os.open(name, DIRECTORY, dir_fd=folder)
                try:
                    yield from _files_under(inner, path + b"/", owner, left)
                finally:
                    os.close(inner)


def open_output(directory: SessionDirectory, path: bytes) -> int:
    """A descriptor of one output. Raises `NotFound` for all that is not one."""
    with ExitStack() as opened:
        try:
            folder = _open_folder(directory, "outputs")
            opened.callback(os.close, folder)
            owner = os.fstat(folder).st_uid
            *parents, name = path.split(b"/")
            for parent in parents:
                _check_name(parent)
                folder = os.open(parent, DIRECTORY, dir_fd=folder)
                opened.callback(os.close, folder)
            _check_name(name)
            descriptor = os.open(name, FILE, dir_fd=folder)
        except OSError as error:
            raise NotFound("This output is gone.") from error
    if not _is_output(os.fstat(descriptor), owner):
        os.close(descriptor)
        raise NotFound("This output is gone.")
    return descriptor


def _open_folder(directory: SessionDirectory, name: str) -> int:
    files = os.open(directory.files, DIRECTORY)
    try:
        return os.open(name, DIRECTORY, dir_fd=files)
    finally:
        os.close(files)


def _check_name(name: bytes) -> None:
    if name in (b"", b".", b".."):
        raise NotFound("This output is gone.")


def _is_output(about: os.stat_result, owner: int) -> bool:
    # The process backend runs as the server does; nothing else inside can make files of another user.
    return stat.S_ISREG(about.st_mode) and about.st_uid in (owner, os.geteuid())


def _stamp(about: os.stat_result) -> str:
    return f"{about.st_ino}:{about.st_size}:{about.st_mtime_ns}:{about.st_ctime_ns}"


# --------------------------------------------------------------------------------------------------- uploads


def begin_uploads(directory: SessionDirectory, wanted: Mapping[str, str]) -> list[str]:
    """Take away what is not wanted among the uploads; the paths that are missing. `wanted` is hashes by path."""
    placed = _placed(directory)
    with _opened_uploads(directory) as uploads:
        for path, sha256 in placed.items():
            if wanted.get(path) != sha256:
                _remove(uploads, path)
        # Before anything is placed: a crash then leaves paths that are noted and missing, never the reverse.
        draft = directory.server / "uploads.draft"
        draft.write_bytes(msgspec.json.encode(wanted))
        draft.replace(directory.uploads)
        return [path for path in wanted if not _exists(uploads, path)]


def install_upload(directory: SessionDirectory, draft: str, path: str) -> None:
    """Give a file in `server/` its place among the uploads."""
    os.chmod(directory.server / draft, 0o444)
    *parents, name = path.split("/")
    with _opened_uploads(directory) as uploads, ExitStack() as opened:
        folder = uploads
        for parent in parents:
            with suppress(FileExistsError):
                os.mkdir(parent, 0o755, dir_fd=folder)
            folder = os.open(parent, DIRECTORY, dir_fd=folder)
            opened.callback(os.close, folder)
        os.replace(directory.server / draft, name, dst_dir_fd=folder)


def _placed(directory: SessionDirectory) -> dict[str, str]:
    try:
        return msgspec.json.decode(directory.uploads.read_bytes(), type=dict[str, str])
    except FileNotFoundError:
        return {}


@contextmanager
def _opened_uploads(directory: SessionDirectory) -> Generator[int]:
    uploads = _open_folder(directory, "uploads")
    try:
        yield uploads
    finally:
        os.close(uploads)


def _exists(uploads: int, path: str) -> bool:
    try:
        os.stat(path, dir_fd=uploads, follow_symlinks=False)
    except OSError:
        return False
    return True


def _remove(uploads: int, path: str) -> None:
    with suppress(OSError):
        os.unlink(path, dir_fd=uploads)
        while "/" in path:
            path = path.rpartition("/")[0]
            os.rmdir(path, dir_fd=uploads)
