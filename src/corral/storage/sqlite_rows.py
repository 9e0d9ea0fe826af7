"""How things look in SQLite's tables: positions, parameters of statements, rows read back.

The writer and the readers share this file; it opens nothing and runs nothing.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TypeAlias

import msgspec

from corral.domain.query import Record
from corral.domain.session import Session, SessionState
from corral.storage.columns import micros, read_document, read_state
from corral.storage.frames import EventRow, encode
from corral.storage.named_sql import read_queries
from corral.storage.sqlite_file import QUERIES

SQL = read_queries(QUERIES)

SEQ_BITS = 32
Value: TypeAlias = str | bytes | int | None
EventParameters: TypeAlias = tuple[int, str, str, int | None, bytes, bytes | None]


class Stored(msgspec.Struct, frozen=True, gc=False):
    """A session as it is, with the number that its rows are found by."""

    number: int
    session: Session
    state: SessionState
    epoch: int


def positions(number: int) -> tuple[int, int]:
    """The ends of a session's positions, themselves outside: seqs begin at 1."""
    return number << SEQ_BITS, (number + 1) << SEQ_BITS


def event_parameters(number: int, row: EventRow) -> EventParameters:
    """For `insert_events`."""
    stamped = None if row.processed_at is None else micros(row.processed_at)
    return number << SEQ_BITS | row.seq, row.id, row.type, stamped, row.body, row.private


def session_parameters(stored: Stored) -> dict[str, Value]:
    """For every statement on `sessions` and `session_documents`."""
    session = stored.session
    return {
        "number": stored.number,
        "id": session.id,
        "workspace_id": session.workspace_id,
        "agent_id": session.agent.id,
        "agent_version": session.agent.version,
        "environment_id": session.environment_id,
        "deployment_id": session.deployment_id,
        "status": stored.state.status,
        "epoch": stored.epoch,
        "created_at": micros(session.created_at),
        "archived_at": None if session.archived_at is None else micros(session.archived_at),
        "document": encode(session),
    }


def read_stored(row: Sequence[int | bytes]) -> Stored:
    """A row of `session_by_id`."""
    number, epoch, document, state = row
    assert isinstance(number, int) and isinstance(epoch, int)
    assert isinstance(document, bytes) and isinstance(state, bytes)
    return Stored(number, read_document(document), read_state(state), epoch)


def record_parameters(record: Record) -> dict[str, Value]:
    """For `put_record`."""
    return {
        "kind": record.kind,
        "id": record.id,
        "workspace_id": record.workspace_id,
        "parent_id": record.parent_id,
        "unique_key": record.unique_key,
        "created_at": micros(record.created_at),
        "archived_at": None if record.archived_at is None else micros(record.archived_at),
        "revision": record.revision,
        "body": record.body,
    }


_CHUNKS = (64, 8, 1)
_BULK = {
    (name, rows): SQL[name] + f", ({', '.join('?' * columns)})" * (rows - 1)
    for name, columns in (("insert_events", 6), ("put_states", 2))
    for rows in _CHUNKS
}


def insert_all(connection: sqlite3.Connection, name: str, rows: Iterable[tuple[Value, ...]]) -> None:
    """Run a statement for many rows at once.

    Python gives its interpreter lock away at every row that `executemany` steps, and waits up to 5 ms to get it back
    when the event loop is busy: 200 rows took 0.6 s so. A statement over many rows gives it away once.
    """
    waiting = list(rows)
    start = 0
    for size in _CHUNKS:
        while len(waiting) - start >= size:
            connection.execute(_BULK[name, size], tuple(chain.from_iterable(waiting[start : start + size])))
            start += size
