"""Putting a sandbox's files away and bringing them back, beside plain `tar` over the same files in the same run."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

import anyio

from corral.config_sections import SandboxSettings
from corral.engines.bus import LocalBus
from corral.interfaces.sandbox import SandboxCall, Upkeep
from corral.sandboxes.process import ProcessSandboxes
from corral.storage.blobs import DiskBlobs
from corral.storage.ephemeral import EphemeralStore
from tests.benchmarks.temporary import passable

NAME = "A sandbox that rests: its files put away and brought back"
SESSION = "sesn_bench"
MEBIBYTE = 1024 * 1024
SIZES = (10, 500)
FILE_MEBIBYTES = 5
SMALL_FILES = 2_000


class SystemClock:
    def now(self) -> datetime:
        return datetime.now(UTC)


def run() -> list[tuple[str, float, str, str]]:
    return [row for size in SIZES for row in anyio.run(_measure, size, backend_options={"use_uvloop": True})]


async def _owner(session_id: str) -> str | None:
    return "wrkspc_bench"


async def _measure(mebibytes: int) -> list[tuple[str, float, str, str]]:
    with tempfile.TemporaryDirectory() as directory:
        place = passable(directory)
        clock = SystemClock()
        blobs = DiskBlobs(place / "blobs")
        records = EphemeralStore(LocalBus(frames_max=1, bytes_max=1), clock).records
        sandboxes = ProcessSandboxes(SandboxSettings(directory=str(place / "sandboxes")), place)
        async with sandboxes.attended(Upkeep(records, blobs, clock, _owner)):
            await _touch(sandboxes)
            files = place / "sandboxes" / "sessions" / SESSION / "files" / "workspace"
            _fill(files, mebibytes)
            packing = _tar("cf", place / "plain.tar", files)
            unpacking = _tar("xf", place / "plain.tar", place / "into")
            await sandboxes.close()
            away = await _timed(lambda: sandboxes.put_away(SESSION))
            assert not files.exists()
            back = await _timed(lambda: _touch(sandboxes))
            assert files.exists()
            size = sum(path.stat().st_size for path in (place / "blobs").rglob("*") if path.is_file()) / MEBIBYTE
            await sandboxes.destroy(SESSION)
        await sandboxes.close()
        blobs.close()
    what = f"{mebibytes} MiB"
    return [
        (f"put away {what}", away, "s", f"half of it random, {size:,.0f} MiB stored; with fsync, hash and removal"),
        (f"bring {what} back and run `true`", back, "s", "with hash and start"),
        (f"plain tar of {what}", packing, "s", "same run, no compression, no fsync"),
        (f"plain untar of {what}", unpacking, "s", "same run"),
    ]


async def _touch(sandboxes: ProcessSandboxes) -> None:
    sandbox = await sandboxes.open(SESSION)
    call = SandboxCall(call_id=f"sevt_{time.monotonic_ns()}", operation="bash", arguments={"command": "true"})
    assert not (await sandbox.call(call)).is_error


def _fill(files: Path, mebibytes: int) -> None:
    """Half of it random and half of it text, in files of some megabytes, and many small ones."""
    text = b"The build is green: 412 tests passed in 38 s, none were skipped.\n" * 16_132
    for number in range(mebibytes // FILE_MEBIBYTES):
        with (files / f"big{number}").open("wb") as file:
            for _ in range(FILE_MEBIBYTES):
                file.write(os.urandom(MEBIBYTE) if number % 2 else text)
    (files / "small").mkdir()
    for number in range(SMALL_FILES):
        (files / "small" / str(number)).write_bytes(text[:300])


async def _timed(what: Callable[[], Awaitable[None]]) -> float:
    start = time.perf_counter()
    await what()
    return time.perf_counter() - start


def _tar(action: str, archive: Path, directory: Path) -> float:
    directory.mkdir(exist_ok=True)
    start = time.perf_counter()
    subprocess.run(["tar", action, str(archive), "-C", str(directory), *(["."] if action == "cf" else [])], check=True)
    return time.perf_counter() - start
