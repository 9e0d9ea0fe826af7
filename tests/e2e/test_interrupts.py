"""Interrupts: they overtake what waits, cut the model off, close what is open, and leave the session usable."""

from __future__ import annotations

import pytest
from anthropic import Anthropic

from tests.e2e.sessions import (
    Json,
    answer,
    bash,
    custom_tool,
    history,
    message,
    new_session,
    policies,
    reading,
    script,
    send,
    texts,
    turn,
    types,
)

INTERRUPT: Json = {"type": "user.interrupt"}
TALKING = script({"say": "I am just about to", "then": [{"hang": True}]})


@pytest.mark.requirement("F083", "F093")
def test_a_model_that_is_talking_is_cut_off_and_its_preview_is_closed(client: Anthropic) -> None:
    session = new_session(client)
    with reading(client, session.id, "agent.message") as reader:
        send(client, session.id, TALKING)
        preview = reader.until("event_start").event
        reader.until("event_delta")
        (echo,) = answer(client, session.id, INTERRUPT)
        assert echo.processed_at is None
        assert reader.idle().type == "end_turn"
    (start,), (end,) = reader.of("span.model_request_start"), reader.of("span.model_request_end")
    assert (end.model_request_start_id, end.is_error) == (start.id, True)
    assert end.model_usage.output_tokens == 0
    assert reader.of("agent.message") == []
    assert preview.id not in [event.id for event in history(client, session.id)]
    assert types(history(client, session.id))[-5:] == [
        "span.model_request_end",
        "user.interrupt",
        "session.thread_status_idle",
        "session.usage",
        "session.status_idle",
    ]
    first, last = reader.of("user.interrupt")
    assert (first.id, first.processed_at) == (last.id, None)
    assert last.processed_at is not None


@pytest.mark.requirement("F084")
def test_an_interrupt_overtakes_messages_that_wait_and_they_start_the_next_turn(client: Anthropic) -> None:
    session = new_session(client)
    with reading(client, session.id) as reader:
        send(client, session.id, TALKING)
        reader.until("span.model_request_start")
        (waiting,) = answer(client, session.id, message("What I sent before."))
        (interrupt,) = answer(client, session.id, INTERRUPT)
        assert reader.idle().type == "end_turn"
        assert reader.idle().type == "end_turn"
    ids = [event.id for event in history(client, session.id)]
    assert ids.index(interrupt.id) < ids.index(waiting.id)
    (said,) = reader.of("agent.message")
    assert texts(said) == "You said: What I sent before."


@pytest.mark.requirement("F083", "F084")
def test_an_interrupt_and_a_new_message_in_one_request_redirect_the_agent(client: Anthropic) -> None:
    session = new_session(client)
    with reading(client, session.id) as reader:
        send(client, session.id, TALKING)
        reader.until("span.model_request_start")
        answer(client, session.id, INTERRUPT, message("Something else, please."))
        assert [reader.idle().type, reader.idle().type] == ["end_turn", "end_turn"]
    order = [event.type for event in history(client, session.id)]
    first_idle = order.index("session.status_idle")
    assert order[first_idle + 1 : first_idle + 4] == [
        "session.status_running",
        "session.thread_status_running",
        "user.message",
    ]
    assert texts(reader.of("agent.message")[-1]) == "You said: Something else, please."


@pytest.mark.requirement("F083")
def test_an_interrupt_of_a_resting_session_changes_nothing(client: Anthropic) -> None:
    session = new_session(client)
    turn(client, session.id, "Hello.")
    before = types(history(client, session.id))
    (echo,) = answer(client, session.id, INTERRUPT)
    assert echo.processed_at is not None
    assert types(history(client, session.id)) == [*before, "user.interrupt"]
    assert client.beta.sessions.retrieve(session.id).status == "idle"
    said = [event for event in turn(client, session.id, "Still there?") if event.type == "agent.message"]
    assert texts(said[0]) == "You said: Still there?"


@pytest.mark.requirement("F083", "F079")
def test_an_interrupt_of_a_waiting_session_closes_its_calls_without_asking_the_model(client: Anthropic) -> None:
    session = new_session(client, policies(bash="always_ask"), custom_tool())
    calls = [bash("echo never"), {"tool": "weather", "input": {"city": "Bergen"}}]
    with reading(client, session.id) as reader:
        send(client, session.id, script({"parallel": calls}, {"say": "Never said."}))
        assert len(reader.idle().event_ids) == 2
        answer(client, session.id, INTERRUPT)
        assert reader.idle().type == "end_turn"
        (asked,), (custom,) = reader.of("agent.tool_use"), reader.of("agent.custom_tool_use")
        (closed,), (answered,) = reader.of("agent.tool_result"), reader.of("user.custom_tool_result")
        assert (closed.tool_use_id, closed.is_error) == (asked.id, True)
        assert (answered.custom_tool_use_id, answered.is_error) == (custom.id, True)
        assert "interrupted" in texts(closed) and "interrupted" in texts(answered)
        assert len(reader.of("span.model_request_start")) == 1
        send(client, session.id, script({"echo": "messages"}))
        reader.idle()
    assert texts(reader.of("agent.message")[-1]).count("interrupted execution") == 2


@pytest.mark.requirement("F083", "F068")
def test_an_interrupt_ends_the_wait_for_a_retry(client: Anthropic) -> None:
    session = new_session(client)
    with reading(client, session.id) as reader:
        send(client, session.id, script({"fail": "overloaded", "retry_after": 60}))
        reader.until("session.status_rescheduled")
        assert client.beta.sessions.retrieve(session.id).status == "rescheduling"
        answer(client, session.id, INTERRUPT)
        assert reader.idle().type == "end_turn"
        send(client, session.id, "And now?")
        reader.idle()
    assert texts(reader.of("agent.message")[-1]) == "You said: And now?"


@pytest.mark.requirement("F083")
def test_an_interrupt_may_name_the_primary_thread(client: Anthropic) -> None:
    session = new_session(client)
    with reading(client, session.id) as reader:
        send(client, session.id, TALKING)
        thread_id = reader.until("session.thread_status_running").session_thread_id
        answer(client, session.id, {**INTERRUPT, "session_thread_id": thread_id})
        assert reader.idle().type == "end_turn"
    assert reader.of("user.interrupt")[-1].session_thread_id == thread_id


@pytest.mark.requirement("F083", "F080")
def test_an_interrupt_frees_a_waiting_session_for_the_message_behind_it(client: Anthropic) -> None:
    session = new_session(client, policies(bash="always_ask"))
    with reading(client, session.id) as reader:
        send(client, session.id, script(bash("echo never"), {"say": "Never said."}))
        reader.idle()
        answer(client, session.id, INTERRUPT, message("Something else, please."))
        assert [reader.idle().type, reader.idle().type] == ["end_turn", "end_turn"]
    assert texts(reader.of("agent.message")[-1]) == "You said: Something else, please."


@pytest.mark.requirement("F083")
def test_an_interrupt_behind_an_answer_wins(client: Anthropic) -> None:
    session = new_session(client, policies(bash="always_ask"))
    with reading(client, session.id) as reader:
        send(client, session.id, script(bash("echo never"), {"say": "Never said."}))
        (event_id,) = reader.idle().event_ids
        answer(
            client,
            session.id,
            {"type": "user.tool_confirmation", "tool_use_id": event_id, "result": "allow"},
            INTERRUPT,
        )
        assert reader.idle().type == "end_turn"
    assert client.beta.sessions.retrieve(session.id).status == "idle"
    (result,) = reader.of("agent.tool_result")
    assert result.is_error and "interrupted" in texts(result)
