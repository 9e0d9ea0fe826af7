"""The embedded store: the log and all records in one SQLite file.

`open_store` gives a `SqliteStore`: an `EventLog` and `Records` that share a file. They hand writes to the one writer
thread (`sqlite_writer.py`: group commit, one fsync for all who wait) and reads to read-only connections
(`sqlite_reads.py`). It belongs to one process, which a lock beside the file makes sure of, and to the event loop that
opened it. The in-memory implementation for tests is `ephemeral.py`.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import anyio.to_thread

from corral.domain.query import EventsQuery, LoggedEvent, Record, RecordsQuery, SessionsQuery
from corral.domain.session import Session, SessionState
from corral.interfaces.bus import Bus
from corral.interfaces.clock import Clock
from corral.interfaces.event_log import Claim, Committed, Decide, Snapshot, nothing
from corral.interfaces.store import Moved
from corral.storage import sqlite_reads as reads
from corral.storage.named_sql import Migrated
from corral.storage.series import StoreSeries
from corral.storage.sqlite_file import Lock, open_exclusive, open_shared, path_of, version_at
from corral.storage.sqlite_writer import Writer
from corral.storage.transaction import admit

BATCH_OPERATIONS_MAX = 1_000
WAITING_OPERATIONS_MAX = 20_000
SESSIONS_CACHED_MAX = 4_096
READ_CONNECTIONS_MAX = 4


async def open_store(
    location: str | Path,
    bus: Bus,
    clock: Clock,
    *,
    exclusive: bool = True,
    batch_operations_max: int = BATCH_OPERATIONS_MAX,
    waiting_operations_max: int = WAITING_OPERATIONS_MAX,
    sessions_cached_max: int = SESSIONS_CACHED_MAX,
    read_connections_max: int = READ_CONNECTIONS_MAX,
    series: StoreSeries | None = None,
) -> SqliteStore:
    """Open or make the database at a URL `sqlite:///path` or a path, and bring its schema up to date.

    Raises `MachineUnfit` when another server has it, a newer Corral wrote it, or it cannot be opened. With
    `exclusive=False` another server may have it; then only `records` can be used.
    """
    path = path_of(location)
    lock: Lock | None = None
    if exclusive:
        lock, connection = await anyio.to_thread.run_sync(open_exclusive, path)
    else:
        connection = await anyio.to_thread.run_sync(open_shared, path)
    writer = Writer(
        connection,
        bus,
        clock,
        batch_operations_max=batch_operations_max,
        waiting_operations_max=waiting_operations_max,
        sessions_cached_max=sessions_cached_max,
        series=series or StoreSeries(),
    )
    return SqliteStore(lock, connection, writer, reads.Readers(path, read_connections_max))


async def migrate(location: str | Path) -> Migrated:
    """Make the database if need be and bring its schema up to date. Raises `MachineUnfit`, as `open_store` does."""
    path = path_of(location)

    def run() -> Migrated:
        before = version_at(path)
        lock, connection = open_exclusive(path)
        connection.close()
        lock.release()
        return Migrated(before, version_at(path))

    return await anyio.to_thread.run_sync(run)


class SqliteStore:
    """One SQLite file: `log` is the `EventLog`, `records` the `Records`, `archive` the `Archive`."""

    def __init__(
        self, lock: Lock | None, connection: sqlite3.Connection, writer: Writer, readers: reads.Readers
    ) -> None:
        self._log = SqliteLog(writer, readers)
        self.records = SqliteRecords(writer, readers)
        self._archive = SqliteArchive(writer, readers)
        self._lock = lock
        self._connection = connection
        self._writer = writer
        self._readers = readers
        self._closed = False

    @property
    def log(self) -> SqliteLog:
        """The log, for whoever has the file alone: its writer trusts what it keeps of sessions in memory."""
        assert self._lock is not None, "a shared store has records only"
        return self._log

    @property
    def archive(self) -> SqliteArchive:
        """The archive, for whoever has the file alone."""
        assert self._lock is not None, "a shared store has records only"
        return self._archive

    async def close(self) -> None:
        """Commit what waits, then let the file go. No other call may be running or come later. Idempotent."""
        if self._closed:
            return
        self._closed = True
        await self._writer.close()
        await anyio.to_thread.run_sync(self._close)

    def _close(self) -> None:
        self._readers.close()
        self._connection.close()
        if self._lock is not None:
            self._lock.release()


class SqliteLog:
    """`EventLog` on a SQLite file."""

    def __init__(self, writer: Writer, readers: reads.Readers) -> None:
        self._writer = writer
        self._readers = readers

    async def create(self, session: Session, state: SessionState, decide: Decide) -> Committed:
        """See `EventLog`."""
        return await self._writer.submit(lambda batch: batch.create(session, state, decide))

    async def snapshot(self, session_id: str, workspace_id: str | None = None) -> Snapshot:
        """See `EventLog`. Sessions that were written lately are in memory."""
        stored = self._writer.committed(session_id) or await self._readers.run(reads.stored_session(session_id))
        session = admit(stored.session if stored else None, session_id, workspace_id)
        assert stored is not None
        return Snapshot(session, stored.state)

    async def transact(
        self, session_id: str, decide: Decide, *, workspace_id: str | None = None, epoch: int | None = None
    ) -> Committed:
        """See `EventLog`. `decide` runs on the writer's thread."""
        return await self._writer.submit(lambda batch: batch.transact(session_id, decide, workspace_id, epoch))

    async def claim(self, session_id: str, decide: Decide = nothing) -> Claim:
        """See `EventLog`."""
        return await self._writer.submit(lambda batch: batch.claim(session_id, decide))

    async def events(self, session_id: str, query: EventsQuery) -> list[LoggedEvent]:
        """See `EventLog`."""
        return await self._readers.run(reads.events(session_id, query))

    async def sessions(self, query: SessionsQuery) -> list[Snapshot]:
        """See `EventLog`."""
        return await self._readers.run(reads.sessions(query))

    async def unfinished(self) -> list[str]:
        """See `EventLog`."""
        return await self._readers.run(reads.unfinished)

    async def spent_microdollars(self) -> int:
        """See `EventLog`. Kept as a running sum; what deleted sessions cost stays in it."""
        return self._writer.spent_microdollars

    async def delete(self, session_id: str, workspace_id: str, allow: Callable[[Session, SessionState], None]) -> None:
        """See `EventLog`. `allow` runs on the writer's thread."""
        await self._writer.submit(lambda batch: batch.delete(session_id, workspace_id, allow))


class SqliteRecords:
    """`Records` on a SQLite file."""

    def __init__(self, writer: Writer, readers: reads.Readers) -> None:
        self._writer = writer
        self._readers = readers

    async def put(self, *records: Record, expect: Mapping[str, int] | None = None) -> None:
        """See `Records`."""
        await self._writer.submit(lambda batch: batch.put(records, expect or {}))

    async def get(self, kind: str, record_id: str, workspace_id: str | None) -> Record:
        """See `Records`."""
        return await self._readers.run(reads.record(kind, record_id, workspace_id))

    async def page(self, query: RecordsQuery) -> list[Record]:
        """See `Records`."""
        return await self._readers.run(reads.records(query))

    async def delete(self, kind: str, record_id: str, workspace_id: str) -> None:
        """See `Records`."""
        await self._writer.submit(lambda batch: batch.delete_record(kind, record_id, workspace_id))


class SqliteArchive:
    """`Archive` on a SQLite file."""

    def __init__(self, writer: Writer, readers: reads.Readers) -> None:
        self._writer = writer
        self._readers = readers

    async def workspaces(self) -> list[str]:
        """See `Archive`."""
        return await self._readers.run(reads.workspaces)

    async def restore(self, items: Iterable[Moved]) -> Counter[str]:
        """See `Archive`. Items are taken on the writer's thread; SQLite keeps what does not fit into its memory."""
        return await self._writer.submit(lambda batch: batch.restore(items))
