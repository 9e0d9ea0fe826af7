"""Where the files of sandboxes that rest are kept: an archive in the blob store, and a record that refers to it.

Any server over the same store can bring them back. A record says which generation of the session's files it has, so a
directory that was left behind by a crash, or on another machine, is known to be older or newer. The blob is held by a
reference like those of files, of a kind they share, so neither removes what the other needs.

A checkpoint stays when it was brought back, for the day the machine does not; the next one takes its place. What is
packed and how is not known here.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from datetime import datetime
from typing import NamedTuple

import anyio
import msgspec

from corral.domain.file import REFERENCE_KIND, Output
from corral.domain.query import Record, RecordsQuery
from corral.errors import NotFound
from corral.interfaces.sandbox import Upkeep

KIND = "sandbox_checkpoint"
PAGE_RECORDS = 500


class Reference(NamedTuple):
    """A claim on a blob: the id of its record, and the hash."""

    id: str
    sha256: str


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """A session's files, put away."""

    generation: int
    """Counts up with every checkpoint of the session."""
    created_at: datetime
    """When the sandbox was made, not the checkpoint."""
    archive: Reference | None
    """None when the sandbox has expired."""
    size_bytes: int = 0
    outputs: tuple[Output, ...] | None = None
    """What is in it among the outputs; None when that was too much to note."""
    superseded: tuple[Reference, ...] = ()
    """Claims that are still to be given up."""


class Kept(NamedTuple):
    """A checkpoint and whose it is."""

    session_id: str
    workspace_id: str
    checkpoint: Checkpoint


class Checkpoints:
    """Checkpoints by session; at most one for each."""

    def __init__(self, upkeep: Upkeep) -> None:
        self._upkeep = upkeep

    async def find(self, session_id: str) -> Kept | None:
        """The session's checkpoint."""
        try:
            return _kept(await self._upkeep.records.get(KIND, session_id, None))
        except NotFound:
            return None

    async def all(self, *, made_before: datetime | None = None) -> AsyncGenerator[Kept]:
        """Every checkpoint, or those of sandboxes made before a moment that still hold files; they may be changed and
        removed as they are shown."""
        query = RecordsQuery(
            kind=KIND,
            workspace_id=None,
            limit=PAGE_RECORDS,
            before=made_before,
            include_archived=made_before is None,
        )
        while True:
            page = await self._upkeep.records.page(query)
            for record in page:
                yield _kept(record)
            if len(page) < PAGE_RECORDS:
                return
            query = msgspec.structs.replace(query, beyond=(page[-1].created_at, page[-1].id))

    async def save(
        self,
        session_id: str,
        workspace_id: str,
        chunks: AsyncIterator[bytes],
        *,
        generation: int,
        created_at: datetime,
        outputs: Sequence[Output] | None,
    ) -> None:
        """Keep an archive in place of what was kept before. Raises `Unavailable` when it cannot be stored, and what
        `chunks` raises; then nothing is changed."""
        before = await self.find(session_id)
        async with self._upkeep.blobs.put(chunks) as blob:
            reference = Reference(f"{session_id}@{generation}", blob.sha256)
            checkpoint = Checkpoint(
                generation=generation,
                created_at=created_at,
                archive=reference,
                size_bytes=blob.size_bytes,
                outputs=None if outputs is None else tuple(outputs),
                superseded=_claims(before, reference),
            )
            with anyio.CancelScope(shield=True):  # cut off, it would not be known whether the bytes are needed
                await self._put(session_id, workspace_id, checkpoint, reference)
        with anyio.CancelScope(shield=True):
            await self._give_up(session_id, workspace_id, checkpoint)

    async def expire(self, session_id: str, workspace_id: str, *, generation: int, created_at: datetime) -> None:
        """Let go of the files, and remember that there were some."""
        gone = Checkpoint(
            generation=generation,
            created_at=created_at,
            archive=None,
            superseded=_claims(await self.find(session_id), None),
        )
        with anyio.CancelScope(shield=True):
            await self._put(session_id, workspace_id, gone)
            await self._give_up(session_id, workspace_id, gone)

    def read(self, checkpoint: Checkpoint) -> AsyncGenerator[bytes]:
        """The archive. Raises `NotFound` when it is gone."""
        if checkpoint.archive is None:
            raise NotFound("This sandbox has expired.")
        return self._upkeep.blobs.open(checkpoint.archive.sha256)

    async def drop(self, session_id: str) -> None:
        """Let go of everything that is kept for a session. Idempotent."""
        kept = await self.find(session_id)
        if kept is None:
            return
        for reference in _claims(kept, None):
            await self._drop_reference(reference, kept.workspace_id)
        try:
            await self._upkeep.records.delete(KIND, session_id, kept.workspace_id)
        except NotFound:
            return

    async def finish(self, kept: Kept) -> None:
        """Do what a crash left undone."""
        if kept.checkpoint.superseded:
            await self._give_up(kept.session_id, kept.workspace_id, kept.checkpoint)

    async def _put(
        self, session_id: str, workspace_id: str, checkpoint: Checkpoint, reference: Reference | None = None
    ) -> None:
        now = self._upkeep.clock.now()
        # Dated by the sandbox, and archived when it has expired: so the next ones to expire are found by themselves.
        record = Record(
            kind=KIND,
            id=session_id,
            workspace_id=workspace_id,
            created_at=checkpoint.created_at,
            archived_at=None if checkpoint.archive else now,
            body=msgspec.json.encode(checkpoint),
        )
        records = [record]
        if reference is not None:
            claim = Record(
                kind=REFERENCE_KIND,
                id=reference.id,
                workspace_id=workspace_id,
                parent_id=reference.sha256,
                created_at=now,
                body=b"{}",
            )
            records.append(claim)
        await self._upkeep.records.put(*records)

    async def _give_up(self, session_id: str, workspace_id: str, checkpoint: Checkpoint) -> None:
        for reference in checkpoint.superseded:
            await self._drop_reference(reference, workspace_id)
        if checkpoint.superseded:
            await self._put(session_id, workspace_id, msgspec.structs.replace(checkpoint, superseded=()))

    async def _drop_reference(self, reference: Reference, workspace_id: str) -> None:
        try:
            await self._upkeep.records.delete(REFERENCE_KIND, reference.id, workspace_id)
        except NotFound:
            pass  # and its blob may be there yet, if we died between the two

        async def is_referred_to() -> bool:
            query = RecordsQuery(kind=REFERENCE_KIND, workspace_id=None, parent_id=reference.sha256, limit=1)
            return bool(await self._upkeep.records.page(query))

        await self._upkeep.blobs.delete(reference.sha256, is_referred_to)


def _kept(record: Record) -> Kept:
    checkpoint = msgspec.json.decode(record.body, type=Checkpoint)
    return Kept(record.id, record.workspace_id, checkpoint)


def _claims(kept: Kept | None, unless: Reference | None) -> tuple[Reference, ...]:
    """All that a checkpoint lays claim to, but for one."""
    if kept is None:
        return ()
    own = () if kept.checkpoint.archive is None else (kept.checkpoint.archive,)
    return tuple(reference for reference in (*kept.checkpoint.superseded, *own) if reference != unless)
