"""What events do to a session. The only file that makes a new `SessionState` or assigns a status.

The rules
---------
1. Everything that changes a session is in its log. `fold` takes the state before an event and the event, and gives
   the state after; nothing else is consulted. So a crash, a restart or another worker changes nothing.
2. Status events are legal only along `TRANSITIONS`. An illegal one raises `IllegalTransition`; nothing is changed.
3. A client's message may wait. It is appended with `processed_at: null` (`Append(queued=True)`), stands in
   `state.queue`, and is processed later (`Process`): the same row gets its time and moves to the end of the log. So
   the order of the log is the order of processing.
4. The log stamps time. All events of one commit carry one moment, never earlier than the last commit's, so that
   sorting by `processed_at` and by position agree.
5. A tool call stays in `state.pending` until its result is in the log. A model request stays in
   `state.open_request_id` until its end is. What is open when a worker dies is therefore known to the next one.

`commit` applies a list of changes and is what both stores call inside their transaction. It does no I/O.

Source: the API's public documentation. What to do *next* in a state is `turn.py`'s business.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TypeAlias, assert_never

import msgspec

from corral.domain import event as ev
from corral.domain.session import CallStage, PendingCall, QueuedEvent, SessionState, Status
from corral.domain.usage import RequestTokens, add, prompt_tokens, with_web_request
from corral.domain.web import WEB_TOOLS
from corral.errors import CorralError, Invalid

OVERFLOWED_TOKENS = 1 << 40

TRANSITIONS: dict[Status, dict[str, Status]] = {
    "idle": {
        "session.status_running": "running",
        "session.status_idle": "idle",  # answers to some, not all, of what a session waits for
        "session.status_terminated": "terminated",
    },
    "running": {
        "session.status_idle": "idle",
        "session.status_rescheduled": "rescheduling",
        "session.status_terminated": "terminated",
    },
    "rescheduling": {
        "session.status_running": "running",
        "session.status_idle": "idle",
        "session.status_terminated": "terminated",
    },
    "terminated": {},
}


class IllegalTransition(CorralError):
    """The event cannot follow in this status."""

    def __init__(self, event_type: str, status: Status) -> None:
        super().__init__(f"`{event_type}` cannot follow while the session is {status}")
        self.event_type = event_type
        self.status = status


class Append(msgspec.Struct, frozen=True, gc=False):
    """Write an event."""

    event: ev.AnyEvent
    queued: bool = False
    """True leaves `processed_at` null until a `Process` of the same id."""
    tokens: RequestTokens | None = None
    """What a `span.model_request_end` used, with its cost."""
    private: bytes | None = None
    """Kept beside the event and never shown: the model's exact answer, for replay."""


class Process(msgspec.Struct, frozen=True, gc=False):
    """A queued event is taken up now."""

    event_id: str


Change: TypeAlias = Append | Process


class Row(msgspec.Struct, frozen=True, gc=False):
    """What the store has to write for one change."""

    seq: int
    event_id: str
    event: ev.AnyEvent | None
    """None for a `Process`: the store moves the row at `moved_from` here and stamps it."""
    processed_at: datetime | None
    private: bytes | None = None
    moved_from: int | None = None


class Commit(msgspec.Struct, frozen=True, gc=False):
    """The effect of a list of changes."""

    state: SessionState
    rows: tuple[Row, ...]


def commit(state: SessionState, changes: Sequence[Change], now: datetime) -> Commit:
    """Apply changes one after another. Raises `IllegalTransition` or `Invalid`, and then nothing has changed."""
    now = max(now, state.last_at or now)
    rows: list[Row] = []
    for change in changes:
        seq = state.seq + 1
        state = msgspec.structs.replace(state, seq=seq, last_at=now)
        if isinstance(change, Process):
            queued = _queued(state, change.event_id)
            state = fold_processed(state, queued)
            rows.append(Row(seq, change.event_id, None, now, None, queued.seq))
        elif change.queued:
            state = fold_queued(state, change.event)
            rows.append(Row(seq, change.event.id, change.event, None))
        else:
            stamped = msgspec.structs.replace(change.event, processed_at=now)
            state = fold(state, stamped, change.tokens)
            rows.append(Row(seq, stamped.id, stamped, now, change.private))
    return Commit(state, tuple(rows))


def fold_queued(state: SessionState, event: ev.AnyEvent) -> SessionState:
    """The state after a client's event was accepted to wait."""
    if not isinstance(event, ev.UserMessage | ev.SystemMessage | ev.UserInterrupt):
        raise Invalid(f"`{_type(event)}` is never queued")
    queued = QueuedEvent(id=event.id, type=_type(event), seq=state.seq)  # pyright: ignore[reportArgumentType]  # the tags of the three types above
    return msgspec.structs.replace(state, queue=(*state.queue, queued))


def fold_processed(state: SessionState, queued: QueuedEvent) -> SessionState:
    """The state after a waiting event was taken up."""
    return msgspec.structs.replace(
        state,
        queue=tuple(other for other in state.queue if other.id != queued.id),
        answer_due=state.answer_due if queued.type == "user.interrupt" else True,
    )


def fold(state: SessionState, event: ev.AnyEvent, tokens: RequestTokens | None = None) -> SessionState:
    """The state after an event that is processed as it is written."""
    match event:  # the most frequent kinds first: each case is a test of its own
        case ev.AgentMessage():
            return msgspec.structs.replace(state, compactions=0) if state.compactions else state
        case ev.UserMessage() | ev.SystemMessage():
            return msgspec.structs.replace(state, answer_due=True)
        case ev.UserToolConfirmation() | ev.UserCustomToolResult() | ev.AgentToolResult() | ev.AgentMcpToolResult():
            return _fold_answer(state, event)
        case ev.AgentToolUse() | ev.AgentMcpToolUse() | ev.AgentCustomToolUse():
            return msgspec.structs.replace(state, pending=(*state.pending, _pending(event)), compactions=0)
        case ev.AgentThreadContextCompacted():
            # What was to be answered before still is; how long the condensed conversation is, the next request tells.
            return msgspec.structs.replace(state, answer_due=True, context_tokens=0, compactions=state.compactions + 1)
        case ev.SpanModelRequestStart():
            return msgspec.structs.replace(state, open_request_id=event.id)
        case ev.SpanModelRequestEnd():
            return _fold_request_end(state, event, tokens)
        case (
            ev.SessionStatusRunning()
            | ev.SessionStatusIdle()
            | ev.SessionStatusRescheduled()
            | ev.SessionStatusTerminated()
        ):
            return _fold_status(state, event)
        case ev.SessionError():
            if not isinstance(event.error.retry_status, ev.Retrying):
                return msgspec.structs.replace(state, attempt=0)
            # Attempts are model requests that failed in a row; other errors are retried without counting.
            asked = event.error.type.startswith("model_")
            return msgspec.structs.replace(state, attempt=state.attempt + 1) if asked else state
        case (
            ev.UserInterrupt()
            | ev.AgentThinking()
            | ev.SessionUpdated()
            | ev.SessionUsage()
            | ev.SessionDeleted()
            | ev.SessionThreadStatusRunning()
            | ev.SessionThreadStatusRescheduled()
            | ev.SessionThreadStatusIdle()
            | ev.SessionThreadStatusTerminated()
        ):
            return state
        case _:
            assert_never(event)


def _fold_status(
    state: SessionState,
    event: ev.SessionStatusRunning | ev.SessionStatusIdle | ev.SessionStatusRescheduled | ev.SessionStatusTerminated,
) -> SessionState:
    target = TRANSITIONS[state.status].get(_type(event))
    if target is None:
        raise IllegalTransition(_type(event), state.status)
    now = event.processed_at
    state = msgspec.structs.replace(
        state,
        status=target,
        active_milliseconds=state.active_milliseconds if now is None else state.active_at(now),
        running_since=now if target == "running" else None,
    )
    match event:
        case ev.SessionStatusIdle():
            return _fold_idle(state, event.stop_reason)
        case ev.SessionStatusTerminated():
            return msgspec.structs.replace(state, terminated_at=now, stop_reason=None, answer_due=False)
        case _:
            return msgspec.structs.replace(state, stop_reason=None)


def _fold_idle(state: SessionState, stop_reason: ev.StopReason) -> SessionState:
    """A pause keeps the turn's place; an end forgets it."""
    state = msgspec.structs.replace(state, stop_reason=stop_reason)
    if isinstance(stop_reason, ev.RequiresAction | ev.BudgetReached):
        return state
    return msgspec.structs.replace(state, answer_due=False, rounds=0, attempt=0, compactions=0)


def _fold_answer(
    state: SessionState,
    event: ev.UserToolConfirmation | ev.UserCustomToolResult | ev.AgentToolResult | ev.AgentMcpToolResult,
) -> SessionState:
    match event:
        case ev.UserToolConfirmation():
            stage: CallStage = "ready" if event.result == "allow" else "denied"
            call = _call(state, event.tool_use_id)
            decided = msgspec.structs.replace(call, stage=stage, deny_message=event.deny_message)
            pending = tuple(decided if other is call else other for other in state.pending)
            return msgspec.structs.replace(state, pending=pending)
        case ev.UserCustomToolResult():
            call = _call(state, event.custom_tool_use_id)
        case ev.AgentToolResult():
            call = _call(state, event.tool_use_id)
            if call.name in WEB_TOOLS and not event.is_error:
                state = msgspec.structs.replace(state, totals=with_web_request(state.totals, call.name))
        case ev.AgentMcpToolResult():
            call = _call(state, event.mcp_tool_use_id)
    pending = tuple(other for other in state.pending if other is not call)
    return msgspec.structs.replace(state, pending=pending, answer_due=True)


def _fold_request_end(state: SessionState, event: ev.SpanModelRequestEnd, tokens: RequestTokens | None) -> SessionState:
    if state.open_request_id != event.model_request_start_id:
        raise Invalid(f"model request {event.model_request_start_id} is not open")
    state = msgspec.structs.replace(state, open_request_id=None)
    if tokens is not None:
        state = msgspec.structs.replace(
            state, totals=add(state.totals, tokens), context_tokens=_context_tokens(state, event, tokens)
        )
    if event.is_error:
        return state
    paused = tokens is not None and tokens.paused
    return msgspec.structs.replace(state, answer_due=paused, rounds=state.rounds + 1, attempt=0)


def _context_tokens(state: SessionState, event: ev.SpanModelRequestEnd, tokens: RequestTokens) -> int:
    """The answer becomes part of the next prompt. A prompt that did not fit is longer than any window."""
    if tokens.overflowed:
        return OVERFLOWED_TOKENS
    if event.is_error:
        return state.context_tokens
    if tokens.conversation_tokens is not None:
        return tokens.conversation_tokens
    return prompt_tokens(tokens) + tokens.output_tokens


def _pending(event: ev.AgentToolUse | ev.AgentMcpToolUse | ev.AgentCustomToolUse) -> PendingCall:
    if isinstance(event, ev.AgentCustomToolUse):
        return PendingCall(id=event.id, name=event.name, kind="custom", stage="waiting", permission=None)
    stages: dict[ev.Permission, CallStage] = {"allow": "ready", "ask": "asked", "deny": "denied"}
    return PendingCall(
        id=event.id,
        name=event.name,
        kind="mcp" if isinstance(event, ev.AgentMcpToolUse) else "built_in",
        stage=stages[event.evaluated_permission],
        permission=event.evaluated_permission,
    )


def _call(state: SessionState, call_id: str) -> PendingCall:
    call = state.call(call_id)
    if call is None:
        raise Invalid(f"no tool call {call_id} waits for an answer")
    return call


def _queued(state: SessionState, event_id: str) -> QueuedEvent:
    for queued in state.queue:
        if queued.id == event_id:
            return queued
    raise Invalid(f"event {event_id} is not queued")


def _type(event: ev.AnyEvent) -> str:
    """The wire's name of an event's type."""
    return str(event.__struct_config__.tag)
