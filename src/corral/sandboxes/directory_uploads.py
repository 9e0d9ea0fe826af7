"""Puts the bytes of a session's files among its uploads; which belong there is decided in `directory_files.py`."""

from __future__ import annotations

import os
from contextlib import aclosing

import anyio.to_thread
import structlog

from corral.errors import NotFound
from corral.interfaces.blobs import Blobs
from corral.sandboxes import directory_files
from corral.sandboxes.directory import SessionDirectory

log = structlog.get_logger(__name__)


async def place(directory: SessionDirectory, path: str, sha256: str, blobs: Blobs) -> None:
    """Put a blob among the uploads, whole or not at all; one that is gone is left out."""
    draft = directory.server / "incoming"
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    try:
        async with aclosing(blobs.open(sha256)) as chunks:
            async for chunk in chunks:
                await anyio.to_thread.run_sync(_write_all, descriptor, chunk)
        await anyio.to_thread.run_sync(directory_files.install_upload, directory, draft.name, path)
    except NotFound:
        log.warning("mount_without_bytes", session_id=directory.path.name, path=path)
    finally:
        os.close(descriptor)
        draft.unlink(missing_ok=True)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
