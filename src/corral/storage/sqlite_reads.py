"""The read side: a few read-only connections on worker threads, so that a read never waits for the writer.

Each read is one SQLite read transaction, hence one moment of the database; whatever was committed before it began is in
it. Lists are walks along an index from the cursor on, never an OFFSET. Filters other than the cursor are checked row by
row on the way: an index for each would cost every append more than it saves a rare read.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias, TypeVar

import anyio
import anyio.to_thread
import msgspec

from corral.domain.query import EventsQuery, LoggedEvent, Record, RecordsQuery, SessionsQuery
from corral.errors import NotFound, Unavailable
from corral.interfaces.event_log import Snapshot
from corral.storage.columns import (
    INTEGER_MAX,
    INTEGER_MIN,
    TEXT_MAX,
    Part,
    micros,
    parts_of,
    read_document,
    read_record,
    read_state,
    since,
    until,
)
from corral.storage.frames import logged
from corral.storage.sqlite_file import connect_reader
from corral.storage.sqlite_rows import (
    SEQ_BITS,
    SQL,
    Stored,
    positions,
    read_stored,
)

T = TypeVar("T")
Read: TypeAlias = Callable[[sqlite3.Connection], T]


class Readers:
    """Read-only connections, opened as they are needed."""

    def __init__(self, path: Path, connections_max: int) -> None:
        self._path = path
        self._limiter = anyio.CapacityLimiter(connections_max)
        self._idle: list[sqlite3.Connection] = []

    async def run(self, read: Read[T]) -> T:
        """Run a read on a worker thread, in one read transaction."""
        return await anyio.to_thread.run_sync(self._run, read, limiter=self._limiter)

    def _run(self, read: Read[T]) -> T:
        connection = self._idle.pop() if self._idle else connect_reader(self._path)
        try:
            connection.execute("BEGIN")
            return read(connection)
        except sqlite3.Error as error:
            raise Unavailable(f"the database cannot be read: {error}") from error
        finally:
            connection.rollback()
            self._idle.append(connection)

    def close(self) -> None:
        """Close all connections; no read may be running."""
        while self._idle:
            self._idle.pop().close()


def stored_session(session_id: str) -> Read[Stored | None]:
    """The session with its number and epoch."""

    def read(connection: sqlite3.Connection) -> Stored | None:
        row = connection.execute(SQL["session_by_id"], {"id": session_id}).fetchone()
        return None if row is None else read_stored(row)

    return read


def events(session_id: str, query: EventsQuery) -> Read[list[LoggedEvent]]:
    """A page of history: processed rows and queued rows are two ranges, read one after the other."""

    def read(connection: sqlite3.Connection) -> list[LoggedEvent]:
        found = connection.execute(SQL["session_number"], {"id": session_id}).fetchone()
        if found is None:
            raise NotFound(f"Session {session_id} was not found.")
        page: list[LoggedEvent] = []
        for part in parts_of(query):
            page += _events_of(connection, found[0], query, part, query.limit - len(page))
        return page

    return read


def _events_of(
    connection: sqlite3.Connection, number: int, query: EventsQuery, part: Part, limit: int
) -> list[LoggedEvent]:
    timed = query.after is not None or query.before is not None
    if limit <= 0 or (part == "queued" and timed):
        return []
    low, high = positions(number)
    if query.beyond is not None and query.beyond[0] == (part == "queued"):
        position = low + query.beyond[1]
        low, high = (position, high) if query.order == "asc" else (low, position)
    parameters = {
        "low": low,
        "high": high,
        "since": since(query.after, inclusive=query.after_inclusive),
        "until": until(query.before, inclusive=query.before_inclusive),
        "types": _json(query.types),
        "limit": limit,
    }
    rows = connection.execute(SQL[f"{part}_events_{query.order}"], parameters)
    return [logged(position & (1 << SEQ_BITS) - 1, body, private) for position, body, private in rows]


def sessions(query: SessionsQuery) -> Read[list[Snapshot]]:
    """A page of sessions; read against the order, it is turned round at the end."""

    def read(connection: sqlite3.Connection) -> list[Snapshot]:
        descending = (query.order == "desc") != query.backwards
        far = (INTEGER_MAX, TEXT_MAX) if descending else (INTEGER_MIN, "")
        beyond = far if query.beyond is None else (micros(query.beyond[0]), query.beyond[1])
        parameters = {
            "workspace_id": query.workspace_id,
            "beyond_at": beyond[0],
            "beyond_id": beyond[1],
            "since": since(query.after, inclusive=query.after_inclusive),
            "until": until(query.before, inclusive=query.before_inclusive),
            "statuses": _json(query.statuses),
            "agent_id": query.agent_id,
            "agent_version": query.agent_version,
            "deployment_id": query.deployment_id,
            "include_archived": query.include_archived,
            "limit": query.limit,
        }
        rows = connection.execute(SQL["sessions_desc" if descending else "sessions_asc"], parameters)
        page = [Snapshot(read_document(document), read_state(state)) for document, state in rows]
        return page[::-1] if query.backwards else page

    return read


def unfinished(connection: sqlite3.Connection) -> list[str]:
    """Ids of sessions that are running or rescheduling."""
    return [session_id for (session_id,) in connection.execute(SQL["unfinished"])]


def workspaces(connection: sqlite3.Connection) -> list[str]:
    """Ids of workspaces that have something."""
    return [workspace_id for (workspace_id,) in connection.execute(SQL["workspaces"])]


def record(kind: str, record_id: str, workspace_id: str | None) -> Read[Record]:
    """One record."""

    def read(connection: sqlite3.Connection) -> Record:
        row = connection.execute(SQL["record"], {"kind": kind, "id": record_id}).fetchone()
        if row is None or workspace_id not in (None, row[2]):
            raise NotFound(f"{kind} {record_id} not found")
        return read_record(row)

    return read


def records(query: RecordsQuery) -> Read[list[Record]]:
    """A page of records, along the index that fits what is asked."""

    def read(connection: sqlite3.Connection) -> list[Record]:
        beyond = (INTEGER_MAX, TEXT_MAX) if query.beyond is None else (micros(query.beyond[0]), query.beyond[1])
        parameters = {
            "kind": query.kind,
            "workspace_id": query.workspace_id,
            "parent_id": query.parent_id,
            "beyond_at": beyond[0],
            "beyond_id": beyond[1],
            "since": since(query.after, inclusive=query.after_inclusive),
            "until": until(query.before, inclusive=query.before_inclusive),
            "include_archived": query.include_archived,
            "limit": query.limit,
        }
        return [read_record(row) for row in connection.execute(SQL[_records_query(query)], parameters)]

    return read


def _records_query(query: RecordsQuery) -> str:
    if query.parent_id is not None:
        return "records_of_parent"
    return "records_of_all" if query.workspace_id is None else "records_of_workspace"


def _json(values: tuple[str, ...]) -> str | None:
    return msgspec.json.encode(values).decode() if values else None
