"""Files as records: two for each, the file itself and its reference to a blob, written together.

The reference is a record of its own so that the other references to a blob can be found by its hash. A file is removed
first and its reference after it: whatever dies in between leaves bytes too many, never a file without bytes. Handlers
are in `files.py`, `resources.py` and `outputs.py`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import anyio
import msgspec

from corral.api.dependencies import Services
from corral.domain.file import FILE_KIND, REFERENCE_KIND, File
from corral.domain.query import Record, RecordsQuery
from corral.errors import NotFound

KIND = FILE_KIND
PAGE_RECORDS = 1_000


def file_of(record: Record) -> File:
    """The file that a record holds."""
    return msgspec.json.decode(record.body, type=File)


async def find(services: Services, workspace_id: str, file_id: str) -> File:
    """A file. Raises `NotFound`."""
    try:
        record = await services.records.get(KIND, file_id, workspace_id)
    except NotFound as error:
        raise _not_found(file_id) from error
    if record.archived_at is not None:
        raise _not_found(file_id)
    return file_of(record)


async def find_usable(services: Services, workspace_id: str, file_id: str) -> File:
    """A file whose bytes may be used. Raises `NotFound`, and lets go of the bytes of one that has expired."""
    file = await find(services, workspace_id, file_id)
    if file.has_expired(services.clock.now()):
        await drop_bytes(services, workspace_id, file)
        raise NotFound(f"File {file_id} has expired.", error_code="file_expired")
    return file


def _not_found(file_id: str) -> NotFound:
    return NotFound(f"File {file_id} was not found.")


async def put(services: Services, workspace_id: str, file: File) -> None:
    """Store a new file. The caller holds its blob."""
    reference = Record(
        kind=REFERENCE_KIND,
        id=file.id,
        workspace_id=workspace_id,
        parent_id=file.sha256,
        created_at=file.created_at,
        body=b"{}",
    )
    with anyio.CancelScope(shield=True):  # cut off, it would not be known whether the bytes are needed
        await services.records.put(record_of(workspace_id, file), reference)


def record_of(workspace_id: str, file: File) -> Record:
    """The record that holds a file."""
    return Record(
        kind=KIND,
        id=file.id,
        workspace_id=workspace_id,
        parent_id=file.session_id,
        created_at=file.created_at,
        body=msgspec.json.encode(file),
    )


async def remove(services: Services, workspace_id: str, file: File) -> None:
    """Remove a file, and its bytes if no other file has them. Raises `NotFound`."""
    await services.records.delete(KIND, file.id, workspace_id)
    await drop_bytes(services, workspace_id, file)


async def hide(services: Services, workspace_id: str, file: File) -> None:
    """Delete an output, but remember it: it is still in its session, and would be found again."""
    record = record_of(workspace_id, file)
    await services.records.put(msgspec.structs.replace(record, archived_at=services.clock.now()))
    await drop_bytes(services, workspace_id, file)


async def drop_bytes(services: Services, workspace_id: str, file: File) -> None:
    """Let go of a file's bytes. Idempotent."""
    try:
        await services.records.delete(REFERENCE_KIND, file.id, workspace_id)
    except NotFound:
        return

    async def is_referred_to() -> bool:
        query = RecordsQuery(kind=REFERENCE_KIND, workspace_id=None, parent_id=file.sha256, limit=1)
        return bool(await services.records.page(query))

    await services.blobs.delete(file.sha256, is_referred_to)


async def of_session(services: Services, workspace_id: str, session_id: str) -> AsyncIterator[Record]:
    """All of a session's files: its copies, its outputs, and outputs that were deleted."""
    query = RecordsQuery(kind=KIND, workspace_id=workspace_id, parent_id=session_id, limit=PAGE_RECORDS)
    while True:
        page = await services.records.page(query)
        for record in page:
            yield record
        if len(page) < PAGE_RECORDS:
            return
        query = msgspec.structs.replace(query, beyond=(page[-1].created_at, page[-1].id))


async def remove_of_session(services: Services, workspace_id: str, session_id: str) -> None:
    """Remove all files that go with a session."""
    async for record in of_session(services, workspace_id, session_id):
        await remove(services, workspace_id, file_of(record))
