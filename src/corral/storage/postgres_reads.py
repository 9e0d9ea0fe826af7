"""The read side: pages of histories, sessions and records, each one statement and hence one moment of the database.

Lists are walks along an index from the cursor on, never an OFFSET. Processed and queued rows of a history are two
ranges, read one after the other in the same statement. Nothing is remembered here: another process may have written.
"""

from __future__ import annotations

from corral.domain.query import EventsQuery, LoggedEvent, Record, RecordsQuery, SessionsQuery
from corral.errors import NotFound
from corral.interfaces.event_log import Snapshot
from corral.storage.columns import (
    INTEGER_MAX,
    INTEGER_MIN,
    TEXT_MAX,
    Part,
    micros,
    parts_of,
    read_document,
    read_state,
    since,
    until,
)
from corral.storage.frames import logged
from corral.storage.postgres_connection import Readers
from corral.storage.postgres_rows import Stored, clean, cleaned, read_record, read_stored

NOTHING = (0, 0)
"""A range without rows."""


async def stored_session(readers: Readers, session_id: str) -> Stored | None:
    """The session with its number, epoch and version."""
    rows = await readers.fetch("sessions_by_id", [clean(session_id)])
    return read_stored(rows[0]) if rows else None


async def events(readers: Readers, session_id: str, query: EventsQuery) -> list[LoggedEvent]:
    """A page of history. Raises `NotFound`."""
    ranges: dict[Part, tuple[int, int]] = {"processed": NOTHING, "queued": NOTHING}
    timed = query.after is not None or query.before is not None
    for part in parts_of(query):
        if part == "processed" or not timed:
            ranges[part] = _range(query, is_cursors=query.beyond is not None and query.beyond[0] == (part == "queued"))
    rows = await readers.fetch(
        f"events_{query.order}",
        clean(session_id),
        *ranges["processed"],
        since(query.after, inclusive=query.after_inclusive),
        until(query.before, inclusive=query.before_inclusive),
        *ranges["queued"],
        cleaned(query.types),
        query.limit,
    )
    if not rows:
        await _check_exists(readers, session_id)
    return [logged(row["seq"], row["body"], row["private"]) for row in rows if row["seq"] is not None]


def _range(query: EventsQuery, *, is_cursors: bool) -> tuple[int, int]:
    """The ends of a range of seqs, themselves outside."""
    if query.beyond is None or not is_cursors:
        return 0, INTEGER_MAX
    return (query.beyond[1], INTEGER_MAX) if query.order == "asc" else (0, query.beyond[1])


async def _check_exists(readers: Readers, session_id: str) -> None:
    """An empty page has a row without an event, unless its limit was nothing."""
    if await stored_session(readers, session_id) is None:
        raise NotFound(f"Session {session_id} was not found.")


async def sessions(readers: Readers, query: SessionsQuery) -> list[Snapshot]:
    """A page of sessions; read against the order, it is turned round at the end."""
    descending = (query.order == "desc") != query.backwards
    far = (INTEGER_MAX, TEXT_MAX) if descending else (INTEGER_MIN, "")
    beyond = far if query.beyond is None else (micros(query.beyond[0]), clean(query.beyond[1]))
    rows = await readers.fetch(
        "sessions_desc" if descending else "sessions_asc",
        query.workspace_id,
        *beyond,
        since(query.after, inclusive=query.after_inclusive),
        until(query.before, inclusive=query.before_inclusive),
        cleaned(query.statuses),
        None if query.agent_id is None else clean(query.agent_id),
        query.agent_version,
        None if query.deployment_id is None else clean(query.deployment_id),
        query.include_archived,
        query.limit,
    )
    page = [Snapshot(read_document(row["document"]), read_state(row["state"])) for row in rows]
    return page[::-1] if query.backwards else page


async def record(readers: Readers, kind: str, record_id: str, workspace_id: str | None) -> Record:
    """One record. Raises `NotFound`."""
    rows = await readers.fetch("record", kind, clean(record_id))
    if not rows or workspace_id not in (None, rows[0]["workspace_id"]):
        raise NotFound(f"{kind} {record_id} not found")
    return read_record(rows[0])


async def records(readers: Readers, query: RecordsQuery) -> list[Record]:
    """A page of records, along the index that fits what is asked."""
    beyond = (INTEGER_MAX, TEXT_MAX) if query.beyond is None else (micros(query.beyond[0]), clean(query.beyond[1]))
    rows = await readers.fetch(
        _records_query(query),
        query.kind,
        query.workspace_id,
        None if query.parent_id is None else clean(query.parent_id),
        *beyond,
        since(query.after, inclusive=query.after_inclusive),
        until(query.before, inclusive=query.before_inclusive),
        query.include_archived,
        query.limit,
    )
    return [read_record(row) for row in rows]


def _records_query(query: RecordsQuery) -> str:
    if query.parent_id is not None:
        return "records_of_parent"
    return "records_of_all" if query.workspace_id is None else "records_of_workspace"
