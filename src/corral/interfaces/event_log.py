"""What happened: sessions, their events and their state. The only truth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import NamedTuple, Protocol, TypeAlias

import msgspec

from corral.domain import turn
from corral.domain.lifecycle import Change, Row
from corral.domain.query import EventsQuery, LoggedEvent, SessionsQuery
from corral.domain.session import Session, SessionState

Step: TypeAlias = turn.Step


class Decision(msgspec.Struct, frozen=True, gc=False):
    """What a decision function wants committed."""

    changes: Sequence[Change]
    session: Session | None = None
    """The session record to store in the same transaction, if it changes."""
    step: Step | None = None
    """What the harness does next; only passed through."""


Decide: TypeAlias = Callable[[Session, SessionState, datetime], Decision]
"""A pure function of the session as it is now. It may be run more than once; it raises to refuse."""


def nothing(session: Session, state: SessionState, now: datetime) -> Decision:
    """The decision to change nothing."""
    return Decision(())


class Committed(msgspec.Struct, frozen=True, gc=False):
    """What a transaction did."""

    session: Session
    state: SessionState
    rows: tuple[Row, ...]
    step: Step | None


class Snapshot(NamedTuple):
    """A session and its state at one moment."""

    session: Session
    state: SessionState


class Claim(NamedTuple):
    """The right to advance a session, until somebody claims it again."""

    epoch: int
    committed: Committed

    @property
    def state(self) -> SessionState:
        """The session's state when it was claimed."""
        return self.committed.state


class EventLog(Protocol):
    """Sessions and what happened to them. The only truth.

    `transact` runs a decision function on the current session inside a transaction and commits its changes with
    the state they lead to: all of them durable when it returns, or none. Transactions on one session run one after
    another. After a commit the log publishes its rows on the `Bus`, in commit order.
    """

    async def create(self, session: Session, state: SessionState, decide: Decide) -> Committed:
        """Store a new session, with the decision's changes (initial events). Raises `Conflict` if the id exists."""
        ...

    async def snapshot(self, session_id: str, workspace_id: str | None = None) -> Snapshot:
        """The session as it is. Raises `NotFound`, also for another workspace's session."""
        ...

    async def transact(
        self, session_id: str, decide: Decide, *, workspace_id: str | None = None, epoch: int | None = None
    ) -> Committed:
        """Decide and commit. Raises `NotFound`; `StaleEpoch` when `epoch` is no longer the session's; and what
        `decide` raises, after which nothing is changed."""
        ...

    async def claim(self, session_id: str, decide: Decide = nothing) -> Claim:
        """Take over the session, and commit a first decision in the same transaction.

        From now on appends with an older epoch are refused. Raises `NotFound`."""
        ...

    async def events(self, session_id: str, query: EventsQuery) -> list[LoggedEvent]:
        """A page of history. Events that wait come last, in the order they were accepted. Raises `NotFound`."""
        ...

    async def sessions(self, query: SessionsQuery) -> list[Snapshot]:
        """A page of sessions."""
        ...

    async def unfinished(self) -> list[str]:
        """Ids of all sessions that are running or rescheduling: what an engine resumes when it starts."""
        ...

    async def spent_microdollars(self) -> int:
        """List cost of tokens of all sessions together, for the organisation's limit."""
        ...

    async def delete(self, session_id: str, workspace_id: str, allow: Callable[[Session, SessionState], None]) -> None:
        """Remove the session and its history, if `allow` does not raise. Publishes `session.deleted`."""
        ...
