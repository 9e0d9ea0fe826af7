"""Models that fail or refuse: what the log says, what is tried again, and how the session goes on."""

from __future__ import annotations

import json

import pytest
from anthropic import Anthropic

from tests.e2e.sessions import custom_tool, history, new_session, script, texts, turn, types

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


def test_a_client_is_never_asked_to_run_a_call_whose_input_is_broken(client: Anthropic) -> None:
    session = new_session(client, custom_tool())
    seen = turn(client, session.id, script({"malformed": "weather"}, {"echo": "prompt"}))
    (use,) = [event for event in seen if event.type == "agent.custom_tool_use"]
    (result,) = [event for event in seen if event.type == "user.custom_tool_result"]
    assert result.custom_tool_use_id == use.id and result.is_error and "JSON" in texts(result)
    assert seen[-1].type == "session.status_idle" and seen[-1].stop_reason.type == "end_turn"
    told = json.loads(texts(next(event for event in seen if event.type == "agent.message")))
    assert told["last_result_is_error"] and "JSON" in told["last_result"]


def test_a_call_that_was_cut_off_at_the_output_limit_does_not_run_and_the_model_hears_why(client: Anthropic) -> None:
    session = new_session(client)
    cut = [{"say": "Let me see"}, {"malformed": "bash", "stop": "max_tokens"}]
    seen = turn(client, session.id, script(cut, {"say": "Shorter, then."}))
    (result,) = [event for event in seen if event.type == "agent.tool_result"]
    assert result.is_error and "limit of length" in texts(result)
    assert [texts(event) for event in seen if event.type == "agent.message"] == ["Let me see", "Shorter, then."]


def test_an_answer_that_was_cut_off_at_the_output_limit_ends_the_turn_as_it_is(client: Anthropic) -> None:
    session = new_session(client)
    seen = turn(client, session.id, script({"say": "So far, so", "stop": "max_tokens"}, {"say": "never"}))
    assert [texts(event) for event in seen if event.type == "agent.message"] == ["So far, so"]
    assert seen[-1].type == "session.status_idle" and seen[-1].stop_reason.type == "end_turn"
    assert "session.error" not in types(seen)


def test_a_model_that_pauses_is_asked_to_go_on_where_it_stopped(client: Anthropic) -> None:
    session = new_session(client)
    seen = turn(client, session.id, script({"say": "First half,", "stop": "pause_turn"}, {"echo": "prompt"}))
    first, second = [event for event in seen if event.type == "agent.message"]
    assert texts(first) == "First half," and json.loads(texts(second))["roles"] == ["user", "assistant"]
    assert types(seen).count("session.status_running") == 1
    assert seen[-1].type == "session.status_idle" and seen[-1].stop_reason.type == "end_turn"
    # Both halves are one message of the model's in the next request.
    (later,) = [
        event for event in turn(client, session.id, script({"echo": "prompt"})) if event.type == "agent.message"
    ]
    assert json.loads(texts(later))["roles"] == ["user", "assistant", "user"]


def test_a_model_that_only_ever_pauses_is_stopped(client: Anthropic) -> None:
    session = new_session(client)
    pause = {"say": "A moment.", "stop": "pause_turn"}
    seen = turn(client, session.id, script(pause, pause))
    (error,) = [event for event in seen if event.type == "session.error"]
    assert (error.error.type, error.error.retry_status.type) == ("tool_use_limit_reached_error", "exhausted")
    assert types(seen).count("span.model_request_start") == 20


@pytest.mark.parametrize("stop", ["end_turn", "max_tokens", "pause_turn"])
def test_an_empty_answer_ends_the_turn_and_the_next_message_is_answered(client: Anthropic, stop: str) -> None:
    session = new_session(client)
    seen = turn(client, session.id, script({"stop": stop}))
    assert types(seen)[-5:] == ["span.model_request_start", "span.model_request_end", *RESTS]
    assert seen[-1].type == "session.status_idle" and seen[-1].stop_reason.type == "end_turn"
    again = turn(client, session.id, "And now?")
    assert [texts(event) for event in again if event.type == "agent.message"] == ["You said: And now?"]


def test_a_tool_that_does_not_exist_is_answered_with_an_error_and_never_asked_about(client: Anthropic) -> None:
    session = new_session(client)
    seen = turn(client, session.id, script({"tool": "teleport", "input": {}}, {"say": "By bus, then."}))
    (use,) = [event for event in seen if event.type == "agent.tool_use"]
    (result,) = [event for event in seen if event.type == "agent.tool_result"]
    assert use.evaluated_permission == "deny"
    assert result.is_error and texts(result) == "There is no tool named teleport."
    assert [texts(event) for event in seen if event.type == "agent.message"] == ["By bus, then."]
