"""The store for teams: the log and all records in a PostgreSQL database, which several processes may share.

`open_store` gives a `PostgresStore`: an `EventLog`, `Records` and an `Archive` over one database. Writes to the log go
through one task and one connection (`postgres_writer.py`: group commit, one flush for all who wait); reads and rare
writes have connections of their own. No process trusts what it remembers: every commit says which version of each
session it was decided on, and the database refuses the others. Open streams of other processes learn of commits through
`postgres_notices.py`. The store of one process, on one file, is `sqlite.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import AsyncExitStack

from corral.domain.query import EventsQuery, LoggedEvent, Record, RecordsQuery, SessionsQuery
from corral.domain.session import Session, SessionState
from corral.interfaces.bus import Bus
from corral.interfaces.clock import Clock
from corral.interfaces.event_log import Claim, Committed, Decide, Snapshot, nothing
from corral.interfaces.store import Moved
from corral.storage import postgres_reads as reads
from corral.storage import postgres_records as records
from corral.storage.postgres_connection import Readers, connect_writer, explained, migrate
from corral.storage.postgres_notices import Notices
from corral.storage.postgres_writer import Writer
from corral.storage.series import StoreSeries
from corral.storage.transaction import admit

BATCH_OPERATIONS_MAX = 1_000
WAITING_OPERATIONS_MAX = 20_000
SESSIONS_CACHED_MAX = 4_096
READ_CONNECTIONS_MAX = 8
DOUBT_SECONDS_MAX = 30.0


async def open_store(
    url: str,
    bus: Bus,
    clock: Clock,
    *,
    exclusive: bool = True,
    batch_operations_max: int = BATCH_OPERATIONS_MAX,
    waiting_operations_max: int = WAITING_OPERATIONS_MAX,
    sessions_cached_max: int = SESSIONS_CACHED_MAX,
    read_connections_max: int = READ_CONNECTIONS_MAX,
    doubt_seconds_max: float = DOUBT_SECONDS_MAX,
    series: StoreSeries | None = None,
) -> PostgresStore:
    """Open the database at a URL `postgresql://user:password@host:port/name` and bring its schema up to date.

    With `exclusive` the store also takes the right to advance sessions, which one process of a database has at a time.
    Raises `MachineUnfit` when another has it, a newer Corral wrote the database, or it cannot be opened.
    """
    await migrate(url)
    async with AsyncExitStack() as undo, explained(url):
        readers = Readers(url, read_connections_max)
        await readers.start()
        undo.push_async_callback(readers.close)
        notices = Notices(url, readers, bus, clock)
        await notices.start(exclusive=exclusive)
        undo.push_async_callback(notices.close)
        writer = Writer(
            url,
            await connect_writer(url),
            notices,
            clock,
            batch_operations_max=batch_operations_max,
            waiting_operations_max=waiting_operations_max,
            sessions_cached_max=sessions_cached_max,
            doubt_seconds_max=doubt_seconds_max,
            series=series or StoreSeries(),
        )
        notices.forget = writer.forget
        undo.pop_all()
    return PostgresStore(writer, readers, notices)


__all__ = ["PostgresStore", "migrate", "open_store"]


class PostgresStore:
    """One database: `log` is the `EventLog`, `records` the `Records`, `archive` the `Archive`."""

    def __init__(self, writer: Writer, readers: Readers, notices: Notices) -> None:
        self.log = PostgresLog(writer, readers)
        self.records = PostgresRecords(readers)
        self.archive = PostgresArchive(readers)
        self.notices = notices
        """What other processes say and are told: their commits, and which sessions have work."""
        self._writer = writer
        self._readers = readers
        self._closed = False

    async def close(self) -> None:
        """Commit what waits, then let the database go. No other call may be running or come later. Idempotent."""
        if self._closed:
            return
        self._closed = True
        await self._writer.close()
        await self.notices.close()
        await self._readers.close()


class PostgresLog:
    """`EventLog` in PostgreSQL."""

    def __init__(self, writer: Writer, readers: Readers) -> None:
        self._writer = writer
        self._readers = readers

    async def create(self, session: Session, state: SessionState, decide: Decide) -> Committed:
        """See `EventLog`."""
        return await self._writer.submit(session.id, lambda batch: batch.create(session, state, decide), creates=True)

    async def snapshot(self, session_id: str, workspace_id: str | None = None) -> Snapshot:
        """See `EventLog`."""
        stored = await reads.stored_session(self._readers, session_id)
        session = admit(stored.session if stored else None, session_id, workspace_id)
        assert stored is not None
        return Snapshot(session, stored.state)

    async def transact(
        self, session_id: str, decide: Decide, *, workspace_id: str | None = None, epoch: int | None = None
    ) -> Committed:
        """See `EventLog`. Raises `OutcomeUnknown` when the database was lost in mid-commit and has not come back."""
        return await self._writer.submit(
            session_id, lambda batch: batch.transact(session_id, decide, workspace_id, epoch)
        )

    async def claim(self, session_id: str, decide: Decide = nothing) -> Claim:
        """See `EventLog`."""
        return await self._writer.submit(session_id, lambda batch: batch.claim(session_id, decide))

    async def events(self, session_id: str, query: EventsQuery) -> list[LoggedEvent]:
        """See `EventLog`."""
        return await reads.events(self._readers, session_id, query)

    async def sessions(self, query: SessionsQuery) -> list[Snapshot]:
        """See `EventLog`."""
        return await reads.sessions(self._readers, query)

    async def unfinished(self) -> list[str]:
        """See `EventLog`."""
        return [row["id"] for row in await self._readers.fetch("unfinished")]

    async def spent_microdollars(self) -> int:
        """See `EventLog`. A running sum of all processes; what deleted sessions cost stays in it."""
        return int((await self._readers.fetch("spending"))[0]["microdollars"])

    async def delete(self, session_id: str, workspace_id: str, allow: Callable[[Session, SessionState], None]) -> None:
        """See `EventLog`."""
        await self._writer.submit(session_id, lambda batch: batch.delete(session_id, workspace_id, allow))


class PostgresRecords:
    """`Records` in PostgreSQL."""

    def __init__(self, readers: Readers) -> None:
        self._readers = readers

    async def put(self, *puts: Record, expect: Mapping[str, int] | None = None) -> None:
        """See `Records`."""
        await records.put(self._readers, puts, expect or {})

    async def get(self, kind: str, record_id: str, workspace_id: str | None) -> Record:
        """See `Records`."""
        return await reads.record(self._readers, kind, record_id, workspace_id)

    async def page(self, query: RecordsQuery) -> list[Record]:
        """See `Records`."""
        return await reads.records(self._readers, query)

    async def delete(self, kind: str, record_id: str, workspace_id: str) -> None:
        """See `Records`."""
        await records.delete(self._readers, kind, record_id, workspace_id)


class PostgresArchive:
    """`Archive` in PostgreSQL."""

    def __init__(self, readers: Readers) -> None:
        self._readers = readers

    async def workspaces(self) -> list[str]:
        """See `Archive`."""
        return [row["workspace_id"] for row in await self._readers.fetch("workspaces")]

    async def restore(self, items: Iterable[Moved]) -> Counter[str]:
        """See `Archive`. Items are taken on the event loop."""
        return await records.restore(self._readers, items)
