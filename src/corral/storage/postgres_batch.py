"""One PostgreSQL commit that carries the operations of many callers, decided in memory.

The writer loads the sessions that are needed, runs every operation on this overlay, and sends what was collected in one
statement (`postgres_writer.py`). Nothing here awaits: an operation that needs the body of a queued event that is not at
hand is noted in `missing`, and the whole batch runs again with it. An operation changes the overlay last, when nothing
can refuse any more, so one that raises has done nothing.

Every session that an operation has looked at is in `touched` with the version that was seen, also when the operation
refused or wrote nothing: an answer that rests on an old version must not be given either.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime

import msgspec

from corral.domain.session import Session, SessionState
from corral.errors import Conflict
from corral.interfaces.bus import Frame
from corral.interfaces.event_log import Claim, Committed, Decide
from corral.storage.frames import EventRow, deleted_frame
from corral.storage.postgres_rows import Stored
from corral.storage.transaction import Outcome, admit, cost, fence, outcome_of


class MissingBody(Exception):
    """The body of a queued event must be fetched first."""


class Published(msgspec.Struct, gc=False):
    """What a commit did to one session's log, for its streams."""

    session_id: str
    low: int
    """The first and the last new seq; both 0 for a session that was deleted."""
    high: int
    frames: list[Frame]


class Batch:
    """The commit that is being put together."""

    def __init__(
        self,
        sessions: Mapping[str, Stored | None],
        bodies: Mapping[tuple[int, int], bytes],
        numbers: list[int],
        now: datetime,
    ) -> None:
        self.touched: dict[str, Stored] = {}
        """Sessions as they were read."""
        self.sessions: dict[str, Stored | None] = dict(sessions)
        """Sessions as they are in this commit; None for those that there are not."""
        self.events: dict[tuple[int, int], EventRow] = {}
        self.moved: list[tuple[int, int]] = []
        self.created: dict[int, Stored] = {}
        self.deleted: list[int] = []
        self.redescribed: dict[int, Stored] = {}
        """Sessions whose document changed."""
        self.advanced: dict[int, Stored] = {}
        """Sessions whose state, status or epoch changed."""
        self.published: dict[str, Published] = {}
        self.spent = 0
        self.missing: set[tuple[int, int]] = set()
        self._bodies = bodies
        self._numbers = iter(numbers)
        self._now = now

    @property
    def writes(self) -> bool:
        """Whether there is anything to commit."""
        return bool(self.events or self.moved or self.advanced or self.is_rare)

    @property
    def is_rare(self) -> bool:
        """Whether it takes more than the one statement."""
        return bool(self.created or self.deleted or self.redescribed or self.moved)

    # ------------------------------------------------------------------------------------------- the operations

    def create(self, session: Session, state: SessionState, decide: Decide) -> Committed:
        """`EventLog.create`."""
        if self._find(session.id) is not None:
            raise Conflict(f"session {session.id} exists already")
        outcome = outcome_of(session, state, decide, self._now, self._no_body)
        stored = Stored(next(self._numbers), outcome.committed.session, outcome.committed.state, 0, 0)
        self.created[stored.number] = stored
        self._keep(stored, outcome, cost(None, stored.state))
        return outcome.committed

    def transact(self, session_id: str, decide: Decide, workspace_id: str | None, epoch: int | None) -> Committed:
        """`EventLog.transact`."""
        before = self._get(session_id, workspace_id)
        fence(session_id, epoch, before.epoch)
        outcome = outcome_of(
            before.session, before.state, decide, self._now, lambda seq: self._body(before.number, seq)
        )
        committed = outcome.committed
        after = Stored(before.number, committed.session, committed.state, before.epoch, before.version)
        if after.session is not before.session:
            self._put(self.redescribed, after)
        if after.state is not before.state:
            self._put(self.advanced, after)
        self._keep(after, outcome, cost(before.state, after.state) if after.state is not before.state else 0)
        return committed

    def claim(self, session_id: str, decide: Decide) -> Claim:
        """`EventLog.claim`."""
        committed = self.transact(session_id, decide, None, None)
        decided = self._get(session_id, None)
        after = msgspec.structs.replace(decided, epoch=decided.epoch + 1)
        self._put(self.advanced, after)
        self.sessions[session_id] = after
        return Claim(after.epoch, committed)

    def delete(self, session_id: str, workspace_id: str, allow: Callable[[Session, SessionState], None]) -> None:
        """`EventLog.delete`."""
        stored = self._get(session_id, workspace_id)
        allow(stored.session, stored.state)
        number = stored.number
        self.events = {key: row for key, row in self.events.items() if key[0] != number}
        self.moved = [key for key in self.moved if key[0] != number]
        for pending in (self.redescribed, self.advanced):
            pending.pop(number, None)
        if self.created.pop(number, None) is None:
            self.deleted.append(number)
        self.sessions[session_id] = None
        told = self.published.pop(session_id, None)
        frames = told.frames if told else []
        self.published[session_id] = Published(session_id, 0, 0, [*frames, deleted_frame(session_id, self._now)])

    # -------------------------------------------------------------------------------------------------- reading

    def _find(self, session_id: str) -> Stored | None:
        stored = self.sessions[session_id]
        if stored is not None and stored.version and session_id not in self.touched:
            self.touched[session_id] = stored
        return stored

    def _get(self, session_id: str, workspace_id: str | None) -> Stored:
        stored = self._find(session_id)
        admit(stored.session if stored else None, session_id, workspace_id)
        assert stored is not None
        return stored

    def _body(self, number: int, seq: int) -> bytes:
        key = (number, seq)
        if key in self.events:
            return self.events[key].body
        if key not in self._bodies:
            self.missing.add(key)
            raise MissingBody
        return self._bodies[key]

    @staticmethod
    def _no_body(seq: int) -> bytes:
        raise AssertionError(f"a new session has no event at {seq}")

    # -------------------------------------------------------------------------------------------------- writing

    def _put(self, pending: dict[int, Stored], stored: Stored) -> None:
        """A session that this commit creates is written once, as it is at the end."""
        if stored.number in self.created:
            self.created[stored.number] = stored
        else:
            pending[stored.number] = stored

    def _keep(self, stored: Stored, outcome: Outcome, spent: int) -> None:
        for seq in outcome.moved:
            if self.events.pop((stored.number, seq), None) is None:
                self.moved.append((stored.number, seq))
        for row in outcome.rows:
            self.events[stored.number, row.seq] = row
        self.sessions[stored.session.id] = stored
        self.spent += spent
        if outcome.frames:
            self._publish(stored, outcome)

    def _publish(self, stored: Stored, outcome: Outcome) -> None:
        session_id, high = stored.session.id, stored.state.seq
        low = high - len(outcome.frames) + 1
        told = self.published.get(session_id)
        if told is None:
            self.published[session_id] = Published(session_id, low, high, list(outcome.frames))
            return
        told.frames += outcome.frames
        if told.high:  # else it was deleted and made again: what comes now belongs to another log
            told.high = high
