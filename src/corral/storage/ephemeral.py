"""The store of tests and of nothing else: the same promises as `sqlite.py`, kept in memory and gone at the end.

Everything runs on the event loop and nothing awaits between a decision and its effect, so a transaction is atomic by
construction. Events are kept as their encoded bodies, so that reading back means the same as it does from disk.
`before_write` is called once before every transaction that would write; a test that raises there has a process that
died at its n-th write.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import zip_longest
from typing import TypeVar

import anyio.lowlevel

from corral.domain.query import EventsQuery, LoggedEvent, Record, RecordsQuery, SessionsQuery
from corral.domain.session import Session, SessionState
from corral.errors import Conflict, NotFound
from corral.interfaces.bus import Bus, Frame
from corral.interfaces.clock import Clock
from corral.interfaces.event_log import Claim, Committed, Decide, Snapshot, nothing
from corral.interfaces.store import Depending, Moved, Restored
from corral.storage.frames import EventRow, deleted_frame, logged
from corral.storage.transaction import (
    Outcome,
    admit,
    check_put,
    check_same_record,
    check_same_session,
    cost,
    differs,
    fence,
    made,
    outcome_of,
    same_body,
    taken,
)

T = TypeVar("T")


class EphemeralStore:
    """Memory: `log` is the `EventLog`, `records` the `Records`, `archive` the `Archive`."""

    def __init__(self, bus: Bus, clock: Clock, *, before_write: Callable[[], None] | None = None) -> None:
        write = before_write or _write_nothing
        self.log = EphemeralLog(bus, clock, write)
        self.records = EphemeralRecords(write)
        self.archive = EphemeralArchive(self.log, self.records, write)

    async def close(self) -> None:
        """Nothing to let go of."""


def _write_nothing() -> None:
    """The usual `before_write`."""


class _Held:
    """A session and its rows."""

    def __init__(self, session: Session, state: SessionState) -> None:
        self.session = session
        self.state = state
        self.epoch = 0
        self.rows: dict[int, EventRow] = {}


class EphemeralLog:
    """`EventLog` in memory."""

    def __init__(self, bus: Bus, clock: Clock, before_write: Callable[[], None]) -> None:
        self._bus = bus
        self._clock = clock
        self._before_write = before_write
        self.held: dict[str, _Held] = {}
        """The archive shares it; nobody else looks at it."""
        self._spent_microdollars = 0

    async def create(self, session: Session, state: SessionState, decide: Decide) -> Committed:
        """See `EventLog`."""
        await anyio.lowlevel.checkpoint()
        if session.id in self.held:
            raise Conflict(f"session {session.id} exists already")
        held = _Held(session, state)
        outcome = outcome_of(session, state, decide, self._clock.now(), lambda seq: held.rows[seq].body)
        self._before_write()
        self.held[session.id] = held
        self._keep(held, outcome, cost(None, outcome.committed.state))
        return outcome.committed

    async def snapshot(self, session_id: str, workspace_id: str | None = None) -> Snapshot:
        """See `EventLog`."""
        await anyio.lowlevel.checkpoint()
        held = self._get(session_id, workspace_id)
        return Snapshot(held.session, held.state)

    async def transact(
        self, session_id: str, decide: Decide, *, workspace_id: str | None = None, epoch: int | None = None
    ) -> Committed:
        """See `EventLog`."""
        await anyio.lowlevel.checkpoint()
        held = self._get(session_id, workspace_id)
        fence(session_id, epoch, held.epoch)
        outcome = outcome_of(held.session, held.state, decide, self._clock.now(), lambda seq: held.rows[seq].body)
        if outcome.rows or outcome.committed.session is not held.session:
            self._before_write()
        self._keep(held, outcome, cost(held.state, outcome.committed.state))
        return outcome.committed

    async def claim(self, session_id: str, decide: Decide = nothing) -> Claim:
        """See `EventLog`."""
        await anyio.lowlevel.checkpoint()
        held = self._get(session_id, None)
        outcome = outcome_of(held.session, held.state, decide, self._clock.now(), lambda seq: held.rows[seq].body)
        self._before_write()
        self._keep(held, outcome, cost(held.state, outcome.committed.state))
        held.epoch += 1
        return Claim(held.epoch, outcome.committed)

    async def events(self, session_id: str, query: EventsQuery) -> list[LoggedEvent]:
        """See `EventLog`."""
        await anyio.lowlevel.checkpoint()
        held = self._get(session_id, None)
        rows = sorted(held.rows.values(), key=_place, reverse=query.order == "desc")
        chosen = [row for row in rows if _is_beyond(row, query) and _is_asked_for(row, query)]
        return [logged(row.seq, row.body, row.private) for row in chosen[: query.limit]]

    async def sessions(self, query: SessionsQuery) -> list[Snapshot]:
        """See `EventLog`."""
        await anyio.lowlevel.checkpoint()
        chosen = [held for held in self.held.values() if _is_listed(held, query)]
        descending = (query.order == "desc") != query.backwards
        chosen.sort(key=_birth, reverse=descending)
        if query.beyond is not None:
            beyond = query.beyond
            chosen = [held for held in chosen if (_birth(held) < beyond if descending else _birth(held) > beyond)]
        page = [Snapshot(held.session, held.state) for held in chosen[: query.limit]]
        return page[::-1] if query.backwards else page

    async def unfinished(self) -> list[str]:
        """See `EventLog`."""
        await anyio.lowlevel.checkpoint()
        working = ("running", "rescheduling")
        return sorted(session_id for session_id, held in self.held.items() if held.state.status in working)

    async def spent_microdollars(self) -> int:
        """See `EventLog`."""
        return self._spent_microdollars

    async def delete(self, session_id: str, workspace_id: str, allow: Callable[[Session, SessionState], None]) -> None:
        """See `EventLog`."""
        await anyio.lowlevel.checkpoint()
        held = self._get(session_id, workspace_id)
        allow(held.session, held.state)
        self._before_write()
        del self.held[session_id]
        self._bus.publish([deleted_frame(session_id, self._clock.now())])

    def _get(self, session_id: str, workspace_id: str | None) -> _Held:
        held = self.held.get(session_id)
        admit(held.session if held else None, session_id, workspace_id)
        assert held is not None
        return held

    def _keep(self, held: _Held, outcome: Outcome, spent: int) -> None:
        held.session, held.state = outcome.committed.session, outcome.committed.state
        for seq in outcome.moved:
            del held.rows[seq]
        held.rows.update((row.seq, row) for row in outcome.rows)
        self._spent_microdollars += spent
        frames: Sequence[Frame] = outcome.frames
        if frames:
            self._bus.publish(frames)


class EphemeralRecords:
    """`Records` in memory."""

    def __init__(self, before_write: Callable[[], None]) -> None:
        self._before_write = before_write
        self.held: dict[tuple[str, str], Record] = {}
        """The archive shares it; nobody else looks at it."""

    async def put(self, *records: Record, expect: Mapping[str, int] | None = None) -> None:
        """See `Records`."""
        await anyio.lowlevel.checkpoint()
        after = dict(self.held)
        for record in records:
            check_put(record, after.get((record.kind, record.id)), (expect or {}).get(record.id))
        for record in records:
            if any(_is_rival(record, other) for other in after.values()):
                raise taken(record)
            after[record.kind, record.id] = record
        self._before_write()
        self.held = after

    async def get(self, kind: str, record_id: str, workspace_id: str | None) -> Record:
        """See `Records`."""
        await anyio.lowlevel.checkpoint()
        record = self.held.get((kind, record_id))
        if record is None or workspace_id not in (None, record.workspace_id):
            raise NotFound(f"{kind} {record_id} not found")
        return record

    async def page(self, query: RecordsQuery) -> list[Record]:
        """See `Records`."""
        await anyio.lowlevel.checkpoint()
        chosen = [record for record in self.held.values() if _is_wanted(record, query)]
        chosen.sort(key=lambda record: (record.created_at, record.id), reverse=True)
        return chosen[: query.limit]

    async def delete(self, kind: str, record_id: str, workspace_id: str) -> None:
        """See `Records`."""
        await self.get(kind, record_id, workspace_id)
        self._before_write()
        del self.held[kind, record_id]


class EphemeralArchive:
    """`Archive` in memory."""

    def __init__(self, log: EphemeralLog, records: EphemeralRecords, before_write: Callable[[], None]) -> None:
        self._log = log
        self._records = records
        self._before_write = before_write

    async def workspaces(self) -> list[str]:
        """See `Archive`."""
        await anyio.lowlevel.checkpoint()
        of_sessions = {held.session.workspace_id for held in self._log.held.values()}
        return sorted(of_sessions | {record.workspace_id for record in self._records.held.values()})

    async def restore(self, items: Iterable[Moved]) -> Counter[str]:
        """See `Archive`."""
        await anyio.lowlevel.checkpoint()
        sessions, records = dict(self._log.held), dict(self._records.held)
        known: Counter[str] = Counter()
        for item in items:
            if isinstance(item, Restored):
                known["session"] += _restore_session(item, sessions)
            else:
                known[item.kind] += _restore_record(item, records)
        self._before_write()
        self._log.held, self._records.held = sessions, records
        return +known


def _restore_record(item: Record | Depending, records: dict[tuple[str, str], Record]) -> bool:
    """Add the record; True if it was there."""
    stored = records.get((item.kind, item.id))
    record = made(item, stored)
    if record is None:
        return False
    if stored is not None:
        check_same_record(record, stored)
        return True
    if any(_is_rival(record, other) for other in records.values()):
        raise taken(record)
    records[record.kind, record.id] = record
    return False


def _restore_session(restored: Restored, sessions: dict[str, _Held]) -> bool:
    """Add the session; True if it was there."""
    stored = sessions.get(restored.session.id)
    rows = [
        EventRow(seq, each.id, each.type, each.processed_at, each.body, each.private)
        for seq, each in enumerate(restored.events, 1)
    ]
    state = restored.state()
    if stored is not None:
        for row, other in zip_longest(rows, sorted(stored.rows.values(), key=_place)):
            if row is None or other is None or not same_body(row.body, other.body):
                raise differs("session", restored.session.id)
        check_same_session(stored.session, stored.state, restored.session, state)
        return True
    held = sessions[restored.session.id] = _Held(restored.session, state)
    held.rows = {row.seq: row for row in rows}
    assert state.seq == len(rows), "the state counts the events"
    return False


def _place(row: EventRow) -> tuple[bool, int]:
    """Where a row stands in a history: queued ones behind all others."""
    return row.processed_at is None, row.seq


def _is_beyond(row: EventRow, query: EventsQuery) -> bool:
    if query.beyond is None:
        return True
    return _place(row) > query.beyond if query.order == "asc" else _place(row) < query.beyond


def _is_asked_for(row: EventRow, query: EventsQuery) -> bool:
    if query.types and row.type not in query.types:
        return False
    if row.processed_at is None:
        return not query.processed_only and query.after is None and query.before is None
    return _is_within(row.processed_at, query)


def _birth(held: _Held) -> tuple[datetime, str]:
    return held.session.created_at, held.session.id


def _is_listed(held: _Held, query: SessionsQuery) -> bool:
    session = held.session
    return all(_session_checks(session, held.state, query)) and _is_within(session.created_at, query)


def _session_checks(session: Session, state: SessionState, query: SessionsQuery) -> Iterator[bool]:
    yield session.workspace_id == query.workspace_id
    yield not query.statuses or state.status in query.statuses
    yield query.agent_id in (None, session.agent.id)
    yield query.agent_version in (None, session.agent.version)
    yield query.deployment_id in (None, session.deployment_id)
    yield query.include_archived or session.archived_at is None


def _is_rival(record: Record, other: Record) -> bool:
    """Whether the other has the unique key that this one wants."""
    if record.unique_key is None or record.id == other.id:
        return False
    wanted = (record.kind, record.workspace_id, record.unique_key)
    return wanted == (other.kind, other.workspace_id, other.unique_key)


def _is_wanted(record: Record, query: RecordsQuery) -> bool:
    if record.kind != query.kind or query.workspace_id not in (None, record.workspace_id):
        return False
    if query.parent_id not in (None, record.parent_id) or (record.archived_at and not query.include_archived):
        return False
    return _is_within(record.created_at, query) and (
        query.beyond is None or (record.created_at, record.id) < query.beyond
    )


def _is_within(moment: datetime, query: EventsQuery | SessionsQuery | RecordsQuery) -> bool:
    after, before = query.after, query.before
    if after is not None and (moment < after or (moment == after and not query.after_inclusive)):
        return False
    return before is None or moment < before or (moment == before and query.before_inclusive)
