"""Sessions: one run of an agent, and the state that its events add up to.

A session is two records. `Session` is what the client gave (agent snapshot, title, metadata, budget); it changes only
by an update. `SessionState` is a fold over the events: small, bounded, and stored beside them in the same
transaction, so that nobody ever has to read the history to know where a session stands. `lifecycle.py` is the
only file that makes new states; `view` joins the two into what the wire shows.

Source: the API's public documentation.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal, TypeAlias

import msgspec

from corral.domain.agent import SessionAgent
from corral.domain.event import Permission, StopReason
from corral.domain.resource import FileResource, MountedFile
from corral.domain.usage import BudgetLimit, UsageSnapshot, UsageTotals, snapshot

Status: TypeAlias = Literal["idle", "running", "rescheduling", "terminated"]

TITLE_CHARACTERS_MAX = 500
INITIAL_EVENTS_MAX = 50
QUEUE_MAX = 1_000
"""Events that may wait to be processed."""


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """What the client gave."""

    id: str
    workspace_id: str
    agent: SessionAgent
    environment_id: str
    created_at: datetime
    updated_at: datetime
    archived_at: datetime | None = None
    title: str | None = None
    metadata: dict[str, str] = {}
    budget: BudgetLimit | None = None
    deployment_id: str | None = None
    resources: tuple[MountedFile, ...] = ()
    vault_ids: tuple[str, ...] = ()
    """In the order in which they are searched."""


class QueuedEvent(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """An accepted event that no turn has taken up yet."""

    id: str
    type: Literal["user.message", "system.message", "user.interrupt"]
    seq: int


CallStage: TypeAlias = Literal["ready", "asked", "denied", "waiting"]
"""Where a tool call stands: `ready` to run here; `asked`, so a confirmation is needed; `denied`, so an error result
is due; `waiting` for a result that the client sends."""


class PendingCall(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """A tool call without a result."""

    id: str
    name: str
    kind: Literal["built_in", "custom", "mcp"]
    stage: CallStage
    permission: Permission | None
    deny_message: str | None = None


class SessionState(msgspec.Struct, frozen=True, kw_only=True):
    """What the events add up to."""

    thread_id: str
    """The primary thread."""
    status: Status = "idle"
    stop_reason: StopReason | None = None
    seq: int = 0
    """Position of the last event in the log."""
    last_at: datetime | None = None
    """When the last event was processed; time never runs backwards in a log."""
    queue: tuple[QueuedEvent, ...] = ()
    pending: tuple[PendingCall, ...] = ()
    open_request_id: str | None = None
    """A `span.model_request_start` without its end."""
    answer_due: bool = False
    """The model has something to answer: a message, or results."""
    rounds: int = 0
    """Model requests of this turn that succeeded."""
    attempt: int = 0
    """Failures of the current model request in a row."""
    context_tokens: int = 0
    """Size of the conversation at the last model request, as far as the model told."""
    compactions: int = 0
    """Condensed so often in a row, with no answer in between."""
    totals: UsageTotals = UsageTotals()
    running_since: datetime | None = None
    active_milliseconds: int = 0
    """Closed running periods; an open one counts from `running_since`."""
    terminated_at: datetime | None = None

    def call(self, call_id: str) -> PendingCall | None:
        """The open tool call with this id."""
        return next((call for call in self.pending if call.id == call_id), None)

    def active_at(self, now: datetime) -> int:
        """Milliseconds spent running, up to `now`; never less than at the last event, whatever the clock says."""
        if self.running_since is None:
            return self.active_milliseconds
        until = max(now, self.last_at or now)
        return self.active_milliseconds + max(0, int((until - self.running_since).total_seconds() * 1000))


class SessionStats(msgspec.Struct, frozen=True, kw_only=True):
    """How long the session ran and how long it has existed, in seconds."""

    active_seconds: float
    duration_seconds: float


class SessionView(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="session"):
    """A session as the wire shows it."""

    id: str
    agent: SessionAgent
    environment_id: str
    status: Status
    created_at: datetime
    updated_at: datetime
    archived_at: datetime | None
    title: str | None
    metadata: dict[str, str]
    budget: BudgetLimit | None
    usage: UsageSnapshot
    stats: SessionStats
    deployment_id: str | None = None
    outcome_evaluations: tuple[()] = ()
    resources: tuple[FileResource, ...] = ()
    vault_ids: tuple[str, ...] = ()


def view(session: Session, state: SessionState, now: datetime) -> SessionView:
    """Join what was given and what happened."""
    active = state.active_at(now)
    end = state.terminated_at or max(now, session.created_at, state.last_at or now)
    return SessionView(
        id=session.id,
        agent=session.agent,
        environment_id=session.environment_id,
        status=state.status,
        created_at=session.created_at,
        updated_at=max(session.updated_at, state.last_at or session.updated_at),
        archived_at=session.archived_at,
        title=session.title,
        metadata=session.metadata,
        budget=session.budget,
        usage=snapshot(state.totals, active),
        stats=SessionStats(active_seconds=active / 1000, duration_seconds=(end - session.created_at).total_seconds()),
        deployment_id=session.deployment_id,
        resources=tuple(each.resource for each in session.resources),
        vault_ids=session.vault_ids,
    )
