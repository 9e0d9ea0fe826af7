"""A blob on its way in: a file of its own, written, hashed and synced before it is a blob. For all stores."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator, Generator
from contextlib import contextmanager
from pathlib import Path

import anyio.to_thread

from corral.domain.file import Blob
from corral.errors import Unavailable

CHUNK_BYTES = 1024 * 1024
"""What is kept in memory of one blob, and what one visit to a worker thread handles."""


async def write_draft(draft: Path, chunks: AsyncIterator[bytes]) -> Blob:
    """Write and sync a new file, a megabyte at a time. Raises `Unavailable`, and what `chunks` raises."""
    digest = hashlib.sha256()
    buffer = bytearray()
    size = 0
    with explained():
        descriptor = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)

    def write(data: bytes) -> None:
        with explained():
            digest.update(data)
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]

    def sync() -> None:
        with explained():
            os.fsync(descriptor)

    try:
        async for chunk in chunks:
            size += len(chunk)
            buffer += chunk
            if len(buffer) >= CHUNK_BYTES:
                await anyio.to_thread.run_sync(write, bytes(buffer))
                buffer.clear()
        await anyio.to_thread.run_sync(write, bytes(buffer))
        await anyio.to_thread.run_sync(sync)
    finally:
        os.close(descriptor)
    return Blob(digest.hexdigest(), size)


@contextmanager
def explained() -> Generator[None]:
    """A full disk and the like are for the client to hear of."""
    try:
        yield
    except OSError as error:
        raise Unavailable(f"The file cannot be stored: {error.strerror}.") from error
