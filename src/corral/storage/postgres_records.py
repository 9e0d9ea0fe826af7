"""Writes that are rare: single records, and whole sessions moving in. Each is a transaction on a reader's connection.

A record is checked under its row's lock; one that comes into being meanwhile, in another process, makes the put begin
anew. What moves in goes to the server in chunks, so a session of any length passes through little memory; what exists
already is compared and never changed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice

import asyncpg

from corral.domain.query import Record
from corral.domain.session import SessionState
from corral.errors import Conflict, NotFound, Unavailable
from corral.interfaces.store import Depending, Moved, Restored
from corral.storage.frames import EventRow, encode
from corral.storage.postgres_connection import CLASHED, SQL, Connection, Readers
from corral.storage.postgres_rows import (
    Stored,
    clean,
    event_parameters,
    insert_parameters,
    read_record,
    read_stored,
    record_parameters,
)
from corral.storage.transaction import (
    check_put,
    check_same_record,
    check_same_session,
    differs,
    made,
    same_body,
    taken,
)

ATTEMPTS_MAX = 10
CHUNK_EVENTS = 512
EVENT_COLUMNS = ("session", "seq", "id", "type", "processed_at", "body", "private")


class _Raced(Exception):
    """A record appeared between the look and the write."""


async def put(readers: Readers, records: Sequence[Record], expect: Mapping[str, int]) -> None:
    """`Records.put`."""
    for _ in range(ATTEMPTS_MAX):
        async with readers.connection() as connection:
            try:
                async with connection.transaction():
                    await _put(connection, records, expect)
            except (*CLASHED, _Raced):
                continue
            return
    raise Unavailable("other processes write the same records all the time; try again shortly")


async def _put(connection: Connection, records: Sequence[Record], expect: Mapping[str, int]) -> None:
    exist: set[tuple[str, str]] = set()
    for record in sorted(
        records, key=lambda each: (each.kind, each.id)
    ):  # in one order, so that no two block each other
        row = await connection.fetchrow(SQL["lock_record"], record.kind, clean(record.id))
        check_put(record, None if row is None else read_record(row), expect.get(record.id))
        if row is not None:
            exist.add((record.kind, record.id))
    for record in records:
        replace = (record.kind, record.id) in exist
        exist.add((record.kind, record.id))
        if not await _insert(connection, record, replace=replace):
            raise _Raced


async def _insert(connection: Connection, record: Record, *, replace: bool) -> bool:
    """False when the record exists and is not to be replaced. Raises `Conflict` when its key is taken."""
    try:
        return await connection.fetchval(SQL["put_record"], *record_parameters(record, replace=replace)) is not None
    except asyncpg.UniqueViolationError as error:
        raise taken(record) from error


async def delete(readers: Readers, kind: str, record_id: str, workspace_id: str) -> None:
    """`Records.delete`."""
    async with readers.connection() as connection:
        if await connection.fetchval(SQL["delete_record"], kind, clean(record_id), workspace_id) is None:
            raise NotFound(f"{kind} {record_id} not found")


async def restore(readers: Readers, items: Iterable[Moved]) -> Counter[str]:
    """`Archive.restore`."""
    async with readers.connection() as connection, connection.transaction():
        restoring = _Restoring(connection)
        for item in items:
            if isinstance(item, Restored):
                await restoring.session(item)
            else:
                await restoring.record(item)
        return restoring.known


class _Restoring:
    """One `Archive.restore`, inside its transaction."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.known: Counter[str] = Counter()

    async def record(self, item: Record | Depending) -> None:
        row = await self._connection.fetchrow(SQL["lock_record"], item.kind, clean(item.id))
        here = None if row is None else read_record(row)
        record = made(item, here)
        if record is None:
            return
        if here is not None:
            check_same_record(record, here)
            self.known[record.kind] += 1
        elif not await _insert(self._connection, record, replace=False):
            raise Conflict(f"{record.kind} {record.id} was made by somebody else just now")

    async def session(self, restored: Restored) -> None:
        names = [clean(restored.session.id)]
        await self._connection.execute(SQL["lock_sessions"], names)
        row = await self._connection.fetchrow(SQL["sessions_by_id"], names)
        if row is not None:
            await self._compare(restored, read_stored(row))
            self.known["session"] += 1
            return
        number = int(await self._connection.fetchval(SQL["session_numbers"], 1))
        count = await self._insert_events(number, restored)
        state = restored.state()
        assert state.seq == count, "the state counts the events"
        await self._insert_session(Stored(number, restored.session, state, 0, 0))

    async def _insert_session(self, stored: Stored) -> None:
        try:
            await self._connection.execute(SQL["insert_session"], *insert_parameters(stored))
        except asyncpg.UniqueViolationError as error:
            raise differs("session", stored.session.id) from error
        await self._connection.execute(SQL["put_document"], stored.number, encode(stored.session))

    async def _insert_events(self, number: int, restored: Restored) -> int:
        count = 0
        events = iter(restored.events)
        while chunk := list(islice(events, CHUNK_EVENTS)):
            rows = [
                event_parameters(number, EventRow(seq, each.id, each.type, each.processed_at, each.body, each.private))
                for seq, each in enumerate(chunk, count + 1)
            ]
            await self._connection.copy_records_to_table("events", records=rows, columns=EVENT_COLUMNS)
            count += len(chunk)
        return count

    async def _compare(self, restored: Restored, stored: Stored) -> None:
        """Both histories side by side; the whole of it passes through memory a chunk at a time."""
        stored_bodies = await self._connection.cursor(SQL["bodies"], stored.number)
        events = iter(restored.events)
        while True:
            bodies = [row["body"] for row in await stored_bodies.fetch(CHUNK_EVENTS)]
            chunk = list(islice(events, CHUNK_EVENTS))
            if len(bodies) != len(chunk) or not all(
                same_body(event.body, body) for event, body in zip(chunk, bodies, strict=True)
            ):
                raise differs("session", restored.session.id)
            if not chunk:
                break
        state: SessionState = restored.state()
        check_same_session(stored.session, stored.state, restored.session, state)
