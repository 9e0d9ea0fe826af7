"""The bytes of files on disk: `<directory>/<first two digits>/<sha256>`, each blob a file that never changes.

A blob is written under another name, synced, and renamed into place, so what has its name is whole. What refers to a
blob is not known here; whoever drops a reference asks for the blob's removal and says how to find other references.
Between the two stands one lock for each content: a blob is removed only while nobody is about to refer to it.

One process has the directory at a time; the lock file sees to that. The store in S3 is `s3_blobs.py`.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from weakref import WeakValueDictionary

import anyio
import anyio.to_thread

from corral.domain.file import Blob
from corral.errors import MachineUnfit, NotFound, Unavailable
from corral.storage.blob_drafts import CHUNK_BYTES, explained, write_draft

DIGEST = re.compile(r"[0-9a-f]{64}")


class DiskBlobs:
    """`Blobs` in a directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._incoming = directory / "incoming"
        self._locks: WeakValueDictionary[str, anyio.Lock] = WeakValueDictionary()
        try:
            self._incoming.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(directory / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for draft in self._incoming.iterdir():
                draft.unlink()  # of a server that was killed
        except BlockingIOError as error:
            os.close(self._lock)
            raise MachineUnfit(f"{directory} is in use by another server; stop that one first.") from error
        except OSError as error:
            raise MachineUnfit(f"Files cannot be kept in {directory}: {error}") from error

    def close(self) -> None:
        """Let others have the directory."""
        os.close(self._lock)

    @asynccontextmanager
    async def put(self, chunks: AsyncIterator[bytes]) -> AsyncGenerator[Blob]:
        """See `Blobs`."""
        draft = self._incoming / secrets.token_hex(16)
        try:
            blob = await write_draft(draft, chunks)
            async with self._lock_of(blob.sha256):
                is_new = await anyio.to_thread.run_sync(self._keep, draft, blob.sha256)
                try:
                    yield blob
                except BaseException:
                    if is_new:
                        self._path(blob.sha256).unlink(missing_ok=True)
                    raise
        finally:
            draft.unlink(missing_ok=True)

    @asynccontextmanager
    async def hold(self, sha256: str) -> AsyncGenerator[None]:
        """See `Blobs`."""
        async with self._lock_of(sha256):
            if not await anyio.to_thread.run_sync(self._path(sha256).exists):
                raise NotFound("The bytes of this file are gone.")
            yield

    async def open(self, sha256: str, *, first: int = 0, end: int | None = None) -> AsyncGenerator[bytes]:
        """See `Blobs`."""
        try:
            descriptor = os.open(self._path(sha256), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise NotFound("The bytes of this file are gone.") from error
        try:
            size = os.fstat(descriptor).st_size
            end = size if end is None else min(end, size)
            while first < end:
                chunk = await anyio.to_thread.run_sync(os.pread, descriptor, min(CHUNK_BYTES, end - first), first)
                if not chunk:
                    raise Unavailable("A stored file is shorter than it was.")
                first += len(chunk)
                yield chunk
        finally:
            os.close(descriptor)

    async def delete(self, sha256: str, unless: Callable[[], Awaitable[bool]]) -> None:
        """See `Blobs`."""
        async with self._lock_of(sha256):
            if not await unless():
                await anyio.to_thread.run_sync(lambda: self._path(sha256).unlink(missing_ok=True))

    def _lock_of(self, sha256: str) -> anyio.Lock:
        return self._locks.setdefault(sha256, anyio.Lock())

    def _path(self, sha256: str) -> Path:
        assert DIGEST.fullmatch(sha256), "digests are ours"
        return self._directory / sha256[:2] / sha256

    def _keep(self, draft: Path, sha256: str) -> bool:
        """Give the draft its name, unless it was there before."""
        path = self._path(sha256)
        if path.exists():
            return False
        with explained():
            path.parent.mkdir(mode=0o700, exist_ok=True)
            draft.replace(path)
            _sync_directory(path.parent)
            _sync_directory(self._directory)
        return True


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
