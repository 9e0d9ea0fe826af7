from __future__ import annotations

from typing import Any

import anthropic
import pytest
from anthropic.types.beta import BetaManagedAgentsDeletedSession, BetaManagedAgentsSession

from corral.domain import turn
from tests.api.live_server import Server, World, message
from tests.api.sdk_types import assert_is

TOOLSET: Any = {"type": "agent_toolset_20260401"}


AMOUNT = "budget.max_list_cost.amount"


def budget(amount: str, currency: str = "USD") -> Any:
    return {"type": "limit", "max_list_cost": {"amount": amount, "currency": currency}}


def create(world: World, **fields: Any) -> Any:
    body: Any = {"agent": world.agent_id, "environment_id": world.environment_id, **fields}
    return world.client.beta.sessions.create(**body)


def refused(world: World, **fields: Any) -> anthropic.APIStatusError:
    """The error of a creation that must leave nothing behind."""
    with pytest.raises(anthropic.APIStatusError) as caught:
        create(world, **fields)
    assert world.client.beta.sessions.list().data == []
    assert world.server.engine.woken == []
    return caught.value


def test_a_new_session_is_idle_and_shows_every_field(world: World) -> None:
    response = world.server.http.post(
        "/v1/sessions",
        json={"agent": world.agent_id, "environment_id": world.environment_id, "title": "t", "metadata": {"k": "v"}},
    )
    session = response.json()
    assert_is(session, BetaManagedAgentsSession)
    assert (session["status"], session["title"], session["metadata"]) == ("idle", "t", {"k": "v"})
    assert session["usage"]["list_cost"] == {"amount": "0", "currency": "USD"}
    assert (session["resources"], session["vault_ids"], session["outcome_evaluations"]) == ([], [], [])
    assert session["budget"] is session["deployment_id"] is session["archived_at"] is None
    assert world.server.engine.woken == []
    retrieved = world.server.http.get(f"/v1/sessions/{session['id']}").json()
    assert_is(retrieved, BetaManagedAgentsSession)


def test_the_agent_is_taken_as_it_is_now_or_at_a_version(world: World) -> None:
    world.client.beta.agents.update(world.agent_id, name="second")
    latest = create(world)
    pinned = create(world, agent={"type": "agent", "id": world.agent_id, "version": 1})
    world.client.beta.agents.update(world.agent_id, name="third")
    names = [world.client.beta.sessions.retrieve(each.id).agent.name for each in (latest, pinned)]
    assert names == ["second", "worker"]
    assert (latest.agent.version, pinned.agent.version) == (2, 1)


def test_overrides_inherit_clear_and_replace(world: World) -> None:
    world.client.beta.agents.update(world.agent_id, system="base", tools=[TOOLSET])
    reference = {"type": "agent_with_overrides", "id": world.agent_id}
    inherited = create(world, agent=reference).agent
    assert (inherited.system, len(inherited.tools)) == ("base", 1)
    changed = create(world, agent={**reference, "system": None, "tools": [], "model": "claude-opus-5"}).agent
    assert (changed.system, changed.tools, changed.model.id) == (None, [], "claude-opus-5")
    assert changed.version == 2
    assert world.client.beta.agents.retrieve(world.agent_id).system == "base"


def test_overrides_need_a_model(world: World) -> None:
    error = refused(world, agent={"type": "agent_with_overrides", "id": world.agent_id, "model": None})
    assert error.error_code == "agent_model_required"


def test_initial_events_set_the_session_running_in_the_same_answer(world: World) -> None:
    session = create(world, initial_events=[message("one"), message("two")])
    assert session.status == "running"
    assert world.server.engine.woken == [session.id]
    types = [event.type for event in world.client.beta.sessions.events.list(session.id)]
    assert types == ["session.status_running", "session.thread_status_running", "user.message", "user.message"]


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"initial_events": [message("ok"), {"type": "user.interrupt"}]}, "initial_events.1.type"),
        ({"initial_events": [message("ok"), message(" ")]}, "initial_events.1.content.0.text"),
        ({"initial_events": [message("x")] * 51}, "initial_events"),
        (
            {
                "initial_events": [
                    {"type": "user.define_outcome", "description": "d", "rubric": {"type": "text", "content": "c"}}
                ]
            },
            "initial_events.0",
        ),
        ({"title": ""}, "title"),
        ({"title": "t" * 501}, "title"),
        ({"metadata": {"k" * 65: "v"}}, "metadata"),
        ({"environment_id": "e" * 129}, "environment_id"),
        ({"resources": [{"type": "memory_store", "memory_store_id": "memstore_1"}]}, "resources.0"),
        ({"vault_ids": ["vlt_1"] * 1_000}, "vault_ids"),
        (
            {"budget": budget("0")},
            AMOUNT,
        ),
        (
            {"budget": budget("025")},
            AMOUNT,
        ),
        (
            {"budget": budget("1.5")},
            AMOUNT,
        ),
        (
            {"budget": budget("9" * 9_999)},
            "budget.max_list_cost",
        ),
        (
            {"budget": budget("5", "EUR")},
            "budget.max_list_cost.currency",
        ),
        ({"agent": {"type": "agent_with_overrides", "id": "AGENT", "tools": [{"type": "x"}]}}, "agent.tools.0.type"),
        ({"agent": {"type": "agent_with_overrides", "id": "AGENT", "system": "x" * 100_001}}, "agent.system"),
        ({"agent": {"type": "team", "id": "AGENT"}}, "agent.type"),
        ({"agent": {"type": "agent", "id": "AGENT", "version": 0}}, "agent.version"),
        ({"agent": 3}, "agent"),
    ],
)
def test_a_refused_session_leaves_nothing_behind(world: World, fields: dict[str, Any], path: str) -> None:
    if isinstance(fields.get("agent"), dict):
        fields["agent"]["id"] = world.agent_id
    error = refused(world, **fields)
    assert error.status_code == 400
    body: Any = error.body
    assert body["error"]["message"].startswith(path)


def test_unknown_and_archived_agents_are_refused(world: World) -> None:
    assert refused(world, agent="agent_none").status_code == 404
    assert refused(world, agent={"type": "agent", "id": world.agent_id, "version": 9}).status_code == 404
    missing = refused(world, environment_id="env_none")
    assert missing.error_code == "environment_not_found"
    assert "environment_id: " in missing.message
    world.client.beta.agents.archive(world.agent_id)
    assert refused(world).status_code == 400


def test_an_agent_of_another_workspace_does_not_exist(world: World) -> None:
    other = world.server.sdk("key-two")
    with pytest.raises(anthropic.NotFoundError):
        other.beta.sessions.create(agent=world.agent_id, environment_id=world.environment_id)


@pytest.mark.requirement("F032")
def test_a_session_is_made_whether_its_mcp_servers_are_there_or_not(server: Server) -> None:
    world = World(
        server,
        mcp_servers=[{"type": "url", "name": "docs", "url": "https://mcp.example.com"}],
        tools=[{"type": "mcp_toolset", "mcp_server_name": "docs"}],
    )
    agent = world.client.beta.sessions.retrieve(world.session()).agent
    assert [each.name for each in agent.mcp_servers] == ["docs"]


def test_a_model_without_a_price_cannot_have_a_budget(server: Server) -> None:
    world = World(server, model="house-model")
    error = refused(world, budget=budget("100"))
    assert error.error_code == "model_not_budgetable"


def test_lists_filter_and_hide_archived_sessions(world: World) -> None:
    other = World(world.server)
    idle, running = world.session(), world.session("hi")
    elsewhere = other.session()
    archived = world.session()
    sessions = world.client.beta.sessions
    sessions.archive(archived)

    def ids(**query: Any) -> list[str]:
        return [session.id for session in sessions.list(**query)]

    assert ids() == [elsewhere, running, idle]
    assert ids(order="asc") == [idle, running, elsewhere]
    assert ids(include_archived=True) == [archived, elsewhere, running, idle]
    assert ids(statuses=["running"]) == [running]
    assert ids(statuses=["idle", "running"], agent_id=world.agent_id) == [running, idle]
    assert ids(statuses=["terminated"], include_archived=True) == [archived]
    assert ids(agent_id=other.agent_id, agent_version=1) == [elsewhere]
    assert ids(agent_id=other.agent_id, agent_version=2) == []
    assert ids(deployment_id="depl_1") == ids(memory_store_id="memstore_1") == []
    moment = sessions.retrieve(running).created_at
    assert ids(created_at_gt=moment) == [elsewhere]
    assert ids(created_at_gte=moment) == [elsewhere, running]
    assert ids(created_at_lt=moment) == [idle]
    assert ids(created_at_lte=moment) == [running, idle]
    assert ids(created_at_gt=moment, created_at_gte=moment) == [elsewhere]
    assert [each.id for each in world.server.sdk("key-two").beta.sessions.list()] == []


@pytest.mark.parametrize("style", ["statuses[]=idle&statuses[]=running", "statuses=idle&statuses=running"])
def test_lists_in_queries_are_understood_in_both_styles(world: World, style: str) -> None:
    world.session()
    world.session("hi")
    assert len(world.server.http.get(f"/v1/sessions?{style}").json()["data"]) == 2


def test_lists_page_forwards_and_back(world: World) -> None:
    made = [world.session() for _ in range(7)][::-1]
    sessions = world.client.beta.sessions
    assert [session.id for session in sessions.list(limit=2)] == made
    pages = [world.server.http.get("/v1/sessions", params={"limit": 3}).json()]
    while pages[-1]["next_page"]:
        pages.append(world.server.http.get("/v1/sessions", params={"limit": 3, "page": pages[-1]["next_page"]}).json())
    assert [len(page["data"]) for page in pages] == [3, 3, 1]
    assert pages[0]["prev_page"] is None
    back = world.server.http.get("/v1/sessions", params={"limit": 3, "page": pages[2]["prev_page"]}).json()
    assert back["data"][0]["id"] == pages[1]["data"][0]["id"]
    first = world.server.http.get("/v1/sessions", params={"limit": 3, "page": back["prev_page"]}).json()
    assert [each["id"] for each in first["data"]] == made[:3]
    assert first["prev_page"] is None
    again = world.server.http.get("/v1/sessions", params={"limit": 3, "page": first["next_page"]}).json()
    assert [each["id"] for each in again["data"]] == made[3:6]


def test_a_cursor_holds_for_its_order_and_filters_only(world: World) -> None:
    for _ in range(3):
        world.session()
    page = world.client.beta.sessions.list(limit=1).next_page
    for query in ({"order": "asc"}, {"statuses": "idle"}, {"agent_id": world.agent_id}):
        response = world.server.http.get("/v1/sessions", params={**query, "page": page})
        assert response.status_code == 400
    assert world.server.http.get("/v1/sessions", params={"order": "desc", "page": page}).status_code == 200
    assert world.server.http.get("/v1/sessions?agent_version=1").status_code == 400


def test_a_running_session_can_be_neither_archived_nor_deleted(world: World) -> None:
    session = world.session("hi")
    for attempt in (world.client.beta.sessions.archive, world.client.beta.sessions.delete):
        with pytest.raises(anthropic.BadRequestError, match="running"):
            attempt(session)
    assert world.client.beta.sessions.retrieve(session).status == "running"


def test_archiving_ends_a_session_and_keeps_its_history(world: World) -> None:
    session = world.session()
    archived = world.client.beta.sessions.archive(session)
    assert archived.status == "terminated"
    assert archived.archived_at is not None
    assert world.client.beta.sessions.archive(session).archived_at == archived.archived_at
    types = [event.type for event in world.client.beta.sessions.events.list(session)]
    assert types == ["session.thread_status_terminated", "session.status_terminated"]
    with pytest.raises(anthropic.BadRequestError, match="terminated"):
        world.client.beta.sessions.events.send(session, events=[message("hello?")])
    with pytest.raises(anthropic.BadRequestError, match="terminated"):
        world.client.beta.sessions.update(session, title="x")


def test_a_terminated_session_can_be_archived_and_deleted(world: World) -> None:
    session = world.session()
    world.server.commit(session, lambda session, state, now: turn.terminate(session, state))
    assert world.client.beta.sessions.archive(session).archived_at is not None
    response = world.server.http.delete(f"/v1/sessions/{session}")
    assert response.json() == {"id": session, "type": "session_deleted"}
    assert_is(response.json(), BetaManagedAgentsDeletedSession)


def test_a_deleted_session_is_gone(world: World) -> None:
    session = world.session()
    sessions = world.client.beta.sessions
    sessions.delete(session)
    for attempt in (sessions.retrieve, sessions.delete, sessions.archive, sessions.update, sessions.events.list):
        with pytest.raises(anthropic.NotFoundError):
            attempt(session)


def test_another_workspace_sees_nothing(world: World) -> None:
    session = world.session()
    sessions = world.server.sdk("key-two").beta.sessions
    for attempt in (sessions.retrieve, sessions.delete, sessions.archive, sessions.update, sessions.events.list):
        with pytest.raises(anthropic.NotFoundError):
            attempt(session)
    with pytest.raises(anthropic.NotFoundError):
        sessions.events.send(session, events=[message("x")])
    with pytest.raises(anthropic.NotFoundError):
        sessions.events.stream(session)


def test_a_session_takes_an_environment_with_packages(world: World) -> None:
    config: Any = {"type": "cloud", "packages": {"pip": ["requests"]}}
    environment = world.client.beta.environments.create(name="with packages", config=config)
    session = world.client.beta.sessions.create(agent=world.agent_id, environment_id=environment.id)
    assert session.environment_id == environment.id
