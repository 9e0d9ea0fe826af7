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
from corral.app.vaults import key_wrapper
from corral.app.worker import BUILT_IN_TOOLS
from corral.config import Settings
from corral.domain.credential import CREDENTIAL_KIND
from corral.domain.vault import VAULT_KIND
from corral.errors import Invalid, MachineUnfit, NotFound
from corral.interfaces.records import Records
from corral.moving.incoming import MISSED_MAX, Destination, Import
from corral.moving.outgoing import Source
from corral.vaults.sealing import VaultSealing

KINDS = {"agents": "agent", "environments": "environment", "sessions": "session"}
"""What is read, and how the store counts what it had."""
SECRET_KINDS = {"vaults": VAULT_KIND, "credentials": CREDENTIAL_KIND}
"""The same, told only if there are any."""
WARNING = (
    "The export holds the secrets of all its vaults in clear. Whoever reads it can use them: move it over a safe way, "
    "and delete it once it is imported."
)


async def import_file(settings: Settings, file: Path, workspace: str, out: Console) -> None:
    """Import all of a file or nothing."""
    _check_file(file)
    async with open_storage(settings) as storage:
        sealing = VaultSealing(await key_wrapper(settings))
        moving = Import(file, Destination(storage.archive, SystemClock(), BUILT_IN_TOOLS, workspace, sealing))
        known = await moving.run()
        unfinished = len(await storage.log.unfinished())
        absent = [name for name in sorted(moving.vaults_missed) if not await _is_there(storage.records, *name)]
    counts = [f"{moving.read[word]:,} {word}" for word in (*KINDS, "events")]
    counts += [f"{moving.read[word]:,} {word}" for word in SECRET_KINDS if moving.read[word]]
    out.print(f"Imported {', '.join(counts)}.{_said(known)}")
    if absent:
        more = " and maybe more" if len(moving.vaults_missed) == MISSED_MAX else ""
        names = ", ".join(vault_id for _, vault_id in absent)
        out.print(f"Vaults that sessions name and that are not here: {names}{more}.")
    if unfinished:
        out.print(f"Sessions that are running and go on when the server starts: {unfinished:,}.")


def _check_file(file: Path) -> None:
    if not file.is_file():
        raise Invalid(f"{file} is not a file.")


async def _is_there(records: Records, workspace_id: str, vault_id: str) -> bool:
    try:
        await records.get(VAULT_KIND, vault_id, workspace_id)
    except NotFound:
        return False
    return True


def _said(known: Counter[str]) -> str:
    had = [f"{known[kind]:,} {word}" for word, kind in {**KINDS, **SECRET_KINDS}.items() if known[kind]]
    return f" Here already, and the same: {', '.join(had)}." if had else ""


async def export_to(
    settings: Settings, file: Path | None, workspace: str | None, err: Console, *, with_secrets: bool = False
) -> None:
    """Write everything to a file, which appears when it is complete, or to standard output. Vaults only if asked."""
    count = 0
    if with_secrets:
        err.print(f"Warning: {WARNING}", style="yellow")
    async with open_storage(settings) as storage:
        sealing = VaultSealing(await key_wrapper(settings)) if with_secrets else None
        source = Source(storage, SystemClock(), sealing)
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
        draft.unlink(missing_ok=True)
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as output:
            yield output
            output.flush()
            os.fsync(output.fileno())
        draft.rename(file)
    except OSError as error:
        raise MachineUnfit(f"{file} cannot be written: {error.strerror}") from error
    finally:
        draft.unlink(missing_ok=True)
