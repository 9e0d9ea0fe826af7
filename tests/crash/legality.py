"""Whether a finished log is one that the contract allows: a checker of its own, which shares no code with the server.

It reads events as the wire has them, so the same checks hold a store's rows and what the official SDK was told.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from itertools import pairwise
from typing import Any, TypeAlias

Event: TypeAlias = Mapping[str, Any]
"""An event as JSON."""

NEXT = {
    "idle": {"session.status_running": "running", "session.status_idle": "idle"},
    "running": {"session.status_idle": "idle", "session.status_rescheduled": "rescheduling"},
    "rescheduling": {"session.status_running": "running", "session.status_idle": "idle"},
}
STATUSES = {status for row in NEXT.values() for status in row}
ANSWERS = {
    "agent.tool_result": "tool_use_id",
    "agent.mcp_tool_result": "mcp_tool_use_id",
    "user.custom_tool_result": "custom_tool_use_id",
}
USES = {"agent.tool_use", "agent.mcp_tool_use", "agent.custom_tool_use"}


def assert_legal(events: Sequence[Event], *, accepted: Iterable[str] = (), closed: bool = True) -> None:
    """The log of a session that rests. `accepted` are the ids of the client's events that the server took.

    `closed` says that nothing waits: every tool use has its result."""
    _assert_positions(events, accepted)
    _assert_statuses(events)
    _assert_requests(events)
    _assert_calls(events, closed=closed)


def _assert_positions(events: Sequence[Event], accepted: Iterable[str]) -> None:
    ids = Counter(event["id"] for event in events)
    assert max(ids.values(), default=1) == 1, f"an event stands twice in the log: {ids.most_common(1)}"
    lost = [each for each in accepted if each not in ids]
    assert not lost, f"accepted and lost: {lost}"
    moments = [_moment(event) for event in events]
    assert all(first <= second for first, second in pairwise(moments)), "time runs backwards in the log"


def _moment(event: Event) -> datetime:
    at = event["processed_at"]
    assert at is not None, f"{event['type']} still waits in a log at rest"
    return at if isinstance(at, datetime) else datetime.fromisoformat(at)


def _assert_statuses(events: Sequence[Event]) -> None:
    status = "idle"
    for index, event in enumerate(events):
        if event["type"] not in STATUSES:
            continue
        assert event["type"] in NEXT[status], f"{event['type']} follows while the session is {status}"
        status = NEXT[status][event["type"]]
        if event["type"] == "session.status_idle":
            before = [each["type"] for each in events[max(0, index - 2) : index]]
            assert before == ["session.thread_status_idle", "session.usage"], f"before an idle stood {before}"
    assert status == "idle", f"the session does not rest: it is {status}"


def _assert_requests(events: Sequence[Event]) -> None:
    """One model request at a time; each that began has its one end."""
    open_request: str | None = None
    for event in events:
        if event["type"] == "span.model_request_start":
            assert open_request is None, "a model request began inside another"
            open_request = event["id"]
        elif event["type"] == "span.model_request_end":
            assert event["model_request_start_id"] == open_request, "a model request ended that was not open"
            open_request = None
    assert open_request is None, "a model request never ended"


def _assert_calls(events: Sequence[Event], *, closed: bool) -> None:
    """A result answers a use before it, and none is answered twice."""
    uses: set[str] = set()
    answered: Counter[str] = Counter()
    for event in events:
        if event["type"] in USES:
            uses.add(event["id"])
        elif event["type"] in ANSWERS:
            call_id = event[ANSWERS[event["type"]]]
            assert call_id in uses, f"a result stands before its use {call_id}"
            answered[call_id] += 1
    assert max(answered.values(), default=1) == 1, f"a tool use has several results: {answered.most_common(1)}"
    if closed:
        assert uses == set(answered), f"tool uses without a result: {uses - set(answered)}"
