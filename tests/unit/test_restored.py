"""Histories from elsewhere: what is kept, what the model is told of them, and what is refused."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from corral.domain.restored import History, RestoredEvent
from corral.domain.session import SessionState, SessionView, view
from corral.errors import Invalid
from tests.unit import builders as make

NOW = make.START + timedelta(days=1)
Json = dict[str, Any]


def event(kind: str, seconds: float | None = 0, **fields: Any) -> Json:
    processed_at = None if seconds is None else (make.START + timedelta(seconds=seconds)).isoformat()
    return {"id": f"sevt_{kind.replace('.', '_')}", "type": kind, "processed_at": processed_at, **fields}


START = event("span.model_request_start", id="sevt_start")
END = event("span.model_request_end", model_request_start_id="sevt_start", model_usage={})
USER = event("user.message", content=[{"type": "text", "text": "Go."}])
SAID = event("agent.message", content=[{"type": "text", "text": "On it."}])
IDLE = event("session.status_idle", stop_reason={"type": "end_turn"})


def call(call_id: str, permission: str = "allow", name: str = "bash") -> Json:
    return event("agent.tool_use", id=call_id, name=name, input={"n": call_id}, evaluated_permission=permission)


def result(call_id: str) -> Json:
    return event("agent.tool_result", id=f"sevt_of_{call_id}", tool_use_id=call_id, content=[], is_error=False)


def waiting_for(*event_ids: str) -> Json:
    return event("session.status_idle", stop_reason={"type": "requires_action", "event_ids": list(event_ids)})


def shown(**fields: Any) -> SessionView:
    return msgspec.structs.replace(view(make.session(), make.state(), NOW), **fields)


def read(*events: Json, **fields: Any) -> tuple[list[RestoredEvent], SessionState]:
    """All rows and the state."""
    history = History("sesn_1")
    rows = [row for each in events for row in history.take(json.dumps(each).encode())]
    session = shown(**fields)
    rows += history.rest(session)
    assert [row.type for row in rows] == [each["type"] for each in events], "rows keep their order"
    return rows, history.state(session, NOW, {"bash"})


def answers(rows: list[RestoredEvent]) -> list[list[Json]]:
    """What the model is told it has said."""
    return [json.loads(row.private) for row in rows if row.private is not None]


def test_an_answer_is_put_together_from_the_events_of_its_request() -> None:
    rows, state = read(USER, START, SAID, call("sevt_a"), END, result("sevt_a"), IDLE)
    (answer,) = answers(rows)
    assert answer == [
        {"type": "text", "text": "On it."},
        {"type": "tool_use", "id": "sevt_a", "name": "bash", "input": {"n": "sevt_a"}},
    ]
    assert rows[4].private is not None, "beside the end of the request"
    assert (state.status, state.seq, state.pending, state.answer_due) == ("idle", 7, (), False)


def test_a_call_that_was_never_answered_has_no_place_in_the_prompt() -> None:
    rows, _ = read(START, SAID, call("sevt_a"), call("sevt_b"), END, result("sevt_b"), START, END, IDLE)
    assert [[block["type"] for block in answer] for answer in answers(rows)] == [["text", "tool_use"]]
    assert answers(rows)[0][1]["id"] == "sevt_b"
    rows, _ = read(START, call("sevt_a"), END, IDLE)
    assert answers(rows) == []


def test_a_result_of_an_unknown_kind_counts_as_none_and_is_kept() -> None:
    other = event("user.tool_result", tool_use_id="sevt_a", content=[], future={"x": 1.5})
    rows, state = read(START, call("sevt_a"), END, other, IDLE)
    assert answers(rows) == [] and state.pending == ()
    assert json.loads(rows[3].body) == other


@pytest.mark.parametrize(
    "other",
    [
        event("workflow_run.created", workflow_run_id="wrun_1", phases=[]),
        event("agent.thread_message_sent", to_session_thread_id="sthr_2", content=[]),
        event("session.error", error={"type": "from_the_future", "message": "?", "retry_status": {"type": "x"}}),
        event("session.status_idle", stop_reason={"type": "from_the_future"}),
    ],
    ids=lambda other: str(other["type"]),
)
def test_events_that_corral_cannot_write_are_kept_whole(other: Json) -> None:
    rows, state = read(USER, START, SAID, END, other, IDLE)
    assert json.loads(rows[4].body) == other
    assert (state.status, state.seq) == ("idle", 6)


def test_open_questions_stay_open() -> None:
    _, state = read(START, call("sevt_a", "ask"), call("sevt_b", "ask"), END, waiting_for("sevt_a", "sevt_b"))
    assert [(pending.id, pending.stage) for pending in state.pending] == [("sevt_a", "asked"), ("sevt_b", "asked")]
    assert state.stop_reason is not None and state.answer_due is False


def test_a_running_session_is_one_whose_worker_died() -> None:
    rows, state = read(
        event("session.status_running"), USER, START, call("sevt_a"), END, result("sevt_a"), START, status="running"
    )
    assert len(answers(rows)) == 1
    assert (state.status, state.open_request_id, state.running_since) == ("running", "sevt_start", None)
    _, cut_off = read(event("session.status_running"), USER, START, call("sevt_a"), status="running")
    assert cut_off.pending == (), "the request is made anew, so nobody waits for its calls"


def test_what_waits_is_queued_at_its_position() -> None:
    _, state = read(event("session.status_running"), START, event("user.message", None, content=[]), status="running")
    assert [(queued.type, queued.seq) for queued in state.queue] == [("user.message", 3)]


def test_the_session_object_knows_usage_and_status_better() -> None:
    usage = {"active_seconds": 12.345, "input_tokens": 7, "output_tokens": 9, "cache_read_input_tokens": 1}
    usage |= {"cache_creation": {"ephemeral_5m_input_tokens": 3}, "server_tool_use": {"web_search_requests": 2}}
    usage |= {"list_cost": {"amount": "17", "currency": "USD"}}
    session = shown(usage=msgspec.convert(usage, type(shown().usage)), updated_at=NOW)
    history = History("sesn_1")
    history.take(json.dumps(event("session.status_running")).encode())
    history.rest(session)
    state = history.state(session, NOW, ())
    again = view(make.session(), state, NOW)
    assert again.usage == session.usage and again.stats.active_seconds == 12.345
    assert state.status == "idle"


def test_the_first_thread_that_has_a_status_is_the_primary_one() -> None:
    _, state = read(
        event("session.thread_status_running", session_thread_id="sthr_old", agent_name="Ada"),
        event("session.thread_status_running", session_thread_id="sthr_child", agent_name="Bob"),
        IDLE,
    )
    assert state.thread_id == "sthr_old"
    assert read(IDLE)[1].thread_id == read(IDLE)[1].thread_id, "made up, and the same each time"


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ([event("user.message", 5, content=[]), event("user.message", 4, content=[])], "processed_at: earlier"),
        ([event("user.message", None, content=[]), event("user.message", 4, content=[])], "processed_at: a processed"),
        ([SAID], "type: an agent speaks between"),
        ([START, END, result("sevt_a")], "tool_use_id: sevt_a is no call"),
        ([START, call("sevt_a"), END, result("sevt_a"), result("sevt_a")], "tool_use_id: sevt_a is no call"),
        ([{**USER, "id": "../../etc"}], "id: `../../etc` is no id"),
        ([START, call("sevt_a", "ask", name="web_search"), END, waiting_for("sevt_a")], "status: .* `web_search`"),
        ([event("agent.from_the_future", id="sevt_m"), waiting_for("sevt_m")], "status: the session waits for sevt_m"),
    ],
)
def test_what_cannot_be_a_history_here_is_refused(events: list[Json], message: str) -> None:
    with pytest.raises(Invalid, match=message):
        read(*events)


@pytest.mark.parametrize("spoilt", [{**USER, "content": "text"}, {**USER, "id": 7}, {"type": "user.message"}])
def test_conversation_that_is_not_understood_is_refused(spoilt: Json) -> None:
    with pytest.raises(msgspec.ValidationError):
        History("sesn_1").take(json.dumps(spoilt).encode())


def test_times_ahead_of_our_clock_stay_ahead() -> None:
    late = (NOW - make.START).total_seconds() + 60
    session = shown(updated_at=datetime(2026, 1, 3, tzinfo=UTC))
    history = History("sesn_1")
    history.take(json.dumps(event("session.status_running", late)).encode())
    history.rest(session)
    assert history.state(session, NOW, ()).last_at == NOW + timedelta(seconds=60)
