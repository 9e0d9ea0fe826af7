"""Which events a client may send now, and what accepting them does at once.

`accept` judges a whole request: it answers with changes for all of its events or raises `Invalid` for the first that
breaks a rule, and then nothing is stored. What cannot wait happens here, in the same transaction: an answer to the last
open question sets the session running; an interrupt on a waiting session ends the wait. Everything else waits in the
queue for the harness (`turn.py`).

Source: the API's public documentation.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import assert_never

from corral.domain import event as ev
from corral.domain import turn
from corral.domain.lifecycle import Append, Change, commit
from corral.domain.session import QUEUE_MAX, PendingCall, Session, SessionState
from corral.domain.usage import reached
from corral.errors import Invalid

DENY_MESSAGE_CHARACTERS_MAX = 10_000
EVENTS_MAX = 1_000


def accept(
    session: Session,
    state: SessionState,
    events: Sequence[ev.ClientEvent],
    now: datetime,
    *,
    system_messages: bool = False,
) -> tuple[Change, ...]:
    """Changes that accept all `events`, or `Invalid` naming the first that cannot be accepted.

    `system_messages` says whether the session's model takes `system.message` in mid-conversation.
    """
    if not 1 <= len(events) <= EVENTS_MAX:
        raise Invalid(f"events: must hold 1 to {EVENTS_MAX} events")
    if state.status == "terminated":
        raise Invalid(f"session {session.id} is terminated and accepts no events")
    _check_system_message(events, system_messages)
    decided: list[Change] = []
    answered = False
    for index, event in enumerate(events):
        changes = _accept_one(session, state, event, f"events.{index}", now)
        answered = answered or isinstance(event, ev.UserToolConfirmation | ev.UserCustomToolResult)
        state = commit(state, changes, now).state
        decided += changes
    return (*decided, *_settle(session, state, now, answered=answered))


def _accept_one(session: Session, state: SessionState, event: ev.ClientEvent, path: str, now: datetime) -> list[Change]:
    match event:
        case ev.UserMessage():
            _check_open(session, state, path, now)
            if len(state.queue) >= QUEUE_MAX:
                raise Invalid(f"{path}: {QUEUE_MAX} events are already waiting; let the session work through them")
            return [Append(event, queued=True)]
        case ev.SystemMessage():
            return [Append(event, queued=True)]
        case ev.UserInterrupt():
            return _accept_interrupt(session, state, event, path, now)
        case ev.UserToolConfirmation():
            _check_confirmation(state, event, path)
            return [Append(event)]
        case ev.UserCustomToolResult():
            _custom_call(state, event.custom_tool_use_id, path)
            return [Append(event)]
        case _:
            assert_never(event)


def _settle(session: Session, state: SessionState, now: datetime, *, answered: bool) -> list[Change]:
    """Start the session if it has work; say again what it waits for if only some of that was answered."""
    if state.status != "idle":
        return []
    open_questions = _open_questions(state)
    if _is_capped(session, state, now):
        return []
    if open_questions:
        return turn.idle(session, state, ev.RequiresAction(event_ids=open_questions), now) if answered else []
    if state.queue or state.pending or state.answer_due:
        return turn.running(session, state)
    return []


def _open_questions(state: SessionState) -> tuple[str, ...]:
    """The calls that wait for an answer; a request may hold some, and what may only come behind them."""
    return tuple(call.id for call in state.pending if call.stage in ("asked", "waiting"))


def _accept_interrupt(
    session: Session, state: SessionState, event: ev.UserInterrupt, path: str, now: datetime
) -> list[Change]:
    if event.session_thread_id not in (None, state.thread_id):
        raise Invalid(f"{path}.session_thread_id: session {session.id} has no thread {event.session_thread_id}")
    if state.status != "idle":
        return [Append(event, queued=True)]
    if _is_capped(session, state, now):
        return []
    return turn.close_idle(session, state, event, now)


def _is_capped(session: Session, state: SessionState, now: datetime) -> bool:
    """Whether the session rests at its own budget. At everybody's limit it may try again: that one can be raised."""
    at_cap = isinstance(state.stop_reason, ev.BudgetReached)
    return at_cap and reached(session.budget, state.totals, state.active_at(now))


def _check_open(session: Session, state: SessionState, path: str, now: datetime) -> None:
    """Whether a message may come now."""
    if state.status != "idle":
        return
    if _is_capped(session, state, now):
        raise Invalid(f"{path}: the session's budget is reached; raise or remove it before sending a user.message")
    if open_questions := _open_questions(state):
        waiting = ", ".join(open_questions)
        raise Invalid(f"{path}: the session waits for answers to {waiting}; a user.message is not accepted until then")


def _check_confirmation(state: SessionState, event: ev.UserToolConfirmation, path: str) -> None:
    if event.deny_message is not None:
        if event.result != "deny":
            raise Invalid(f"{path}.deny_message: only allowed when `result` is `deny`")
        if len(event.deny_message) > DENY_MESSAGE_CHARACTERS_MAX:
            raise Invalid(f"{path}.deny_message: must be at most {DENY_MESSAGE_CHARACTERS_MAX} characters")
    call = state.call(event.tool_use_id)
    if call is None or call.kind == "custom" or call.permission != "ask" or call.stage != "asked":
        raise Invalid(f"{path}.tool_use_id: {event.tool_use_id} does not wait for a confirmation")


def _custom_call(state: SessionState, call_id: str, path: str) -> PendingCall:
    call = state.call(call_id)
    if call is None or call.kind != "custom":
        raise Invalid(f"{path}.custom_tool_use_id: {call_id} does not wait for a result")
    return call


def _check_system_message(events: Sequence[ev.ClientEvent], supported: bool) -> None:
    """At most one, at the end, right behind a message or a result."""
    for index, event in enumerate(events):
        if not isinstance(event, ev.SystemMessage):
            continue
        if not supported:
            raise Invalid(
                f"events.{index}: the session's model does not take system messages in mid-conversation",
                error_code="model_does_not_support_mid_conversation_system",
            )
        follows = index > 0 and isinstance(events[index - 1], ev.UserMessage | ev.UserCustomToolResult)
        if index != len(events) - 1 or not follows:
            raise Invalid(
                f"events.{index}: a system.message must be the last event of its request and directly follow a "
                "user.message, user.tool_result or user.custom_tool_result"
            )
