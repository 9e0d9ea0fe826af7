"""Streams: frames and pings as bytes, previews through the SDK's accumulator, and many readers at once."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from itertools import takewhile

import anthropic
import httpx2
import pytest
from anthropic import Anthropic
from anthropic.lib.sessions import accumulate_managed_agents_event
from anthropic.types.beta.sessions import BetaManagedAgentsAgentMessageEvent

from tests.e2e.conftest import API_KEY, CLIENT_SECONDS_MAX, ServerProcess
from tests.e2e.sessions import Json, bash, history, new_session, reading, script, send, texts, turn, types

READERS = 12
LINES_MAX = 2_000


@contextmanager
def raw_lines(server: ServerProcess, session_id: str) -> Generator[Iterator[str]]:
    """The stream as lines of text."""
    headers = {"authorization": f"Bearer {API_KEY}", "anthropic-beta": "managed-agents-2026-04-01"}
    url = f"{server.base_url}/v1/sessions/{session_id}/events/stream"
    with httpx2.Client(timeout=CLIENT_SECONDS_MAX, verify=False) as http:
        with http.stream("GET", url, headers=headers) as response:
            assert response.status_code == 200
            assert response.headers["content-type"].startswith("text/event-stream")
            yield (line for _, line in zip(range(LINES_MAX), response.iter_lines(), strict=False))


@pytest.mark.requirement("F087", "F088")
def test_every_fact_is_a_frame_named_message(live: ServerProcess, client: Anthropic) -> None:
    session = new_session(client)
    with raw_lines(live, session.id) as lines:
        send(client, session.id, script(bash("echo hi"), {"say": "Done."}))
        names: list[str] = []
        events: list[Json] = []
        for line in lines:
            if line.startswith("event: "):
                names.append(line.removeprefix("event: "))
            elif line.startswith("data: "):
                events.append(json.loads(line.removeprefix("data: ")))
                if events[-1]["type"] == "session.status_idle":
                    break
            else:
                assert line == "" or line.startswith(":")
    assert set(names) <= {"message", "ping"}
    facts = [event for event in events if event["type"] != "ping"]
    assert names.count("message") == len(facts)
    stored = [event.id for event in history(client, session.id)]
    assert [event["id"] for event in facts if event["processed_at"]] == stored


@pytest.mark.requirement("F089", "F087")
def test_a_quiet_stream_stays_open_with_pings_and_still_delivers(live: ServerProcess, client: Anthropic) -> None:
    session = new_session(client)
    with raw_lines(live, session.id) as lines:
        assert next(line for line in lines if line.startswith("event: ")) == "event: ping"
        assert next(lines) == 'data: {"type":"ping"}'
        assert next(line for line in lines if line.startswith("event: ")) == "event: ping"
        send(client, session.id, "Hello.")
        assert next(line for line in lines if line == "event: message")


@pytest.mark.requirement("F088")
def test_a_stream_opens_at_once_and_replays_nothing(client: Anthropic) -> None:
    session = new_session(client)
    turn(client, session.id, "First.")
    # Opening returns with the response's headers, before anything has happened.
    with reading(client, session.id) as reader:
        send(client, session.id, "Second.")
        reader.idle()
    earlier = {event.id for event in history(client, session.id)} - {event.id for event in reader.seen}
    assert len(earlier) == types(history(client, session.id)).index("session.status_idle") + 1
    assert texts(reader.of("agent.message")[0]) == "You said: Second."


@pytest.mark.requirement("F090")
def test_previews_add_up_to_the_message(client: Anthropic) -> None:
    session = new_session(client)
    said = [
        {"say": "Let me look at this from several sides. ", "pieces": 7},
        {"say": "It is round.", "pieces": 3},
        {"think": "Is it?"},
        {"say": "Yes, quite.", "pieces": 4},
        bash("echo hi"),
    ]
    with reading(client, session.id, "agent.message") as reader:
        send(client, session.id, script(said, {"say": "Done."}))
        reader.idle()
    previews: dict[str, BetaManagedAgentsAgentMessageEvent] = {}
    deltas: dict[str, int] = {}
    finals: dict[str, BetaManagedAgentsAgentMessageEvent] = {}
    for event in reader.seen:
        if event.type == "event_start":
            assert event.event.type == "agent.message" and event.event.id not in previews
            opened = accumulate_managed_agents_event(None, event)
            assert opened is not None
            previews[event.event.id] = opened
        elif event.type == "event_delta":
            assert event.event_id not in finals, "the message is the last frame of its preview"
            grown = accumulate_managed_agents_event(previews[event.event_id], event)
            assert grown is not None
            previews[event.event_id] = grown
            deltas[event.event_id] = deltas.get(event.event_id, 0) + 1
        elif event.type == "agent.message":
            finals[event.id] = event
            assert accumulate_managed_agents_event(previews[event.id], event) == event
    assert list(deltas.values()) == [10, 4, 3]
    assert {key: event.content for key, event in previews.items()} == {
        key: event.content for key, event in finals.items()
    }
    assert [len(event.content) for event in finals.values()] == [2, 1, 1]


@pytest.mark.requirement("F091")
def test_thinking_is_announced_and_never_shown(client: Anthropic) -> None:
    session = new_session(client)
    with reading(client, session.id, "agent.thinking") as reader:
        send(client, session.id, script([{"think": "A secret thought."}, {"say": "Done."}]))
        reader.idle()
    (start,) = reader.of("event_start")
    assert start.event.type == "agent.thinking"
    (thought,) = reader.of("agent.thinking")
    assert thought.id == start.event.id
    assert thought.to_dict().keys() == {"id", "type", "processed_at"}
    assert reader.of("event_delta") == []
    assert not any("secret" in event.to_json() for event in reader.seen if event.type != "user.message")


@pytest.mark.requirement("F090", "F091")
def test_previews_come_only_to_readers_that_asked_for_them(client: Anthropic) -> None:
    session = new_session(client)
    with ExitStack() as streams:
        plain, both = [
            streams.enter_context(reading(client, session.id, *deltas))
            for deltas in ((), ("agent.message", "agent.thinking"))
        ]
        send(client, session.id, script([{"think": "Hm."}, {"say": "Done."}]))
        plain.idle()
        both.idle()
    assert not plain.of("event_start", "event_delta")
    assert [event.event.type for event in both.of("event_start")] == ["agent.thinking", "agent.message"]
    facts = [event.id for event in both.seen if event.type not in ("event_start", "event_delta")]
    assert [event.id for event in plain.seen] == facts


@pytest.mark.requirement("F092")
def test_previews_of_anything_else_are_refused(client: Anthropic) -> None:
    session = new_session(client)
    wanted: list[Json] = [["x"], ["agent.tool_use"], ["agent.message"] * 101]
    for deltas in wanted:
        with pytest.raises(anthropic.BadRequestError, match="event_deltas"):
            client.beta.sessions.events.stream(session.id, event_deltas=deltas)


@pytest.mark.requirement("F093")
def test_a_failing_request_closes_its_preview(client: Anthropic) -> None:
    session = new_session(client)
    with reading(client, session.id, "agent.message") as reader:
        send(
            client, session.id, script({"fail": "overloaded", "attempts": 1, "after": "I was say", "say": "All well."})
        )
        reader.idle()
    orphan, kept = [event.event.id for event in reader.of("event_start")]
    first = list(takewhile(lambda event: event.type != "span.model_request_end", reader.seen))
    assert orphan in [event.event_id for event in first if event.type == "event_delta"]
    assert [event.id for event in reader.of("agent.message")] == [kept]


@pytest.mark.requirement("F094")
def test_many_readers_see_the_same_in_the_same_order(client: Anthropic) -> None:
    session = new_session(client)
    commands = {"parallel": [bash(f"echo {number}") for number in range(4)]}
    with ExitStack() as streams:
        readers = [streams.enter_context(reading(client, session.id)) for _ in range(READERS)]
        send(client, session.id, script(commands, commands, {"say": "Done."}))
        for reader in readers:
            reader.idle()
    first, *others = [[(event.id, event.processed_at) for event in reader.seen] for reader in readers]
    assert all(other == first for other in others)
    assert [event_id for event_id, at in first if at] == [event.id for event in history(client, session.id)]


@pytest.mark.requirement("F067")
def test_deleting_a_session_ends_its_streams(client: Anthropic) -> None:
    session = new_session(client)
    with client.beta.sessions.events.stream(session.id) as stream:
        client.beta.sessions.delete(session.id)
        assert [event.type for event in stream] == ["session.deleted"]


@pytest.mark.requirement("F087", "F085")
def test_thread_events_name_the_primary_thread_and_its_agent(client: Anthropic) -> None:
    session = new_session(client)
    seen = turn(client, session.id, "Hello.")
    threads: list[Json] = [event for event in seen if event.type.startswith("session.thread_status_")]
    assert types(threads) == ["session.thread_status_running", "session.thread_status_idle"]
    assert [event.agent_name for event in threads] == [session.agent.name] * 2
    assert threads[0].session_thread_id == threads[1].session_thread_id != session.id
