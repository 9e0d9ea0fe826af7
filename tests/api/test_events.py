from __future__ import annotations

import base64
from typing import Any, get_args

import anthropic
import pytest
from anthropic.types.beta.sessions import (
    BetaManagedAgentsSendSessionEvents,
    BetaManagedAgentsSessionEvent,
)
from anthropic.types.beta.sessions.beta_managed_agents_session_event_type import BetaManagedAgentsSessionEventType

from corral.api.events import EventType
from corral.domain import event as ev
from corral.domain.ids import new_id
from corral.domain.lifecycle import Append
from tests.api.live_server import Server, World, message
from tests.api.sdk_types import assert_is

PNG: Any = {"type": "base64", "media_type": "image/png", "data": base64.b64encode(b"pixels").decode()}
PDF: Any = {"type": "base64", "media_type": "application/pdf", "data": base64.b64encode(b"%PDF").decode()}

TEXT: Any = {"type": "text", "text": "x"}


def send(world: World, session: str, *events: Any) -> list[Any]:
    """Send raw events; the echo."""
    response = world.server.http.post(f"/v1/sessions/{session}/events", json={"events": events})
    assert response.status_code == 200, response.text
    assert_is(response.json(), BetaManagedAgentsSendSessionEvents)
    return response.json()["data"]


def history(world: World, session: str, **query: Any) -> list[Any]:
    response = world.server.http.get(f"/v1/sessions/{session}/events", params=query)
    assert response.status_code == 200, response.text
    for event in response.json()["data"]:
        assert_is(event, BetaManagedAgentsSessionEvent)
    return response.json()["data"]


def types(world: World, session: str, **query: Any) -> list[str]:
    return [event["type"] for event in history(world, session, **query)]


def refusal(world: World, session: str, *events: Any) -> str:
    """The message of a refused request, after which nothing has changed."""
    before, woken = history(world, session), list(world.server.engine.woken)
    response = world.server.http.post(f"/v1/sessions/{session}/events", json={"events": events})
    assert response.status_code == 400, response.text
    assert history(world, session) == before
    assert world.server.engine.woken == woken
    return response.json()["error"]["message"]


def use_tool(world: World, session: str, *calls: ev.AgentToolUse | ev.AgentCustomToolUse) -> list[str]:
    """The model calls tools, and the session goes as far as it can."""
    world.server.proceed(session)

    def answer(_session: Any, state: Any, _now: Any) -> list[Append]:
        assert state.open_request_id is not None
        end = ev.SpanModelRequestEnd(id=new_id("sevt"), model_request_start_id=state.open_request_id)
        return [*(Append(call) for call in calls), Append(end)]

    world.server.commit(session, answer)
    world.server.proceed(session)
    return [call.id for call in calls]


def asking(name: str = "bash") -> ev.AgentToolUse:
    return ev.AgentToolUse(id=new_id("sevt"), name=name, input={}, evaluated_permission="ask")


def custom() -> ev.AgentCustomToolUse:
    return ev.AgentCustomToolUse(id=new_id("sevt"), name="weather", input={"city": "Ulm"})


def test_messages_come_back_with_ids_in_the_order_of_the_request(world: World) -> None:
    session = world.session()
    sent = send(world, session, message("one"), message("two"))
    assert [event["content"][0]["text"] for event in sent] == ["one", "two"]
    assert all(event["id"].startswith("sevt_") and event["processed_at"] is None for event in sent)
    assert world.client.beta.sessions.retrieve(session).status == "running"
    assert world.server.engine.woken == [session]


def test_messages_to_a_running_session_wait_their_turn(world: World) -> None:
    session = world.session("first")
    send(world, session, message("second"))
    send(world, session, message("third"))
    world.server.proceed(session)
    texts = [event["content"][0]["text"] for event in history(world, session, types="user.message")]
    assert texts == ["first", "second", "third"]
    assert all(event["processed_at"] for event in history(world, session))


def test_one_bad_event_refuses_the_whole_request(world: World) -> None:
    session = world.session()
    assert refusal(world, session, message("fine"), {"type": "user.message", "content": []}).startswith(
        "events.1.content: "
    )
    assert refusal(world, session, message("fine"), {"type": "user.shout"}).startswith("events.1.type: ")
    assert refusal(world, session).startswith("events: ")
    assert world.client.beta.sessions.retrieve(session).status == "idle"


@pytest.mark.parametrize(
    ("content", "path"),
    [
        ([{"type": "redacted"}], "events.0.content.0: "),
        ([{"type": "text", "text": ""}], "events.0.content.0.text: "),
        ([{"type": "text", "text": " \n"}], "events.0.content.0.text: "),
        ([{"type": "text"}], "events.0.content.0.text: "),
        ([TEXT | {"cache_control": 1}], "events.0.content.0.cache_control: "),
        ([{"type": "video"}], "events.0.content.0.type: "),
        (
            [{"type": "text", "text": "x"}, {"type": "image", "source": PNG | {"media_type": "image/tiff"}}],
            "events.0.content.1",
        ),
        ([{"type": "image", "source": PNG | {"data": "not base64!"}}], "events.0.content.0.source.data: "),
        ([{"type": "image", "source": PNG | {"data": ""}}], "events.0.content.0.source.data: "),
        ([{"type": "image", "source": PNG | {"data": "QUJD" * 3_000_000}}], "events.0.content.0.source.data: "),
        (
            [{"type": "image", "source": {"type": "url", "url": "file:///etc/passwd"}}],
            "events.0.content.0.source.url: ",
        ),
        ([{"type": "image", "source": {"type": "url", "url": "https://a b/"}}], "events.0.content.0.source.url: "),
        ([{"type": "image", "source": {"type": "url", "url": "https://[a/"}}], "events.0.content.0.source.url: "),
        ([{"type": "image", "source": {"type": "file", "file_id": "file_1"}}], "events.0.content.0.source.file_id: "),
        (
            [{"type": "document", "source": {"type": "file", "file_id": "file_1"}}],
            "events.0.content.0.source.file_id: ",
        ),
        ([{"type": "document", "source": PDF | {"media_type": "text/html"}}], "events.0.content.0.source.media_type: "),
        ([{"type": "document", "source": PDF | {"data": "QUJ"}}], "events.0.content.0.source.data: "),
        ([{"type": "document", "source": PDF, "title": "t" * 501}], "events.0.content.0.title: "),
        ([TEXT] * 1_001, "events.0.content: "),
        ("hello", "events.0.content: "),
    ],
)
def test_content_that_no_model_could_read_is_refused(world: World, content: Any, path: str) -> None:
    assert refusal(world, world.session(), {"type": "user.message", "content": content}).startswith(path)


def test_images_and_documents_are_kept_as_they_are(world: World) -> None:
    content = [
        {"type": "text", "text": "look"},
        {"type": "image", "source": PNG},
        {"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}},
        {"type": "document", "source": PDF, "title": "t", "context": "c"},
        {
            "type": "document",
            "source": {"type": "text", "media_type": "text/plain", "data": "words"},
            "title": None,
            "context": None,
        },
    ]
    session = world.session()
    assert send(world, session, {"type": "user.message", "content": content})[0]["content"] == content


def test_events_of_features_that_are_not_built_are_refused(world: World) -> None:
    session = world.session("hi")
    outcome = {"type": "user.define_outcome", "description": "d", "rubric": {"type": "text", "content": "c"}}
    result = {"type": "user.tool_result", "tool_use_id": "sevt_1"}
    assert "not support" in refusal(world, session, outcome)
    assert "self_hosted" in refusal(world, session, result)


def test_confirmations_answer_what_asked_and_set_the_session_going(world: World) -> None:
    session = world.session("hi")
    first, second = use_tool(world, session, asking(), asking("write"))
    assert history(world, session)[-1]["stop_reason"] == {"type": "requires_action", "event_ids": [first, second]}
    assert "waits for answers" in refusal(world, session, message("hello?"))
    world.server.engine.woken.clear()
    allow = {"type": "user.tool_confirmation", "tool_use_id": first, "result": "allow", "session_thread_id": "sthr_x"}
    echo = send(world, session, allow)[0]
    assert echo["processed_at"] is not None
    assert "session_thread_id" not in echo
    assert history(world, session)[-1]["stop_reason"]["event_ids"] == [second]
    assert world.server.engine.woken == []
    send(
        world,
        session,
        {"type": "user.tool_confirmation", "tool_use_id": second, "result": "deny", "deny_message": "no"},
    )
    assert world.client.beta.sessions.retrieve(session).status == "running"
    assert world.server.engine.woken == [session]


def test_confirmations_that_fit_nothing_are_refused(world: World) -> None:
    session = world.session("hi")
    [call] = use_tool(world, session, asking())
    confirm = {"type": "user.tool_confirmation", "tool_use_id": call, "result": "allow"}
    for wrong in (
        confirm | {"deny_message": "why?"},
        confirm | {"result": "perhaps"},
        confirm | {"tool_use_id": "sevt_nothing"},
        confirm | {"result": "deny", "deny_message": "x" * 10_001},
        {"type": "user.custom_tool_result", "custom_tool_use_id": call},
    ):
        assert refusal(world, session, wrong).startswith("events.0")
    assert refusal(world, session, confirm, confirm).startswith("events.1")


def test_a_message_may_stand_behind_the_last_answer(world: World) -> None:
    session = world.session("hi")
    first, second = use_tool(world, session, asking(), custom())
    confirm = {"type": "user.tool_confirmation", "tool_use_id": first, "result": "allow"}
    result = {"type": "user.custom_tool_result", "custom_tool_use_id": second}
    told = refusal(world, session, confirm, message("and?"))
    assert told.startswith(f"events.1: the session waits for answers to {second};")
    assert refusal(world, session, confirm, message("and?"), result).startswith("events.1: ")
    send(world, session, confirm, result, message("and?"))
    assert world.client.beta.sessions.retrieve(session).status == "running"
    assert history(world, session)[-1]["processed_at"] is None


def test_custom_tool_results_are_processed_on_receipt(world: World) -> None:
    session = world.session("hi")
    [call] = use_tool(world, session, custom())
    result = {
        "type": "user.custom_tool_result",
        "custom_tool_use_id": call,
        "content": [{"type": "text", "text": ""}, {"type": "image", "source": PNG}],
        "is_error": True,
        "session_thread_id": None,
    }
    echo = send(world, session, result)[0]
    assert (echo["is_error"], echo["content"]) == (True, result["content"])
    assert echo["processed_at"] is not None
    assert world.client.beta.sessions.retrieve(session).status == "running"


def test_a_custom_tool_result_needs_no_content(world: World) -> None:
    session = world.session("hi")
    [call] = use_tool(world, session, custom())
    echo = send(world, session, {"type": "user.custom_tool_result", "custom_tool_use_id": call, "is_error": None})[0]
    assert (echo["content"], echo["is_error"]) == ([], False)


def test_an_interrupt_reaches_the_engine_at_once(world: World) -> None:
    session = world.session("hi")
    world.server.engine.woken.clear()
    echo = send(world, session, {"type": "user.interrupt"})[0]
    assert echo["processed_at"] is None
    assert world.server.engine.interrupted == [session]
    assert world.client.beta.sessions.retrieve(session).status == "running"
    world.server.proceed(session)
    assert history(world, session, types="user.interrupt")[0]["processed_at"] is not None


def test_an_interrupt_of_a_waiting_session_ends_the_wait(world: World) -> None:
    session = world.session("hi")
    [call] = use_tool(world, session, asking())
    send(world, session, {"type": "user.interrupt"})
    end = history(world, session)
    assert end[-1]["stop_reason"] == {"type": "end_turn"}
    assert next(event for event in end if event["type"] == "agent.tool_result")["tool_use_id"] == call
    assert world.server.engine.interrupted == []


def test_an_interrupt_of_an_unknown_thread_is_refused(world: World) -> None:
    session = world.session()
    interrupt = {"type": "user.interrupt", "session_thread_id": "sthr_other"}
    assert refusal(world, session, interrupt).startswith("events.0.session_thread_id: ")


def test_a_system_message_stands_last_behind_a_message(world: World) -> None:
    session = world.session()
    system = {"type": "system.message", "content": [{"type": "text", "text": "The user left."}]}
    assert refusal(world, session, system).startswith("events.0: ")
    assert refusal(world, session, message("a"), system, message("b")).startswith("events.1: ")
    assert refusal(
        world, session, message("a"), {"type": "system.message", "content": [{"type": "image", "source": PNG}]}
    )
    assert [event["type"] for event in send(world, session, message("a"), system)] == ["user.message", "system.message"]


def test_a_system_message_needs_a_model_that_takes_it(server: Server) -> None:
    world = World(server, model="claude-sonnet-4-5")
    system: Any = {"type": "system.message", "content": [{"type": "text", "text": "s"}]}
    with pytest.raises(anthropic.BadRequestError) as caught:
        world.client.beta.sessions.events.send(world.session(), events=[message("a"), system])
    assert caught.value.error_code == "model_does_not_support_mid_conversation_system"


def test_too_many_waiting_messages_are_refused(world: World) -> None:
    session = world.session()
    send(world, session, *[message("x")] * 1_000)
    assert "already waiting" in refusal(world, session, message("one more"))


def test_histories_can_be_read_both_ways_and_in_pages(world: World) -> None:
    session = world.session(*[f"message {index}" for index in range(9)])
    everything = [event["id"] for event in history(world, session)]
    assert len(everything) == 11
    events = world.client.beta.sessions.events
    assert [event.id for event in events.list(session, limit=4)] == everything
    assert [event.id for event in events.list(session, order="desc", limit=4)] == everything[::-1]
    assert [event.id for event in events.list(session, limit=3, types=["user.message"])] == everything[2:]


def test_a_page_may_end_between_processed_and_waiting_events(world: World) -> None:
    session = world.session("first")
    world.server.proceed(session)
    send(world, session, message("waits"), message("waits too"))
    everything = [event["id"] for event in history(world, session)]
    for limit in range(1, len(everything) + 1):
        for order, expected in (("asc", everything), ("desc", everything[::-1])):
            found = [event.id for event in world.client.beta.sessions.events.list(session, limit=limit, order=order)]  # pyright: ignore[reportArgumentType]  # a str of two values
            assert found == expected


def test_histories_filter_by_time_of_processing(world: World) -> None:
    session = world.session("first")
    moment = history(world, session)[0]["processed_at"]
    world.server.clock.advance(5)
    world.server.proceed(session)
    early = types(world, session, **{"created_at[lte]": moment})
    assert early == ["session.status_running", "session.thread_status_running"]
    assert types(world, session, **{"created_at[gt]": moment}) == ["user.message", "span.model_request_start"]
    assert types(world, session, **{"created_at[lt]": moment}) == []


def test_a_cursor_holds_for_its_session_order_and_filters_only(world: World) -> None:
    session, other = world.session("a", "b"), world.session("c", "d")
    page = world.client.beta.sessions.events.list(session, limit=1).next_page
    for place, query in ((other, {}), (session, {"order": "desc"}), (session, {"types[]": "user.message"})):
        response = world.server.http.get(f"/v1/sessions/{place}/events", params={**query, "page": page})
        assert response.status_code == 400


@pytest.mark.parametrize("query", ["types[]=user.shout", "types=session.deleted", "limit=1001", "limit=0", "order=up"])
def test_bad_filters_are_refused(world: World, query: str) -> None:
    assert world.server.http.get(f"/v1/sessions/{world.session()}/events?{query}").status_code == 400


def test_every_type_of_the_sdk_can_be_asked_for(world: World) -> None:
    assert set(get_args(EventType)) == set(get_args(BetaManagedAgentsSessionEventType))
    session = world.session("hi")
    assert len(history(world, session, types=list(get_args(EventType)))) == 3
