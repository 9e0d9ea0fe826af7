from __future__ import annotations

from typing import Any

import anthropic
import pytest
from anthropic.types.beta import BetaManagedAgentsSession
from anthropic.types.beta.sessions import BetaManagedAgentsSessionEvent

from corral.domain import event as ev
from corral.domain import turn
from corral.domain.ids import new_id
from corral.domain.lifecycle import Append
from corral.domain.usage import RequestTokens
from tests.api.live_server import Server, World, message
from tests.api.sdk_types import assert_is

TOOLSET: Any = {"type": "agent_toolset_20260401"}


def budget(amount: str) -> Any:
    return {"type": "limit", "max_list_cost": {"amount": amount, "currency": "USD"}}


def update(world: World, session: str, **fields: Any) -> Any:
    response = world.server.http.post(f"/v1/sessions/{session}", json=fields)
    assert response.status_code == 200, response.text
    assert_is(response.json(), BetaManagedAgentsSession)
    return response.json()


def refused(world: World, session: str, **fields: Any) -> anthropic.BadRequestError:
    before = world.client.beta.sessions.retrieve(session)
    with pytest.raises(anthropic.BadRequestError) as caught:
        world.client.beta.sessions.update(session, **fields)
    after = world.client.beta.sessions.retrieve(session)
    assert (after.title, after.metadata, after.agent, after.budget) == (
        before.title,
        before.metadata,
        before.agent,
        before.budget,
    )
    return caught.value


def events(world: World, session: str) -> list[Any]:
    data = world.server.http.get(f"/v1/sessions/{session}/events").json()["data"]
    for event in data:
        assert_is(event, BetaManagedAgentsSessionEvent)
    return data


def test_an_update_says_only_what_it_changed(world: World) -> None:
    session = world.session(title="old", metadata={"a": "1", "b": "2"})
    updated = update(world, session, title="new", metadata={"a": None, "c": "3"})
    assert (updated["title"], updated["metadata"]) == ("new", {"b": "2", "c": "3"})
    [event] = events(world, session)
    assert event["type"] == "session.updated"
    assert (event["title"], event["metadata"]) == ("new", {"b": "2", "c": "3"})
    assert not {"agent", "budget"} & event.keys()
    update(world, session, title=None)
    assert events(world, session)[1].keys() == {"id", "type", "processed_at", "title"}


def test_an_update_that_changes_nothing_says_nothing(world: World) -> None:
    session = world.session(title="t", metadata={"a": "1"})
    before = world.client.beta.sessions.retrieve(session).updated_at
    update(world, session)
    update(world, session, title="t", metadata={"a": "1", "b": None}, budget=None)
    assert events(world, session) == []
    assert world.client.beta.sessions.retrieve(session).updated_at == before


def test_metadata_that_became_empty_is_left_out_of_the_event(world: World) -> None:
    session = world.session(metadata={"a": "1"})
    assert update(world, session, metadata=None)["metadata"] == {}
    assert events(world, session)[0].keys() == {"id", "type", "processed_at"}


def test_tools_are_replaced_whole_while_the_session_is_idle(world: World) -> None:
    session = world.session()
    updated = update(world, session, agent={"tools": [TOOLSET]})
    assert len(updated["agent"]["tools"]) == 1
    [event] = events(world, session)
    assert event["agent"] == updated["agent"]
    assert update(world, session, agent={"tools": []})["agent"]["tools"] == []
    assert world.client.beta.agents.retrieve(world.agent_id).version == 1


def test_tools_of_a_running_session_stay(world: World) -> None:
    session = world.session("hi")
    assert "idle" in refused(world, session, agent={"tools": [TOOLSET]}).message
    assert update(world, session, title="still possible")["status"] == "running"


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"vault_ids": ["vlt_1"]}, "vault_ids: "),
        ({"title": ""}, "title: "),
        ({"title": "x" * 501}, "title: "),
        ({"metadata": {"k": "v" * 513}}, "metadata.k: "),
        ({"status": "idle"}, "status: "),
        ({"agent": {"system": "x"}}, "agent.system: "),
        ({"agent": {"tools": None}}, "agent.tools: "),
        ({"agent": {"tools": [{"type": "mcp_toolset", "mcp_server_name": "x"}]}}, "agent.tools: "),
    ],
)
def test_a_refused_update_changes_nothing(world: World, fields: dict[str, Any], path: str) -> None:
    session = world.session(title="t", metadata={"a": "1"})
    response = world.server.http.post(f"/v1/sessions/{session}", json={"metadata": {"b": "2"}} | fields)
    assert response.status_code == 400
    assert response.json()["error"]["message"].startswith(path)
    assert world.client.beta.sessions.retrieve(session).metadata == {"a": "1"}
    assert events(world, session) == []


def spend(world: World, session: str, cents: int) -> None:
    """A model request of the session that cost this much."""
    request_id = new_id("sevt")
    tokens = RequestTokens(cost_microdollars=cents * 10_000)
    world.server.commit(session, lambda session, state, now: [Append(ev.SpanModelRequestStart(id=request_id))])
    end = ev.SpanModelRequestEnd(id=new_id("sevt"), model_request_start_id=request_id)
    world.server.commit(session, lambda session, state, now: [Append(end, tokens=tokens)])


def at_its_budget(world: World, cents: int) -> str:
    """A session that rests because its budget of so many cents is spent, with a message still to answer."""
    session = world.session("hi", budget=budget(str(cents)))
    spend(world, session, cents)
    world.server.proceed(session)
    return session


def test_a_session_at_its_budget_goes_on_by_itself_when_it_is_raised(world: World) -> None:
    session = at_its_budget(world, 100)
    resting = world.client.beta.sessions.retrieve(session)
    assert resting.status == "idle"
    assert resting.usage.list_cost is not None
    assert int(resting.usage.list_cost.amount) >= 100
    world.server.engine.woken.clear()
    updated = update(world, session, budget=budget("500"))
    assert (updated["status"], updated["budget"]) == ("running", budget("500"))
    assert world.server.engine.woken == [session]
    types = [event["type"] for event in events(world, session)]
    assert types[-4:-1] == ["session.updated", "session.status_running", "session.thread_status_running"]


def test_removing_the_budget_sets_the_session_going_for_good(world: World) -> None:
    session = at_its_budget(world, 100)
    assert update(world, session, budget=None)["status"] == "running"
    assert events(world, session)[-4]["budget"] is None
    assert refused(world, session, budget=budget("900")).error_code == "budget_create_only"


def test_a_budget_must_be_more_than_what_was_spent(world: World) -> None:
    session = at_its_budget(world, 100)
    for amount in ("50", "100"):
        assert refused(world, session, budget=budget(amount)).error_code == "budget_not_raised"
    assert world.client.beta.sessions.retrieve(session).status == "idle"


def test_a_budget_can_be_lowered_above_what_was_spent(world: World) -> None:
    session = world.session(budget=budget("1000"))
    assert update(world, session, budget=budget("20"))["budget"] == budget("20")
    [event] = events(world, session)
    assert event["budget"] == budget("20")


def test_a_budget_cannot_be_added_later(world: World) -> None:
    assert refused(world, world.session(), budget=budget("100")).error_code == "budget_create_only"


def test_at_its_budget_a_session_takes_no_messages(world: World) -> None:
    session = at_its_budget(world, 100)
    with pytest.raises(anthropic.BadRequestError, match="budget"):
        world.client.beta.sessions.events.send(session, events=[message("more")])
    before = events(world, session)
    sent = world.server.http.post(
        f"/v1/sessions/{session}/events", json={"events": [{"type": "user.interrupt"}]}
    ).json()
    assert sent["data"][0]["type"] == "user.interrupt"
    assert sent["data"][0]["processed_at"] is not None
    assert events(world, session) == before


def test_an_archived_session_cannot_be_changed(server: Server) -> None:
    world = World(server)
    session = world.session()
    world.server.commit(session, lambda session, state, now: turn.terminate(session, state))
    assert "terminated" in refused(world, session, title="x").message
