"""One SQLite transaction that carries the operations of many callers.

Operations run one after another on the writer's thread. Each sees what the ones before it did, through an overlay over
the committed sessions. What a session operation writes is collected and goes to SQLite in a few large statements at
the end (`flush`): a session that ten operations touched has its state written once. Rare operations (create, delete,
records) write at once. An operation changes the overlay last, when nothing can refuse any more, so one that raises has
done nothing; an `sqlite3.Error` instead spoils the whole transaction, and `sqlite_writer.py` takes it back.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime

import msgspec

from corral.domain.query import Record
from corral.domain.session import Session, SessionState
from corral.errors import Conflict, NotFound
from corral.interfaces.bus import Frame
from corral.interfaces.event_log import Claim, Committed, Decide
from corral.interfaces.store import Moved
from corral.storage.columns import read_record
from corral.storage.frames import deleted_frame, encode
from corral.storage.sqlite_restore import Restoring
from corral.storage.sqlite_rows import (
    SEQ_BITS,
    SQL,
    EventParameters,
    Stored,
    event_parameters,
    insert_all,
    positions,
    read_stored,
    record_parameters,
    session_parameters,
)
from corral.storage.transaction import Outcome, admit, check_put, cost, fence, outcome_of, taken


class Batch:
    """The transaction that is open now. Lives on the writer's thread."""

    def __init__(
        self, connection: sqlite3.Connection, committed: Callable[[str], Stored | None], now: datetime
    ) -> None:
        self._connection = connection
        self._committed = committed
        self._now = now
        self.sessions: dict[str, Stored | None] = {}
        """Sessions that this transaction has read or written, as they are in it; None for deleted ones."""
        self.frames: list[Frame] = []
        self.spent = 0
        self._events: dict[int, EventParameters] = {}
        self._moved: list[int] = []
        self._states: dict[int, SessionState] = {}

    # ------------------------------------------------------------------------------------------- the operations

    def create(self, session: Session, state: SessionState, decide: Decide) -> Committed:
        """`EventLog.create`."""
        if self._find(session.id) is not None:
            raise Conflict(f"session {session.id} exists already")
        outcome = outcome_of(session, state, decide, self._now, self._no_body)
        stored = Stored(0, outcome.committed.session, outcome.committed.state, 0)
        parameters = session_parameters(stored)
        state_body = encode(stored.state)
        number = self._connection.execute(SQL["insert_session"], parameters).lastrowid
        assert number is not None
        self._connection.execute(SQL["put_document"], parameters | {"number": number})
        insert_all(self._connection, "put_states", [(number, state_body)])
        self._keep(msgspec.structs.replace(stored, number=number), outcome)
        self.spent += cost(None, stored.state)
        return outcome.committed

    def transact(self, session_id: str, decide: Decide, workspace_id: str | None, epoch: int | None) -> Committed:
        """`EventLog.transact`."""
        before = self._get(session_id, workspace_id)
        fence(session_id, epoch, before.epoch)
        outcome = outcome_of(
            before.session, before.state, decide, self._now, lambda seq: self._body(before.number, seq)
        )
        after = Stored(before.number, outcome.committed.session, outcome.committed.state, before.epoch)
        if after.session is not before.session:
            parameters = session_parameters(after)
            self._connection.execute(SQL["update_session"], parameters)
            self._connection.execute(SQL["put_document"], parameters)
        if after.state is not before.state:
            self._advance(before, after)
        self._keep(after, outcome)
        return outcome.committed

    def claim(self, session_id: str, decide: Decide) -> Claim:
        """`EventLog.claim`."""
        committed = self.transact(session_id, decide, None, None)
        decided = self._get(session_id, None)
        after = msgspec.structs.replace(decided, epoch=decided.epoch + 1)
        self._write_status(after)
        self.sessions[session_id] = after
        return Claim(after.epoch, committed)

    def delete(self, session_id: str, workspace_id: str, allow: Callable[[Session, SessionState], None]) -> None:
        """`EventLog.delete`."""
        stored = self._get(session_id, workspace_id)
        allow(stored.session, stored.state)
        low, high = positions(stored.number)
        self._connection.execute(SQL["delete_session_events"], {"low": low, "high": high})
        for name in ("delete_session_document", "delete_session_state", "delete_session"):
            self._connection.execute(SQL[name], (stored.number,))
        self._events = {position: row for position, row in self._events.items() if not low < position < high}
        self._moved = [position for position in self._moved if not low < position < high]
        self._states.pop(stored.number, None)
        self.sessions[session_id] = None
        self.frames.append(deleted_frame(session_id, self._now))

    def put(self, records: Sequence[Record], expect: Mapping[str, int]) -> None:
        """`Records.put`: in a savepoint, since a conflict may come to light when some are written already."""
        self._connection.execute("SAVEPOINT put")
        try:
            for record in records:
                check_put(record, self._record(record.kind, record.id), expect.get(record.id))
            for record in records:
                self._put_one(record)
        except BaseException:
            self._connection.execute("ROLLBACK TO put")
            self._connection.execute("RELEASE put")
            raise
        self._connection.execute("RELEASE put")

    def delete_record(self, kind: str, record_id: str, workspace_id: str) -> None:
        """`Records.delete`."""
        key = {"kind": kind, "id": record_id, "workspace_id": workspace_id}
        if self._connection.execute(SQL["delete_record"], key).rowcount == 0:
            raise NotFound(f"{kind} {record_id} not found")

    def restore(self, items: Iterable[Moved]) -> Counter[str]:
        """`Archive.restore`: in a savepoint, and on the rows themselves, so what was collected must be there."""
        self._hand_over()
        self._connection.execute("SAVEPOINT restore")
        try:
            known = Restoring(self._connection).run(items)
        except BaseException:
            self._connection.execute("ROLLBACK TO restore")
            self._connection.execute("RELEASE restore")
            raise
        self._connection.execute("RELEASE restore")
        return known

    def flush(self) -> None:
        """Hand what was collected to SQLite."""
        self._hand_over()
        if self.spent:
            self._connection.execute(SQL["add_spending"], (self.spent,))

    def _hand_over(self) -> None:
        """Moved rows go before new ones come, deleted sessions are gone already."""
        for position in self._moved:
            self._connection.execute(SQL["delete_event"], (position,))
        insert_all(self._connection, "insert_events", self._events.values())
        states = [(number, encode(state)) for number, state in self._states.items()]
        insert_all(self._connection, "put_states", states)
        self._moved.clear()
        self._events.clear()
        self._states.clear()

    # -------------------------------------------------------------------------------------------------- reading

    def _find(self, session_id: str) -> Stored | None:
        if session_id in self.sessions:
            return self.sessions[session_id]
        stored = self._committed(session_id)
        if stored is None:
            row = self._connection.execute(SQL["session_by_id"], {"id": session_id}).fetchone()
            stored = None if row is None else read_stored(row)
        if stored is not None:
            self.sessions[session_id] = stored
        return stored

    def _get(self, session_id: str, workspace_id: str | None) -> Stored:
        stored = self._find(session_id)
        admit(stored.session if stored else None, session_id, workspace_id)
        assert stored is not None
        return stored

    def _body(self, number: int, seq: int) -> bytes:
        position = number << SEQ_BITS | seq
        if position in self._events:
            return self._events[position][4]
        (body,) = self._connection.execute(SQL["queued_body"], (position,)).fetchone()
        return body

    @staticmethod
    def _no_body(seq: int) -> bytes:
        raise AssertionError(f"a new session has no event at {seq}")

    def _record(self, kind: str, record_id: str) -> Record | None:
        row = self._connection.execute(SQL["record"], {"kind": kind, "id": record_id}).fetchone()
        return None if row is None else read_record(row)

    # -------------------------------------------------------------------------------------------------- writing

    def _advance(self, before: Stored, after: Stored) -> None:
        if after.state.status != before.state.status:
            self._write_status(after)
        self._states[after.number] = after.state
        self.spent += cost(before.state, after.state)

    def _write_status(self, stored: Stored) -> None:
        parameters = {"status": stored.state.status, "epoch": stored.epoch, "number": stored.number}
        self._connection.execute(SQL["update_status"], parameters)

    def _keep(self, stored: Stored, outcome: Outcome) -> None:
        for seq in outcome.moved:
            position = stored.number << SEQ_BITS | seq
            if self._events.pop(position, None) is None:
                self._moved.append(position)
        for row in outcome.rows:
            parameters = event_parameters(stored.number, row)
            self._events[parameters[0]] = parameters
        self.sessions[stored.session.id] = stored
        self.frames += outcome.frames

    def _put_one(self, record: Record) -> None:
        try:
            self._connection.execute(SQL["put_record"], record_parameters(record))
        except sqlite3.IntegrityError as error:
            raise taken(record) from error
