"""The server's end of `archive.py`: runs it as the sandbox's user, and passes the bytes on as they come.

A child process, because what it handles is hostile, because it can become another user, and because a hundred thousand
small files would keep the event loop's thread waiting. How long it may take is for the caller to say.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import msgspec
from anyio.abc import Process

from corral.config_sections import SandboxSettings
from corral.errors import SandboxUnavailable

CHUNK_BYTES = 1024 * 1024
SAID_BYTES_MAX = 2_000


async def pack(directory: Path, names: tuple[str, ...], uid: int, settings: SandboxSettings) -> AsyncGenerator[bytes]:
    """The trees `names` in `directory` as one archive. Raises `SandboxUnavailable` when they cannot be packed."""
    async with _running("pack", directory, names, uid, settings) as process:
        assert process.stdout is not None
        try:
            while True:
                yield await process.stdout.receive(CHUNK_BYTES)
        except anyio.EndOfStream:
            await _check(process)


async def unpack(
    chunks: AsyncIterator[bytes], directory: Path, names: tuple[str, ...], uid: int, settings: SandboxSettings
) -> None:
    """Unpack an archive into `directory`. Raises `SandboxUnavailable`, and what `chunks` raises; then some may be there
    and some not."""
    async with _running("unpack", directory, names, uid, settings) as process:
        assert process.stdin is not None
        try:
            async for chunk in chunks:
                await process.stdin.send(chunk)
            await process.stdin.aclose()
        except (BrokenPipeError, anyio.BrokenResourceError, anyio.ClosedResourceError):
            pass  # it has ended, and says why
        await _check(process)


@asynccontextmanager
async def _running(
    action: str, directory: Path, names: tuple[str, ...], uid: int, settings: SandboxSettings
) -> AsyncGenerator[Process]:
    task = {
        "action": action,
        "directory": str(directory),
        "names": names,
        "uid": uid,
        "names_max": settings.checkpoint_files_max,
        "bytes_max": settings.checkpoint_bytes_max,
    }
    command = [sys.executable, "-I", "-m", "corral.sandboxes.archive", msgspec.json.encode(task).decode()]
    process = await anyio.open_process(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={}, cwd="/"
    )
    try:
        yield process
    finally:
        with anyio.CancelScope(shield=True):
            if process.returncode is None:
                process.kill()
            await process.aclose()


async def _check(process: Process) -> None:
    assert process.stderr is not None
    said = b""
    async for piece in process.stderr:
        said = (said + piece)[-SAID_BYTES_MAX:]
    if await process.wait() != 0:
        reason = said.decode("utf-8", "replace").strip() or f"exit code {process.returncode}"
        raise SandboxUnavailable(f"The sandbox's files cannot be packed or unpacked: {reason}")
