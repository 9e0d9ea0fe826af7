"""Messages that wait: in order, each with its own time, taken up together at the next turn boundary."""

from __future__ import annotations

import pytest
from anthropic import Anthropic

from tests.e2e.conftest import ServerProcess, serving
from tests.e2e.sessions import (
    GATE,
    answer,
    bash,
    custom_tool,
    history,
    message,
    new_session,
    open_gate,
    reading,
    refused,
    script,
    send,
    texts,
    turn,
    types,
)


@pytest.mark.requirement("F070", "F074", "F076")
def test_messages_to_a_busy_session_wait_and_are_read_in_order(live: ServerProcess, client: Anthropic) -> None:
    session = new_session(client)
    with reading(client, session.id) as reader:
        send(client, session.id, script(*GATE, {"say": "Never said: later messages have the word."}))
        reader.until("agent.tool_result")
        echoes = [answer(client, session.id, message(f"Message {number}."))[0] for number in (1, 2)]
        echoes += answer(client, session.id, message(script({"echo": "messages"})))
        assert [echo.processed_at for echo in echoes] == [None, None, None]
        ids = [echo.id for echo in echoes]
        assert [(event.id, event.processed_at) for event in history(client, session.id)[-3:]] == [
            (event_id, None) for event_id in ids
        ]
        open_gate(live, session.id)
        assert reader.idle().type == "end_turn"
    frames = [(event.id, event.processed_at is None) for event in reader.of("user.message") if event.id in ids]
    assert frames == [(each, True) for each in ids] + [(each, False) for each in ids]
    stored = [event for event in history(client, session.id) if event.id in ids]
    assert [event.id for event in stored] == ids
    assert all(event.processed_at for event in stored)
    read = texts(reader.of("agent.message")[-1])
    assert read.index("Message 1.") < read.index("Message 2.") < read.rindex("```script")


@pytest.mark.requirement("F074")
def test_a_message_to_a_resting_session_is_shown_twice_with_one_id(client: Anthropic) -> None:
    session = new_session(client)
    seen = turn(client, session.id, "Hello.")
    first, second = [event for event in seen if event.type == "user.message"]
    assert first.id == second.id
    assert (first.processed_at, second.processed_at is None) == (None, False)
    assert [event.id for event in history(client, session.id)].count(first.id) == 1


@pytest.mark.requirement("F075")
def test_an_answer_is_processed_as_it_is_received(client: Anthropic) -> None:
    session = new_session(client, custom_tool())
    with reading(client, session.id) as reader:
        send(client, session.id, script({"tool": "weather", "input": {"city": "Bergen"}}, {"say": "Done."}))
        (event_id,) = reader.idle().event_ids
        answer(client, session.id, {"type": "user.custom_tool_result", "custom_tool_use_id": event_id})
        reader.idle()
    (shown,) = reader.of("user.custom_tool_result")
    assert shown.processed_at is not None


@pytest.mark.requirement("F070", "F071")
def test_a_request_is_accepted_whole_or_not_at_all(client: Anthropic) -> None:
    session = new_session(client)
    assert "events.1" in refused(client, session.id, message("Fine."), message(""))
    assert "events.2" in refused(client, session.id, message("Fine."), message("Too."), {"type": "user.nonsense"})
    with reading(client, session.id) as reader:
        echoes = answer(client, session.id, message("One."), message("Two."))
        reader.idle()
    assert [texts(echo) for echo in echoes] == ["One.", "Two."]
    assert len({echo.id for echo in echoes}) == 2
    assert [event.id for event in history(client, session.id) if event.type == "user.message"] == [
        echo.id for echo in echoes
    ]


@pytest.mark.requirement("F068", "F076")
def test_a_turn_that_is_given_up_drops_what_waits() -> None:
    settings = "[harness]\nmodel_idle_seconds_max = 2.0\nmodel_attempts_max = 1\n"
    with serving(settings) as server, server.client() as client:
        session = new_session(client)
        with reading(client, session.id) as reader:
            send(client, session.id, script({"hang": True}))
            reader.until("span.model_request_start")
            (dropped,) = answer(client, session.id, message("Dropped."))
            assert reader.idle().type == "retries_exhausted"
            (error,) = reader.of("session.error")
            assert (error.error.type, error.error.retry_status.type) == ("model_request_failed_error", "exhausted")
            stored = next(event for event in history(client, session.id) if event.id == dropped.id)
            assert stored.processed_at is not None
            send(client, session.id, script({"echo": "messages"}))
            assert reader.idle().type == "end_turn"
        assert "Dropped." not in texts(reader.of("agent.message")[-1])


@pytest.mark.requirement("F069", "F074")
def test_what_waits_survives_the_death_of_the_server(server: ServerProcess) -> None:
    with server.client() as client:
        session = new_session(client)
        with reading(client, session.id) as reader:
            send(client, session.id, script(*GATE, bash("echo never asked for")))
            reader.until("agent.tool_result")
            reader.until("agent.tool_use")  # what was being asked when the server died would be asked anew
            (waiting,) = answer(client, session.id, message("I waited."))
    server.kill()
    server.start()
    open_gate(server, session.id)
    with server.client() as client:
        with reading(client, session.id) as reader:
            if client.beta.sessions.retrieve(session.id).status != "idle":
                reader.idle()
        events = history(client, session.id)
        assert [event.id for event in events].count(waiting.id) == 1
        assert texts(next(event for event in events if event.type == "agent.message")) == "You said: I waited."
        assert types(events)[-1] == "session.status_idle"
