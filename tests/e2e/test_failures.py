"""Models that fail or refuse: what the log says, what is tried again, and how the session goes on."""

from __future__ import annotations

import pytest
from anthropic import Anthropic

from tests.e2e.sessions import history, new_session, script, texts, turn, types

RESTS = ["session.thread_status_idle", "session.usage", "session.status_idle"]


@pytest.mark.requirement("F068")
@pytest.mark.parametrize(
    ("kind", "error_type"),
    [
        ("overloaded", "model_overloaded_error"),
        ("rate_limited", "model_rate_limited_error"),
        ("unreachable", "model_request_failed_error"),
    ],
)
def test_a_passing_failure_is_reported_and_tried_again(client: Anthropic, kind: str, error_type: str) -> None:
    session = new_session(client)
    seen = turn(client, session.id, script({"fail": kind, "attempts": 1, "say": "Here I am."}))
    assert types(seen)[1:] == [
        "session.status_running",
        "session.thread_status_running",
        "user.message",
        "span.model_request_start",
        "span.model_request_end",
        "session.error",
        "session.status_rescheduled",
        "session.thread_status_rescheduled",
        "session.status_running",
        "session.thread_status_running",
        "span.model_request_start",
        "agent.message",
        "span.model_request_end",
        *RESTS,
    ]
    (error,) = [event for event in seen if event.type == "session.error"]
    assert (error.error.type, error.error.retry_status.type) == (error_type, "retrying")
    ends = [event.is_error for event in seen if event.type == "span.model_request_end"]
    assert ends == [True, False]


@pytest.mark.requirement("F068")
def test_a_failure_that_stays_ends_the_turn_and_the_next_message_starts_a_new_one(client: Anthropic) -> None:
    session = new_session(client)
    seen = turn(client, session.id, script({"fail": "overloaded"}))
    errors = [event.error.retry_status.type for event in seen if event.type == "session.error"]
    assert errors == ["retrying", "retrying", "exhausted"]
    assert types(seen)[-5:] == ["span.model_request_end", "session.error", *RESTS]
    assert seen[-1].type == "session.status_idle" and seen[-1].stop_reason.type == "retries_exhausted"
    again = turn(client, session.id, script({"fail": "overloaded", "attempts": 2, "say": "Back again."}))
    assert texts(next(event for event in again if event.type == "agent.message")) == "Back again."


@pytest.mark.requirement("F068")
@pytest.mark.parametrize(
    ("kind", "error_type"),
    [("refused", "model_request_failed_error"), ("billing", "billing_error")],
)
def test_a_failure_that_no_retry_mends_ends_the_turn_at_once(client: Anthropic, kind: str, error_type: str) -> None:
    session = new_session(client)
    seen = turn(client, session.id, script({"fail": kind}))
    (error,) = [event for event in seen if event.type == "session.error"]
    assert (error.error.type, error.error.retry_status.type) == (error_type, "exhausted")
    assert "session.status_rescheduled" not in types(seen)


@pytest.mark.requirement("F086")
@pytest.mark.parametrize(("said", "category"), [("cyber", "cyber"), ("bio", "bio"), ("a new one", None)])
def test_a_refusal_ends_the_turn_with_its_reason(client: Anthropic, said: str, category: str | None) -> None:
    session = new_session(client)
    seen = turn(client, session.id, script({"say": "I had rather not", "refuse": said, "explanation": "Too risky."}))
    thread, _, idle = seen[-3:]
    assert idle.type == "session.status_idle" and thread.type == "session.thread_status_idle"
    for event in (thread, idle):
        assert event.stop_reason.type == "refusal"
        assert event.stop_details is not None
        assert event.stop_details.to_dict() == {"type": "refusal", "category": category, "explanation": "Too risky."}
    assert "session.error" not in types(seen)
    again = turn(client, session.id, "Something else, then.")
    assert again[-1].type == "session.status_idle" and again[-1].stop_reason.type == "end_turn"
    assert again[-1].stop_details is None


@pytest.mark.requirement("F068")
def test_an_agent_that_never_ends_its_turn_is_stopped(client: Anthropic) -> None:
    session = new_session(client)
    endless = script(*[{"tool": "no_such_tool"}] * 30)
    seen = turn(client, session.id, endless)
    (error,) = [event for event in seen if event.type == "session.error"]
    assert (error.error.type, error.error.retry_status.type) == ("tool_use_limit_reached_error", "exhausted")
    assert seen[-1].type == "session.status_idle" and seen[-1].stop_reason.type == "retries_exhausted"
    assert types(seen).count("span.model_request_start") == 20


def test_a_call_whose_input_is_broken_is_answered_with_an_error(client: Anthropic) -> None:
    session = new_session(client)
    seen = turn(client, session.id, script({"malformed": "bash"}, {"say": "Sorry."}))
    (result,) = [event for event in seen if event.type == "agent.tool_result"]
    assert result.is_error and "JSON" in texts(result)
    assert types(history(client, session.id))[-1] == "session.status_idle"
