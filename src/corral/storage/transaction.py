"""What a transaction on a session means, whatever the backend: who may, what is decided, which rows follow.

The functions here are pure. A backend hands in the session as it is now, and gets back what to write (`Outcome`); the
rules of the log itself are `domain/lifecycle.py`. What a backend adds is that the writing happens wholly or not at all.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

import msgspec

from corral.domain.lifecycle import Process, Row, commit
from corral.domain.query import Record
from corral.domain.session import Session, SessionState, view
from corral.errors import Conflict, NotFound, StaleEpoch
from corral.interfaces.bus import Frame
from corral.interfaces.event_log import Committed, Decide
from corral.interfaces.store import Depending
from corral.storage.frames import EventRow, frame_of, read_event, row_of


class Outcome(msgspec.Struct, frozen=True, gc=False):
    """What is to be written, and what the caller and the streams are told afterwards."""

    committed: Committed
    rows: tuple[EventRow, ...]
    """New rows. No position is among them twice."""
    moved: tuple[int, ...]
    """Positions of stored rows that are gone: each stands in `rows` again, processed."""
    frames: tuple[Frame, ...]


def admit(session: Session | None, session_id: str, workspace_id: str | None) -> Session:
    """The session, if it exists and the caller's workspace may see it. Raises `NotFound`."""
    if session is None or workspace_id not in (None, session.workspace_id):
        raise NotFound(f"Session {session_id} was not found.")
    return session


def fence(session_id: str, held: int | None, current: int) -> None:
    """Raises `StaleEpoch` when the caller held the session and has lost it."""
    if held is not None and held != current:
        raise StaleEpoch(f"epoch {held} of session {session_id} is over; it is in epoch {current}")


def outcome_of(
    session: Session, state: SessionState, decide: Decide, now: datetime, queued_body: Callable[[int], bytes]
) -> Outcome:
    """Run a decision function and work out its rows. `queued_body` reads the body of the row at a position.

    Time never runs backwards in a session: a clock that was set back stands still until it has caught up."""
    now = max(now, session.created_at, state.last_at or now)
    decision = decide(session, state, now)
    session = decision.session or session
    if not decision.changes:
        return Outcome(Committed(session, state, (), decision.step), (), (), ())
    after = commit(state, decision.changes, now)
    moves = Process in map(type, decision.changes)
    changed = _filled(after.rows, queued_body) if moves else after.rows
    rows = tuple([row_of(row) for row in changed])
    frames = tuple([frame_of(session.id, row) for row in rows])
    committed = Committed(session, after.state, changed, decision.step)
    if not moves:
        return Outcome(committed, rows, (), frames)
    # An event may be accepted and taken up in the same transaction: then its first row is never stored.
    moved = {row.moved_from for row in changed if row.moved_from is not None}
    fresh = moved & {row.seq for row in rows}
    return Outcome(committed, tuple(row for row in rows if row.seq not in fresh), tuple(moved - fresh), frames)


def _filled(changed: tuple[Row, ...], queued_body: Callable[[int], bytes]) -> tuple[Row, ...]:
    """The rows, those of queued events that are taken up now with their event."""
    fresh = {row.seq: row.event for row in changed}
    filled: list[Row] = []
    for row in changed:
        if row.moved_from is not None:
            event = fresh.get(row.moved_from) or read_event(queued_body(row.moved_from))
            event = msgspec.structs.replace(event, processed_at=row.processed_at)
            row = msgspec.structs.replace(row, event=event)
        filled.append(row)
    return tuple(filled)


def cost(before: SessionState | None, after: SessionState) -> int:
    """Micro-dollars by which a commit raised the organisation's spending. What was spent stays spent."""
    known = after.totals.token_cost_microdollars
    if known is None or (before is not None and before.totals is after.totals):
        return 0
    return known - ((before.totals.token_cost_microdollars or 0) if before else 0)


def check_put(record: Record, stored: Record | None, expected: int | None) -> None:
    """Raises `Conflict` if a record may not take the place of the stored one."""
    revision = stored.revision if stored else 0
    if expected is not None and expected != revision:
        raise Conflict(f"{record.kind} {record.id} is at revision {revision}, not {expected}")
    if stored is not None and stored.workspace_id != record.workspace_id:
        raise Conflict(f"{record.kind} {record.id} belongs to another workspace")


def same_body(body: bytes, other: bytes) -> bool:
    """Whether two bodies are the same JSON."""
    return body == other or msgspec.json.decode(body) == msgspec.json.decode(other)


def made(item: Record | Depending, here: Record | None) -> Record | None:
    """The record that an item of a restore stands for."""
    return item if isinstance(item, Record) else item.record(here)


def check_same_record(record: Record, stored: Record) -> None:
    """Raises `Conflict` if a restored record is not the stored one. How often it was changed does not matter."""
    aged = msgspec.structs.replace(record, revision=stored.revision, body=stored.body)
    if aged != stored or not same_body(record.body, stored.body):
        raise differs(record.kind, record.id)


def check_same_session(stored: Session, stored_state: SessionState, session: Session, state: SessionState) -> None:
    """Raises `Conflict` if a restored session does not look like the stored one to a client."""
    before = view(stored, stored_state, stored_state.last_at or stored.created_at)
    after = view(session, state, state.last_at or session.created_at)
    if before != after or stored.workspace_id != session.workspace_id:
        raise differs("session", session.id)


def differs(kind: str, object_id: str) -> Conflict:
    """The error for an object that cannot be restored."""
    return Conflict(f"{kind} {object_id} exists already and is not the same")


def taken(record: Record) -> Conflict:
    """The error for a unique key that another record has."""
    return Conflict(f"another {record.kind} is named {record.unique_key!r}")
