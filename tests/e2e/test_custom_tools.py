"""Tools that the client runs: the round trip by hand, and the official SDK's own runner."""

from __future__ import annotations

import base64

import anyio
import httpx2
import pytest
from anthropic import Anthropic, AsyncAnthropic, beta_async_tool

from tests.e2e.conftest import API_KEY, ServerProcess
from tests.e2e.sessions import (
    TOOLSET,
    Json,
    answer,
    bash,
    custom_tool,
    history,
    message,
    new_session,
    policies,
    reading,
    refused,
    script,
    send,
    texts,
    turn,
    types,
)

RUNNER_SECONDS_MAX = 60
CALL = {"tool": "weather", "input": {"city": "Bergen"}}


def result_of(use: Json, *content: str | Json, **more: Json) -> Json:
    blocks = [{"type": "text", "text": block} if isinstance(block, str) else block for block in content]
    return {"type": "user.custom_tool_result", "custom_tool_use_id": use.id, "content": blocks, **more}


@pytest.mark.requirement("F081", "F075")
@pytest.mark.parametrize("is_error", [False, True])
def test_the_clients_answer_goes_to_the_model(client: Anthropic, is_error: bool) -> None:
    session = new_session(client, custom_tool())
    with reading(client, session.id) as reader:
        send(client, session.id, script(CALL, {"echo": "prompt"}))
        reason = reader.idle()
        (use,) = reader.of("agent.custom_tool_use")
        assert (use.name, use.input) == ("weather", {"city": "Bergen"})
        assert use.to_dict().keys() == {"id", "type", "name", "input", "processed_at"}
        assert (reason.type, reason.event_ids) == ("requires_action", [use.id])
        (echo,) = answer(client, session.id, result_of(use, "Rain.", is_error=is_error))
        assert echo.processed_at is not None
        assert reader.idle().type == "end_turn"
    (shown,) = reader.of("user.custom_tool_result")
    assert (shown.id, shown.processed_at, shown.is_error) == (echo.id, echo.processed_at, is_error)
    read = texts(reader.of("agent.message")[-1])
    assert '"last_result":"Rain."' in read
    assert f'"last_result_is_error":{str(is_error).lower()}' in read


@pytest.mark.requirement("F081")
def test_an_answer_may_hold_an_image_or_nothing_at_all(client: Anthropic) -> None:
    session = new_session(client, custom_tool())
    picture = base64.b64encode(b"pixels").decode()
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": picture}}
    with reading(client, session.id) as reader:
        send(client, session.id, script({"parallel": [CALL, CALL]}, {"echo": "messages"}))
        reader.idle()
        first, second = reader.of("agent.custom_tool_use")
        empty = {"type": "user.custom_tool_result", "custom_tool_use_id": second.id}
        answer(client, session.id, result_of(first, image), empty)
        reader.idle()
    assert picture in texts(reader.of("agent.message")[-1])


@pytest.mark.requirement("F079", "F081")
def test_each_of_several_clients_answers_what_it_owns(client: Anthropic) -> None:
    session = new_session(client, policies(bash="always_ask"), custom_tool(), custom_tool("tides"))
    calls = [CALL, bash("echo ran"), {"tool": "tides", "input": {"city": "Bergen"}}]
    with reading(client, session.id) as reader:
        send(client, session.id, script({"parallel": calls}, {"say": "Done."}))
        reason = reader.idle()
        weather, tides = reader.of("agent.custom_tool_use")
        (asked,) = reader.of("agent.tool_use")
        assert reason.event_ids == [weather.id, asked.id, tides.id]
        answer(client, session.id, result_of(tides, "Low."))
        assert reader.idle().event_ids == [weather.id, asked.id]
        answer(client, session.id, {"type": "user.tool_confirmation", "tool_use_id": asked.id, "result": "allow"})
        assert reader.idle().event_ids == [weather.id]
        answer(client, session.id, result_of(weather, "Rain."))
        assert reader.idle().type == "end_turn"
    assert [texts(result) for result in reader.of("agent.tool_result")] == ["ran"]


@pytest.mark.requirement("F081")
def test_an_answer_may_come_before_the_session_is_idle(client: Anthropic) -> None:
    session = new_session(client, custom_tool())
    with reading(client, session.id) as reader:
        send(client, session.id, script(CALL, {"say": "Done."}))
        answer(client, session.id, result_of(reader.until("agent.custom_tool_use"), "Rain."))
        while reader.idle().type == "requires_action":
            pass
    assert texts(reader.of("agent.message")[-1]) == "Done."


@pytest.mark.requirement("F081", "F071")
def test_an_answer_to_nothing_is_refused(client: Anthropic) -> None:
    session = new_session(client, TOOLSET, custom_tool())
    turn(client, session.id, script({"parallel": [CALL, bash("echo ran")]}, {"say": "Done."}))
    calls = {event.type: event for event in history(client, session.id) if "tool_use" in event.type}
    use, built_in = calls["agent.custom_tool_use"], calls["agent.tool_use"]
    assert built_in.id in refused(client, session.id, result_of(built_in, "Rain."))
    confirmation = {"type": "user.tool_confirmation", "tool_use_id": use.id, "result": "allow"}
    assert use.id in refused(client, session.id, confirmation)
    assert use.id in refused(client, session.id, result_of(use, "Rain."), result_of(use, "Sun."))
    assert "user.tool_result" in refused(client, session.id, {"type": "user.tool_result", "tool_use_id": built_in.id})
    with reading(client, session.id) as reader:
        answer(client, session.id, result_of(use, "Rain."))
        reader.idle()
    assert use.id in refused(client, session.id, result_of(use, "Rain."))


@pytest.mark.requirement("F081")
def test_the_runner_of_the_official_sdk_answers_custom_tools(live: ServerProcess, client: Anthropic) -> None:
    asked: list[str] = []

    @beta_async_tool
    async def weather(city: str) -> str:
        """The weather in a city."""
        asked.append(city)
        if city == "Atlantis":
            raise ValueError("it has sunk")
        return f"Rain in {city}."

    session = new_session(client, TOOLSET, custom_tool())
    sunk = {"tool": "weather", "input": {"city": "Atlantis"}}
    steps = ({"parallel": [CALL, bash("echo ran")]}, sunk, {"say": "Take an umbrella."})

    async def run() -> list[tuple[str, bool, bool]]:
        transport = httpx2.AsyncClient(timeout=RUNNER_SECONDS_MAX, verify=False)
        with anyio.fail_after(RUNNER_SECONDS_MAX):
            async with AsyncAnthropic(base_url=live.base_url, api_key=API_KEY, http_client=transport) as sdk:
                await sdk.beta.sessions.events.send(session.id, events=[message(script(*steps))])
                runner = sdk.beta.sessions.events.tool_runner(session.id, tools=[weather], max_idle=0.5)
                return [(call.name, call.posted, call.is_error) async for call in runner]

    calls = anyio.run(run)
    assert sorted(calls) == [("bash", False, False), ("weather", True, False), ("weather", True, True)]
    assert asked == ["Bergen", "Atlantis"]
    events = history(client, session.id)
    assert texts(next(event for event in events if event.type == "user.custom_tool_result")) == "Rain in Bergen."
    assert texts(next(event for event in events if event.type == "agent.message")) == "Take an umbrella."
    assert types(events)[-1] == "session.status_idle"
