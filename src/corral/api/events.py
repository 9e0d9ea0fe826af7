"""`/v1/sessions/{id}/events`: what happened in a session, and what the client has to say.

Sending is one transaction: all events of a request are accepted, or none is. After it is durable the engine is told;
nothing that this server does later depends on that request still being open. Live events are in `stream.py`.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from datetime import datetime
from typing import Annotated, Literal, TypeAlias

import msgspec

from corral.api import file_sources, pages, periods
from corral.api.call import Call
from corral.api.event_params import EventParams, to_events
from corral.api.pages import Cursor, Page
from corral.api.periods import Moment
from corral.domain import event as ev
from corral.domain import intake
from corral.domain.query import EventsQuery, LoggedEvent
from corral.domain.session import Session, SessionState
from corral.errors import OutcomeUnknown
from corral.interfaces.event_log import Committed, Decision

KIND = "events"

EventType: TypeAlias = Literal[
    "user.message",
    "user.interrupt",
    "user.tool_confirmation",
    "user.custom_tool_result",
    "user.tool_result",
    "user.define_outcome",
    "system.message",
    "agent.custom_tool_use",
    "agent.message",
    "agent.thinking",
    "agent.mcp_tool_use",
    "agent.mcp_tool_result",
    "agent.tool_use",
    "agent.tool_result",
    "agent.thread_message_received",
    "agent.thread_message_sent",
    "agent.thread_context_compacted",
    "session.error",
    "session.status_rescheduled",
    "session.status_running",
    "session.status_idle",
    "session.status_terminated",
    "session.thread_created",
    "session.thread_status_running",
    "session.thread_status_idle",
    "session.thread_status_terminated",
    "session.thread_status_rescheduled",
    "session.updated",
    "session.usage",
    "span.outcome_evaluation_start",
    "span.outcome_evaluation_end",
    "span.outcome_evaluation_ongoing",
    "span.model_request_start",
    "span.model_request_end",
    "workflow_run.created",
    "workflow_run.status_running",
    "workflow_run.status_idle",
    "workflow_run.status_ended",
    "workflow_run.error",
    "workflow_run.phase_started",
    "workflow_run.phase_ended",
]
"""What histories can be filtered by: all types of the API, those that this server never writes included."""


class ListQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename=periods.RENAMED):
    """A page of history. `created_at` is compared with an event's `processed_at`."""

    created_at_gt: Moment | None = None
    created_at_gte: Moment | None = None
    created_at_lt: Moment | None = None
    created_at_lte: Moment | None = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=1_000)] = 1_000
    order: Literal["asc", "desc"] = "asc"
    page: str | None = None
    types: tuple[EventType, ...] = ()


class EventsSend(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of `POST /v1/sessions/{session_id}/events`."""

    events: tuple[EventParams, ...]


class EventsSent(msgspec.Struct, frozen=True, kw_only=True):
    """The events as they were accepted, in the order of the request."""

    data: tuple[ev.ClientEvent, ...]


async def send(call: Call) -> EventsSent:
    """`POST /v1/sessions/{session_id}/events`."""
    body = await call.body(EventsSend)
    events = to_events(body.events, "events")
    await file_sources.check(call.services, call.workspace_id, events, "events")
    models = call.services.models

    def decide(session: Session, state: SessionState, now: datetime) -> Decision:
        system_messages = models.supports_system_messages(session.agent.model.id)
        return Decision(intake.accept(session, state, events, now, system_messages=system_messages))

    session_id = call.path["session_id"]
    with told_anyway(call, session_id):
        committed = await call.services.log.transact(session_id, decide, workspace_id=call.workspace_id)
    tell_engine(call, committed)
    stored = {row.event_id: row.event for row in committed.rows}
    return EventsSent(data=tuple(_echo(event, stored.get(event.id), call) for event in events))


def tell_engine(call: Call, committed: Committed) -> None:
    """The session may have work now."""
    state = committed.state
    if any(queued.type == "user.interrupt" for queued in state.queue):
        call.services.engine.interrupt(committed.session.id)
    elif state.status == "running":
        call.services.engine.wake(committed.session.id)


@contextmanager
def told_anyway(call: Call, session_id: str) -> Generator[None]:
    """Around a write: when nobody knows whether it happened, the engine looks whether there is work."""
    try:
        yield
    except OutcomeUnknown:
        # Not an interrupt: that would drop what runs, for an event that may not be there.
        call.services.engine.wake(session_id)
        raise


def _echo(sent: ev.ClientEvent, stored: ev.AnyEvent | None, call: Call) -> ev.ClientEvent:
    if isinstance(stored, ev.ClientEvent):
        return stored
    # Accepted and without effect, so never stored: an interrupt of a session that rests at its budget.
    return msgspec.structs.replace(sent, processed_at=call.services.clock.now())


async def list_(call: Call) -> Page[msgspec.Raw]:
    """`GET /v1/sessions/{session_id}/events`. Bodies go out as they are stored: imported ones may say more."""
    query = call.query(ListQuery)
    session = (await call.services.log.snapshot(call.path["session_id"], call.workspace_id)).session
    binding = f"{session.id}:{pages.binding_of(query)}"
    cursor = pages.decode(query.page, KIND, binding)
    after = periods.after(query.created_at_gt, query.created_at_gte)
    before = periods.before(query.created_at_lt, query.created_at_lte)
    found = await call.services.log.events(
        session.id,
        EventsQuery(
            limit=query.limit + 1,
            beyond=None if cursor is None else (cursor.queued, cursor.seq),
            order=query.order,
            types=query.types,
            after=after.at,
            after_inclusive=after.inclusive,
            before=before.at,
            before_inclusive=before.inclusive,
        ),
    )
    shown = found[: query.limit]
    next_page = _cursor(shown[-1], binding) if len(found) > query.limit else None
    return Page(data=tuple(msgspec.Raw(logged.body) for logged in shown), next_page=next_page)


def _cursor(logged: LoggedEvent, binding: str) -> str:
    queued = logged.event.processed_at is None
    return pages.encode(Cursor(kind=KIND, binding=binding, seq=logged.seq, queued=queued))
