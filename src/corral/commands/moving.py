"""`corral import` and `corral export`: moving in and out with all ids. The server must not be running."""

from __future__ import annotations

import contextlib
import os
import sys
from collections import Counter
from collections.abc import Generator
from pathlib import Path
from typing import BinaryIO

from rich.console import Console

from corral.app.clock import SystemClock
from corral.app.storage import open_storage
from corral.app.worker import BUILT_IN_TOOLS
from corral.config import Settings
from corral.errors import Invalid, MachineUnfit
from corral.moving.incoming import Destination, Import
from corral.moving.outgoing import Source

WORDS = {"agents": "agent", "environments": "environment", "sessions": "session"}
"""What is read, and how the store counts what it had."""


async def import_file(settings: Settings, file: Path, workspace: str, out: Console) -> None:
    """Import all of a file or nothing."""
    _check_file(file)
    async with open_storage(settings) as storage:
        moving = Import(file, Destination(storage.archive, SystemClock(), BUILT_IN_TOOLS, workspace))
        known = await moving.run()
        unfinished = len(await storage.log.unfinished())
    counts = [f"{moving.read[word]:,} {word}" for word in (*WORDS, "events")]
    out.print(f"Imported {', '.join(counts)}.{_said(known)}")
    if unfinished:
        out.print(f"Sessions that are running and go on when the server starts: {unfinished:,}.")


def _check_file(file: Path) -> None:
    if not file.is_file():
        raise Invalid(f"{file} is not a file.")


def _said(known: Counter[str]) -> str:
    had = [f"{known[kind]:,} {word}" for word, kind in WORDS.items() if known[kind]]
    return f" Here already, and the same: {', '.join(had)}." if had else ""


async def export_to(settings: Settings, file: Path | None, workspace: str | None, err: Console) -> None:
    """Write everything to a file, which appears when it is complete, or to standard output."""
    count = 0
    async with open_storage(settings) as storage:
        source = Source(storage.log, storage.records, storage.archive, SystemClock())
        with _output(file) as output:
            async with contextlib.aclosing(source.lines(workspace)) as lines:
                async for line in lines:
                    output.write(line)
                    count += 1
    err.print(f"Exported {count:,} lines.")


@contextlib.contextmanager
def _output(file: Path | None) -> Generator[BinaryIO]:
    if file is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    draft = file.with_name(file.name + ".part")
    try:
        # Conversations are in it: for the owner's eyes only.
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as output:
            yield output
            output.flush()
            os.fsync(output.fileno())
        draft.rename(file)
    except OSError as error:
        raise MachineUnfit(f"{file} cannot be written: {error.strerror}") from error
    finally:
        draft.unlink(missing_ok=True)
