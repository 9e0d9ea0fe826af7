"""Sessions that happened elsewhere: what their history means here.

`History` reads a session's events as `corral import` hands them over, checks that they can be a history at all, and
gives back the rows to store and the state that they add up to. Two things are not in the events. The model's exact
answers are put together from the events of each model request; and what the session object knows better (status, usage,
times) wins over what the events say. Events that Corral cannot write are kept and otherwise ignored. Nothing here does
I/O; the lines of the file are `moving.py`'s business.

An answer waits until it is known which of its calls were answered: one that never was has no place in a prompt.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from contextlib import suppress
from datetime import datetime, timedelta
from typing import NamedTuple, get_args

import msgspec

from corral.domain import event as ev
from corral.domain.content import AssistantBlock, TextBlock, ToolUseBlock
from corral.domain.lifecycle import IllegalTransition, fold, fold_queued
from corral.domain.mcp import model_name
from corral.domain.session import PendingCall, SessionState, SessionView
from corral.domain.usage import active_milliseconds_of, totals_of
from corral.errors import Invalid

ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
"""Any form of id that is safe in a URL and as the name of a directory."""
KNOWN_TYPES = frozenset(str(kind.__struct_config__.tag) for kind in get_args(ev.AnyEvent))
CONVERSATION = ("user.", "system.", "agent.", "span.")
"""What the model is told later is made of these, so one that is known must also be understood."""

_encode = msgspec.json.Encoder().encode
_known: msgspec.json.Decoder[ev.AnyEvent] = msgspec.json.Decoder(ev.AnyEvent)
_other = msgspec.json.Decoder(ev.OtherEvent)


class RestoredEvent(NamedTuple):
    """A row of a restored session."""

    id: str
    type: str
    processed_at: datetime | None
    body: bytes
    """The event on the wire, as it came."""
    private: bytes | None


class _ToolResult(msgspec.Struct, frozen=True):
    """What is read of a result that Corral cannot write."""

    tool_use_id: str = ""


_tool_result = msgspec.json.Decoder(_ToolResult)


def check_id(path: str, value: str) -> None:
    """Raises `Invalid` for an id that cannot be kept."""
    if not ID.fullmatch(value):
        raise Invalid(f"{path}: `{value[:128]}` is no id: 1 to 128 of the characters A-Z a-z 0-9 _ -")


class History:
    """The events of one session, taken in order."""

    def __init__(self, session_id: str) -> None:
        self._state = SessionState(thread_id=f"sthr_{session_id.partition('_')[2] or session_id}")
        self._knows_thread = False
        self._pending: tuple[PendingCall, ...] = ()
        self._asking = False
        self._answer: list[AssistantBlock] = []
        self._unanswered: set[str] = set()
        self._held: list[RestoredEvent] = []
        """From the end of an answer on, while it has calls without results."""

    def take(self, body: bytes) -> list[RestoredEvent]:
        """The next event, as the wire has it. Gives back rows that are complete. Raises `Invalid` with the path."""
        other, event = _read(body)
        self._check_order(other)
        self._fold(event, body)
        row = RestoredEvent(other.id, other.type, other.processed_at, body, None)
        match event:
            case ev.SpanModelRequestStart():
                return [*self._open_request(), row]
            case ev.SpanModelRequestEnd():
                return self._close_request(row)
            case ev.AgentMessage() | ev.AgentToolUse() | ev.AgentMcpToolUse() | ev.AgentCustomToolUse():
                self._say(event)
            case (
                ev.AgentToolResult(tool_use_id=call_id)
                | ev.AgentMcpToolResult(mcp_tool_use_id=call_id)
                | ev.UserCustomToolResult(custom_tool_use_id=call_id)
            ):
                return self._take_result(call_id, row)
            case _:
                pass
        return self._hold(row)

    def rest(self, view: SessionView) -> list[RestoredEvent]:
        """The rows that are left at the end. Afterwards there are no more events, and `state` may be asked for."""
        self._pending = self._still_pending(view)
        return self._release(keep={call.id for call in self._pending})

    def state(self, view: SessionView, now: datetime, tools: Collection[str]) -> SessionState:
        """What the events and the session object add up to. `tools` are the built-in tools that can run here."""
        _check_pending(self._state, view, self._pending, tools)
        working = view.status in ("running", "rescheduling")
        paused = isinstance(self._state.stop_reason, ev.RequiresAction | ev.BudgetReached)
        return msgspec.structs.replace(
            self._state,
            status=view.status,
            stop_reason=self._state.stop_reason if view.status == "idle" else None,
            last_at=_last_at(self._state.last_at, view.updated_at, now),
            pending=self._pending,
            open_request_id=self._state.open_request_id if working else None,
            answer_due=self._state.answer_due and (working or paused),
            rounds=self._state.rounds if working or paused else 0,
            attempt=self._state.attempt if working else 0,
            totals=totals_of(view.usage),
            running_since=None,
            active_milliseconds=active_milliseconds_of(view.usage),
            terminated_at=_terminated_at(view),
        )

    # ------------------------------------------------------------------------------------------------- the state

    def _check_order(self, event: ev.OtherEvent) -> None:
        """History is sorted by `processed_at`, with what waits at its end."""
        if event.processed_at is None:
            return
        if self._state.queue:
            raise Invalid("processed_at: a processed event stands behind one that waits; list events oldest first")
        if self._state.last_at is not None and event.processed_at < self._state.last_at:
            raise Invalid("processed_at: earlier than that of the event before; list events oldest first")

    def _fold(self, event: ev.StoredEvent, body: bytes) -> None:
        """By the usual rules; an event that they do not allow here counts for nothing."""
        state = self._state
        state = msgspec.structs.replace(state, seq=state.seq + 1, last_at=event.processed_at or state.last_at)
        if isinstance(event, ev.OtherEvent):
            if event.type == "user.tool_result":
                answered = _tool_result.decode(body).tool_use_id
                pending = tuple(call for call in state.pending if call.id != answered)
                state = msgspec.structs.replace(state, pending=pending)
        else:
            with suppress(IllegalTransition, Invalid):
                state = fold(state, event) if event.processed_at is not None else fold_queued(state, event)
            state = self._with_thread(state, event)
        self._state = state

    def _with_thread(self, state: SessionState, event: ev.AnyEvent) -> SessionState:
        """The first thread that has a status is the primary one."""
        match event:
            case (
                ev.SessionThreadStatusRunning(session_thread_id=thread_id)
                | ev.SessionThreadStatusIdle(session_thread_id=thread_id)
                | ev.SessionThreadStatusRescheduled(session_thread_id=thread_id)
                | ev.SessionThreadStatusTerminated(session_thread_id=thread_id)
            ) if not self._knows_thread:
                self._knows_thread = True
                return msgspec.structs.replace(state, thread_id=thread_id)
            case _:
                return state

    def _still_pending(self, view: SessionView) -> tuple[PendingCall, ...]:
        """Calls that still are to be run or answered, as far as the session's status allows any.

        Calls of an answer that was cut off are none: the request will be made anew.
        """
        if view.status == "terminated" or (view.status == "idle" and not self._waits):
            return ()
        answer = self._answer if self._asking else ()
        cut_off = {block.id for block in answer if isinstance(block, ToolUseBlock)}
        return tuple(call for call in self._state.pending if call.id not in cut_off)

    @property
    def _waits(self) -> bool:
        return isinstance(self._state.stop_reason, ev.RequiresAction)

    # ----------------------------------------------------------------------------------------------- the answers

    def _open_request(self) -> list[RestoredEvent]:
        rows = self._release(keep=())
        self._asking = True
        return rows

    def _say(self, event: ev.AgentMessage | ev.AgentToolUse | ev.AgentMcpToolUse | ev.AgentCustomToolUse) -> None:
        if not isinstance(event, ev.AgentMessage) and event.session_thread_id is not msgspec.UNSET:
            return  # another thread's call, shown here because it waits for the client
        if not self._asking:
            raise Invalid("type: an agent speaks between span.model_request_start and span.model_request_end only")
        if isinstance(event, ev.AgentMessage):
            self._answer += [block for block in event.content if isinstance(block, TextBlock)]
        else:
            mcp = isinstance(event, ev.AgentMcpToolUse)
            name = model_name(event.mcp_server_name, event.name) if mcp else event.name
            self._answer.append(ToolUseBlock(id=event.id, name=name, input=event.input))
            self._unanswered.add(event.id)

    def _close_request(self, row: RestoredEvent) -> list[RestoredEvent]:
        self._asking = False
        self._held.append(row)
        return [] if self._unanswered else self._release(keep=())

    def _take_result(self, call_id: str, row: RestoredEvent) -> list[RestoredEvent]:
        if self._asking or call_id not in self._unanswered:
            raise Invalid(f"tool_use_id: {call_id} is no call of the model request before, or was answered already")
        self._unanswered.discard(call_id)
        rows = self._hold(row)
        return rows if self._unanswered else self._release(keep=())

    def _hold(self, row: RestoredEvent) -> list[RestoredEvent]:
        if not self._held:
            return [row]
        self._held.append(row)
        return []

    def _release(self, keep: Collection[str]) -> list[RestoredEvent]:
        """The held rows, the answer beside the first of them, without calls that were not answered and not kept."""
        rows, self._held = self._held, []
        gone = self._unanswered - set(keep)
        answer = [block for block in self._answer if not (isinstance(block, ToolUseBlock) and block.id in gone)]
        self._answer, self._unanswered = [], set()
        if rows and answer:
            rows[0] = rows[0]._replace(private=_encode(answer))
        return rows


def _read(body: bytes) -> tuple[ev.OtherEvent, ev.StoredEvent]:
    """What every event has, and the event itself."""
    other = _other.decode(body)
    check_id("id", other.id)
    if other.type not in KNOWN_TYPES:
        return other, other
    try:
        return other, _known.decode(body)
    except msgspec.ValidationError:
        if other.type.startswith(CONVERSATION):
            raise
        return other, other


def _check_pending(
    state: SessionState, view: SessionView, pending: Collection[PendingCall], tools: Collection[str]
) -> None:
    """A session that waits for something must be able to go on once it has come."""
    for call in pending:
        if call.kind == "built_in" and call.stage != "denied" and call.name not in tools:
            raise Invalid(f"status: the session waits for the tool `{call.name}`, which this server does not have")
    if view.status != "idle" or not isinstance(state.stop_reason, ev.RequiresAction):
        return
    open_now = {call.id for call in pending if call.stage in ("asked", "waiting")}
    for event_id in state.stop_reason.event_ids:
        if event_id not in open_now:
            raise Invalid(f"status: the session waits for {event_id}, which this server cannot take an answer to")


def _last_at(last_at: datetime | None, updated_at: datetime, now: datetime) -> datetime | None:
    """When the last event was processed, but not so late that the session would look updated later than it was.

    Times ahead of our clock stay, since no event may come to stand before them.
    """
    if last_at is None or last_at > now:
        return last_at
    return min(last_at, updated_at)


def _terminated_at(view: SessionView) -> datetime | None:
    if view.status != "terminated":
        return None
    return view.created_at + timedelta(seconds=view.stats.duration_seconds)
