"""Sessions that are created with something to do."""

from __future__ import annotations

import anthropic
import pytest
from anthropic import Anthropic

from tests.e2e.sessions import (
    Json,
    bash,
    message,
    new_agent,
    new_environment,
    new_session,
    results,
    script,
    texts,
    types,
    wait_until_idle,
)


@pytest.mark.requirement("F058")
def test_a_session_with_something_to_do_is_running_in_the_answer(client: Anthropic) -> None:
    task = script(bash("echo from the start"), {"say": "Done."})
    session = new_session(client, initial_events=[message(task)])
    assert session.status == "running"
    events = wait_until_idle(client, session.id)
    assert types(events)[:3] == ["session.status_running", "session.thread_status_running", "user.message"]
    assert results(events) == ["from the start"]


@pytest.mark.requirement("F058", "F076")
def test_several_initial_messages_are_read_in_order(client: Anthropic) -> None:
    session = new_session(
        client, initial_events=[message("One."), message("Two."), message(script({"echo": "messages"}))]
    )
    events = wait_until_idle(client, session.id)
    read = texts(next(event for event in events if event.type == "agent.message"))
    assert read.index("One.") < read.index("Two.")
    assert types(events).count("user.message") == 3


@pytest.mark.requirement("F059")
@pytest.mark.parametrize(
    ("events", "path"),
    [
        ([message("Fine."), message("")], "initial_events.1"),
        ([message("Fine."), {"type": "user.interrupt"}], "initial_events.1"),
        (
            [message("Fine."), {"type": "system.message", "content": [{"type": "text", "text": "x"}]}],
            "initial_events.1",
        ),
        ([message("Fine.")] * 51, "initial_events"),
        (
            [{"type": "user.define_outcome", "description": "d", "rubric": {"type": "text", "content": "c"}}] * 2,
            "initial_events",
        ),
    ],
)
def test_bad_initial_events_make_no_session(client: Anthropic, events: Json, path: str) -> None:
    agent_id, environment_id = new_agent(client), new_environment(client)
    with pytest.raises(anthropic.BadRequestError) as caught:
        client.beta.sessions.create(agent=agent_id, environment_id=environment_id, initial_events=events)
    assert path in caught.value.message
    assert list(client.beta.sessions.list(agent_id=agent_id)) == []


@pytest.mark.requirement("F058")
def test_nothing_to_do_leaves_a_new_session_idle(client: Anthropic) -> None:
    session = new_session(client, initial_events=[])
    assert (session.status, list(client.beta.sessions.events.list(session.id))) == ("idle", [])
