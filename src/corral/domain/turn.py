"""What happens next: the rules of a turn, as decisions over a session's state.

Every function here is pure. It looks at a `Session` and a `SessionState` and answers with changes for the log
(`lifecycle.Change`), and `proceed` also with the one thing that somebody must now *do*: ask the model, run tool
calls, wait before a retry, or rest. The store runs these functions inside its transaction, so a decision never rests
on a state that has moved on. The api calls `accept`; the harness calls the rest.

Order of the log within a turn:
`session.status_running`, `session.thread_status_running`, then for each model request its start, the answer's events
and its end, then tool results, and at the end `session.thread_status_idle`, `session.usage`, `session.status_idle`.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Literal, NamedTuple, TypeAlias

from corral.domain import event as ev
from corral.domain.content import TextBlock
from corral.domain.ids import new_id
from corral.domain.lifecycle import Append, Change, Process, commit
from corral.domain.session import PendingCall, Session, SessionState
from corral.domain.usage import RequestTokens, reached, snapshot

ROUNDS_ARE_UP = "The agent made {} model requests in one turn. Send a message to go on."
COMPACTIONS_ARE_UP = "The conversation was condensed {} times in a row and is still too long for the model."
TIME_IS_UP = "The session has used the {:g} seconds of running time that this server allows it."
INTERRUPTED = "The user interrupted execution before this call finished. Its effects, if any, are unknown."


class AskModel(NamedTuple):
    """Send the conversation to the model; `request_id` is the span that was opened for it."""

    request_id: str


class Compact(NamedTuple):
    """Condense the conversation; `request_id` is the span of the model request that does it."""

    request_id: str


class RunCalls(NamedTuple):
    """Run these tool calls, or write the error results of denied ones."""

    calls: tuple[PendingCall, ...]


class Backoff(NamedTuple):
    """Wait, then `resume`. `attempt` counts the failures so far."""

    attempt: int


class Rest(NamedTuple):
    """Nothing to do until an event arrives."""


Step: TypeAlias = AskModel | Compact | RunCalls | Backoff | Rest


class Limits(NamedTuple):
    """What bounds a turn."""

    rounds_max: int = 500
    session_seconds_max: float | None = None
    """Running time of the whole session; over it, the turn ends at once."""
    compact_above_tokens: int | None = None
    """A conversation longer than this is condensed before the model is asked again."""
    compactions_max: int = 3
    spending_stopped: bool = False
    """True when the organisation's spend limit is reached: no model request starts."""


class Decision(NamedTuple):
    """Changes for the log, and what to do after they are committed."""

    changes: tuple[Change, ...]
    step: Step


def proceed(
    session: Session, state: SessionState, changes: Sequence[Change], limits: Limits, now: datetime
) -> Decision:
    """Apply `changes`, then go on as far as the rules alone can carry the session."""
    decided = list(changes)
    state = commit(state, decided, now).state
    while True:
        more, step = _next(session, state, limits, now)
        if step is not None and not more:
            return Decision(tuple(decided), step)
        state = commit(state, more, now).state
        decided += more
        if step is not None:
            return Decision(tuple(decided), step)


def _next(session: Session, state: SessionState, limits: Limits, now: datetime) -> tuple[list[Change], Step | None]:
    if state.status not in ("running", "rescheduling"):
        return [], Rest()
    if any(queued.type == "user.interrupt" for queued in state.queue):
        return interrupt(session, state, now), None
    if limits.session_seconds_max is not None and state.active_at(now) >= limits.session_seconds_max * 1000:
        return _exhausted(session, state, "unknown_error", TIME_IS_UP.format(limits.session_seconds_max), now), None
    if state.open_request_id is not None:
        return [_request_end(state.open_request_id)], None
    if state.status == "rescheduling":
        return [], Backoff(state.attempt)
    due = tuple(call for call in state.pending if call.stage in ("ready", "denied"))
    if due:
        return [], RunCalls(due)
    if state.pending:
        return idle(session, state, ev.RequiresAction(event_ids=tuple(call.id for call in state.pending)), now), None
    capped = reached(session.budget, state.totals, state.active_at(now))
    if not state.answer_due and not state.queue:
        # The last request may have crossed the cap and finished: its thread is done, and the session is paused.
        session_stop_reason = ev.BudgetReached() if capped else None
        return idle(session, state, ev.EndTurn(), now, session_stop_reason=session_stop_reason), None
    if limits.spending_stopped or capped:
        return idle(session, state, ev.BudgetReached(), now), None
    if state.rounds >= limits.rounds_max:
        message = ROUNDS_ARE_UP.format(limits.rounds_max)
        return _exhausted(session, state, "tool_use_limit_reached_error", message, now), None
    if limits.compact_above_tokens is not None and state.context_tokens > limits.compact_above_tokens:
        return _begin_compaction(session, state, limits, now)
    return begin_request(state)


def running(session: Session, state: SessionState) -> list[Change]:
    """The session and its primary thread start to work."""
    return [
        Append(ev.SessionStatusRunning(id=new_id("sevt"))),
        Append(
            ev.SessionThreadStatusRunning(
                id=new_id("sevt"), session_thread_id=state.thread_id, agent_name=session.agent.name
            )
        ),
    ]


def idle(
    session: Session,
    state: SessionState,
    stop_reason: ev.StopReason,
    now: datetime,
    *,
    stop_details: ev.RefusalDetails | None = None,
    session_stop_reason: ev.StopReason | None = None,
) -> list[Change]:
    """The session and its primary thread stop. `session.usage` stands right before `session.status_idle`.

    `session_stop_reason` is the session's where it differs from the thread's.
    """
    return [
        Append(
            ev.SessionThreadStatusIdle(
                id=new_id("sevt"),
                session_thread_id=state.thread_id,
                agent_name=session.agent.name,
                stop_reason=stop_reason,
                stop_details=stop_details,
            )
        ),
        Append(
            ev.SessionUsage(
                id=new_id("sevt"), usage=snapshot(state.totals, state.active_at(now)), budget=session.budget
            )
        ),
        Append(
            ev.SessionStatusIdle(
                id=new_id("sevt"), stop_reason=session_stop_reason or stop_reason, stop_details=stop_details
            )
        ),
    ]


def terminate(session: Session, state: SessionState) -> list[Change]:
    """The session is over."""
    return [
        Append(
            ev.SessionThreadStatusTerminated(
                id=new_id("sevt"), session_thread_id=state.thread_id, agent_name=session.agent.name
            )
        ),
        Append(ev.SessionStatusTerminated(id=new_id("sevt"))),
    ]


def begin_request(state: SessionState) -> tuple[list[Change], Step]:
    """Take up everything that waits, and open a model request."""
    request_id = new_id("sevt")
    changes: list[Change] = [Process(queued.id) for queued in state.queue]
    changes.append(Append(ev.SpanModelRequestStart(id=request_id)))
    return changes, AskModel(request_id)


def _begin_compaction(
    session: Session, state: SessionState, limits: Limits, now: datetime
) -> tuple[list[Change], Step | None]:
    """Open a model request for the summary. What waits goes on waiting: it is not part of what is condensed."""
    if state.compactions >= limits.compactions_max:
        message = COMPACTIONS_ARE_UP.format(state.compactions)
        return _exhausted(session, state, "compaction_limit_reached_error", message, now), None
    request_id = new_id("sevt")
    return [Append(ev.SpanModelRequestStart(id=request_id))], Compact(request_id)


def resume(session: Session, state: SessionState) -> list[Change]:
    """The wait before a retry is over."""
    return running(session, state) if state.status == "rescheduling" else []


def fail_request(
    session: Session,
    state: SessionState,
    error: ev.ErrorObject,
    now: datetime,
    *,
    tokens: RequestTokens | None = None,
) -> list[Change]:
    """The model request failed: reschedule it, or give the turn up and flush what waits."""
    changes: list[Change] = []
    if state.open_request_id is not None:
        changes.append(_request_end(state.open_request_id, tokens))
    changes.append(Append(ev.SessionError(id=new_id("sevt"), error=error)))
    if isinstance(error.retry_status, ev.Retrying):
        changes.append(Append(ev.SessionStatusRescheduled(id=new_id("sevt"))))
        changes.append(
            Append(
                ev.SessionThreadStatusRescheduled(
                    id=new_id("sevt"), session_thread_id=state.thread_id, agent_name=session.agent.name
                )
            )
        )
        return changes
    return changes + give_up(session, state, now)


def overflow(state: SessionState) -> list[Change]:
    """The prompt did not fit: `proceed` will condense the conversation and ask again."""
    if state.open_request_id is None:
        return []
    return [_request_end(state.open_request_id, RequestTokens(cost_microdollars=0, overflowed=True))]


def give_up(session: Session, state: SessionState, now: datetime) -> list[Change]:
    """`exhausted`: queued inputs are flushed (processed and dropped), open calls closed, and the session rests."""
    flushed: list[Change] = [Process(queued.id) for queued in state.queue]
    return [*flushed, *_close_calls(state), *idle(session, state, ev.RetriesExhausted(), now)]


def _exhausted(
    session: Session,
    state: SessionState,
    kind: Literal["unknown_error", "tool_use_limit_reached_error", "compaction_limit_reached_error"],
    message: str,
    now: datetime,
) -> list[Change]:
    error = ev.ErrorObject(type=kind, message=message, retry_status=ev.Exhausted())
    return fail_request(session, state, error, now)


def refuse(
    session: Session, state: SessionState, changes: Sequence[Change], details: ev.RefusalDetails, now: datetime
) -> list[Change]:
    """The model refused: rest with its reason, unless something else is still to be done or answered."""
    after = commit(state, changes, now).state
    if after.pending or after.queue or after.answer_due:
        return []
    return idle(session, after, ev.Refusal(), now, stop_details=details)


def interrupt(session: Session, state: SessionState, now: datetime) -> list[Change]:
    """Stop the turn: close what is open, take up the interrupt, rest; what else waits starts the next turn."""
    changes: list[Change] = []
    if state.open_request_id is not None:
        changes.append(_request_end(state.open_request_id))
    changes += _close_calls(state)
    changes += [Process(queued.id) for queued in state.queue if queued.type == "user.interrupt"]
    changes += idle(session, state, ev.EndTurn(), now)
    if any(queued.type != "user.interrupt" for queued in state.queue):
        changes += running(session, state)
    return changes


def close_idle(session: Session, state: SessionState, event: ev.UserInterrupt, now: datetime) -> list[Change]:
    """An interrupt on a resting session: ends the wait for answers; otherwise nothing but its own record."""
    if not state.pending:
        return [Append(event)]
    return [*_close_calls(state), Append(event), *idle(session, state, ev.EndTurn(), now)]


def denied_result(call: PendingCall) -> Append:
    """The error result of a call that was not allowed to run."""
    return Append(error_result(call, call.deny_message or f"Permission to use {call.name} has been denied."))


def error_result(call: PendingCall, text: str) -> ev.AgentToolResult | ev.AgentMcpToolResult | ev.UserCustomToolResult:
    """An error result in the form that answers the call's kind."""
    event_id, content = new_id("sevt"), (TextBlock(text=text),)
    match call.kind:
        case "built_in":
            return ev.AgentToolResult(id=event_id, tool_use_id=call.id, content=content, is_error=True)
        case "mcp":
            return ev.AgentMcpToolResult(id=event_id, mcp_tool_use_id=call.id, content=content, is_error=True)
        case "custom":
            return ev.UserCustomToolResult(id=event_id, custom_tool_use_id=call.id, content=content, is_error=True)


def _close_calls(state: SessionState) -> list[Change]:
    """An error result for every open call."""
    return [Append(error_result(call, INTERRUPTED)) for call in state.pending]


def _request_end(request_id: str, tokens: RequestTokens | None = None) -> Append:
    """The end of a model request that gave no answer."""
    used = tokens or RequestTokens(cost_microdollars=0)
    return Append(
        ev.SpanModelRequestEnd(
            id=new_id("sevt"),
            model_request_start_id=request_id,
            is_error=True,
            model_usage=ev.SpanModelUsage(
                input_tokens=used.input_tokens,
                output_tokens=used.output_tokens,
                cache_read_input_tokens=used.cache_read_input_tokens,
                cache_creation_input_tokens=used.cache_creation_5m_input_tokens + used.cache_creation_1h_input_tokens,
            ),
        ),
        tokens=used,
    )
