"""How things look in PostgreSQL's tables: parameters of statements, and rows read back.

The writer, the readers and the archive share this file; it opens nothing and runs nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

import asyncpg
import msgspec

from corral.domain.query import Record
from corral.domain.session import Session, SessionState
from corral.storage.columns import micros, moment, read_document, read_state
from corral.storage.frames import EventRow, encode


class Stored(msgspec.Struct, frozen=True, gc=False):
    """A session as it is, with the number that its rows are found by."""

    number: int
    session: Session
    state: SessionState
    epoch: int
    version: int
    """Which of its commits this is; 0 for a session that is not committed yet."""


def clean(text: str) -> str:
    """What is looked up. PostgreSQL's text has no NUL, nothing stored has one, and so this must not find anything."""
    return text.replace("\0", "\U0010ffff") if "\0" in text else text


def cleaned(values: Iterable[str]) -> list[str] | None:
    """The same for a list, of which an empty one means no limit."""
    return [clean(value) for value in values] or None


def read_stored(row: asyncpg.Record) -> Stored:
    """A row of `sessions_by_id`."""
    return Stored(row["number"], read_document(row["document"]), read_state(row["state"]), row["epoch"], row["version"])


def session_columns(session: Session) -> tuple[str, str, int, str, str | None]:
    """What `insert_session` and `update_session` have in common, between id and status."""
    return (
        session.workspace_id,
        session.agent.id,
        session.agent.version,
        session.environment_id,
        session.deployment_id,
    )


def archived_at(session: Session) -> int | None:
    """For `insert_session` and `update_session`."""
    return None if session.archived_at is None else micros(session.archived_at)


def insert_parameters(stored: Stored) -> tuple[object, ...]:
    """For `insert_session`."""
    session = stored.session
    return (
        stored.number,
        session.id,
        *session_columns(session),
        stored.state.status,
        stored.epoch,
        encode(stored.state),
        micros(session.created_at),
        archived_at(session),
    )


def event_parameters(number: int, row: EventRow) -> tuple[int, int, str, str, int | None, bytes, bytes | None]:
    """One row of `events`."""
    stamped = None if row.processed_at is None else micros(row.processed_at)
    return number, row.seq, row.id, row.type, stamped, row.body, row.private


def record_parameters(record: Record, *, replace: bool) -> tuple[object, ...]:
    """For `put_record`. Unique keys are what users call things, so they are bytes, which may be any."""
    return (
        record.kind,
        record.id,
        record.workspace_id,
        record.parent_id,
        None if record.unique_key is None else record.unique_key.encode(errors="surrogatepass"),
        micros(record.created_at),
        None if record.archived_at is None else micros(record.archived_at),
        record.revision,
        record.body,
        replace,
    )


def read_record(row: asyncpg.Record) -> Record:
    """A row of the record queries."""
    return Record(
        kind=row["kind"],
        id=row["id"],
        workspace_id=row["workspace_id"],
        parent_id=row["parent_id"],
        unique_key=None if row["unique_key"] is None else row["unique_key"].decode(errors="surrogatepass"),
        created_at=moment(row["created_at"]),
        archived_at=None if row["archived_at"] is None else moment(row["archived_at"]),
        revision=row["revision"],
        body=row["body"],
    )
