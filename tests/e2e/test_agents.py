"""Agents on a real server: versions, updates, lists, and what a definition may hold."""

from __future__ import annotations

import anthropic
import pytest
from anthropic import Anthropic

from tests.e2e.sessions import TOOLSET, Json, bash, custom_tool, new_agent, new_session, script, texts, turn

BETA: Json = {"headers": {"anthropic-beta": "managed-agents-2026-04-01"}}
SEARCH = {"type": "url", "name": "search", "url": "https://mcp.example.com/mcp"}


@pytest.mark.requirement("F001")
def test_a_new_agent_shows_its_defaults(client: Anthropic) -> None:
    agent = client.beta.agents.create(name="n", model="m")
    assert (agent.version, agent.execution_identity.type, agent.model.id) == (1, "service_account", "m")
    assert agent.model.effort is not None and agent.model.effort.type == "high"
    assert (agent.system, agent.tools, agent.metadata, agent.archived_at) == (None, [], {}, None)


@pytest.mark.requirement("F002")
def test_a_model_is_a_name_or_an_object(client: Anthropic) -> None:
    model = client.beta.agents.create(name="n", model={"id": "m", "effort": "low", "speed": "fast"}).model
    assert model.effort is not None
    assert (model.id, model.effort.type, model.speed) == ("m", "low", "fast")
    located = client.beta.agents.create(name="n", model={"id": "m", "inference_geo": "eu"}).model
    assert located.inference_geo == "eu"


@pytest.mark.requirement("F003", "F004", "F007", "F010")
def test_updates_make_versions_and_every_version_can_be_read(client: Anthropic) -> None:
    agents = client.beta.agents
    agent = agents.create(name="one", model="m")
    assert agents.update(agent.id, name="two").version == 2
    assert agents.update(agent.id, system="three", version=2).version == 3
    assert agents.retrieve(agent.id).version == 3
    assert agents.retrieve(agent.id, version=1).name == "one"
    assert [(each.version, each.name) for each in agents.versions.list(agent.id, limit=1)] == [
        (3, "two"),
        (2, "two"),
        (1, "one"),
    ]
    with pytest.raises(anthropic.NotFoundError):
        agents.retrieve(agent.id, version=4)


@pytest.mark.requirement("F005")
def test_an_update_that_changes_nothing_makes_no_version(client: Anthropic) -> None:
    agent = client.beta.agents.create(name="n", model="m", tools=[TOOLSET], metadata={"k": "v"})
    same = client.beta.agents.update(agent.id, name="n", tools=[TOOLSET], metadata={"k": "v"}, version=1)
    assert same.to_dict() == agent.to_dict()


@pytest.mark.requirement("F006", "F157")
def test_a_stale_update_is_a_conflict_that_the_sdk_does_not_repeat(client: Anthropic) -> None:
    agent = client.beta.agents.create(name="n", model="m")
    client.beta.agents.update(agent.id, name="x")
    eager = client.with_options(max_retries=5)
    for name in ("y", "x"):
        with pytest.raises(anthropic.ConflictError) as caught:
            eager.beta.agents.update(agent.id, version=1, name=name)
        assert caught.value.response.request.headers["x-stainless-retry-count"] == "0"
        assert caught.value.response.headers["x-should-retry"] == "false"
    assert client.beta.agents.retrieve(agent.id).version == 2


@pytest.mark.requirement("F008")
def test_null_clears_omission_keeps_and_metadata_merges(client: Anthropic) -> None:
    agent = client.beta.agents.create(
        name="n", model="m", system="s", description="d", tools=[TOOLSET], metadata={"a": "1", "b": "2"}
    )
    changed = client.beta.agents.update(agent.id, system=None, metadata={"a": None, "c": "3"})
    assert (changed.system, changed.description, changed.metadata) == (None, "d", {"b": "2", "c": "3"})
    assert len(changed.tools) == 1
    cleared = client.beta.agents.update(agent.id, tools=None, description="", metadata=None)
    assert (cleared.tools, cleared.description) == ([], None)


@pytest.mark.requirement("F009")
def test_lists_page_by_themselves_and_filter(client: Anthropic) -> None:
    made = [client.beta.agents.create(name=f"listed {number}", model="m") for number in range(5)]
    ids = [agent.id for agent in made]
    listed = [agent.id for agent in client.beta.agents.list(limit=2, created_at_gte=made[0].created_at)]
    assert [each for each in listed if each in ids] == ids[::-1]
    before = client.beta.agents.list(created_at_gte=made[0].created_at, created_at_lte=made[1].created_at)
    assert ids[0] in {agent.id for agent in before}
    client.beta.agents.archive(ids[0])
    assert ids[0] not in [agent.id for agent in client.beta.agents.list(limit=100)]
    assert ids[0] in [agent.id for agent in client.beta.agents.list(limit=100, include_archived=True)]


@pytest.mark.requirement("F011")
def test_archiving_an_agent_is_for_good_and_leaves_its_sessions_alone(client: Anthropic) -> None:
    agent_id = new_agent(client)
    session = new_session(client, agent=agent_id)
    archived = client.beta.agents.archive(agent_id)
    assert archived.archived_at is not None
    assert client.beta.agents.archive(agent_id).archived_at == archived.archived_at
    with pytest.raises(anthropic.BadRequestError, match="archived"):
        client.beta.agents.update(agent_id, name="x")
    with pytest.raises(anthropic.BadRequestError, match="archived"):
        new_session(client, agent=agent_id)
    assert client.beta.sessions.retrieve(session.id).agent.id == agent_id


REFUSED: list[tuple[Json, str]] = [
    ({"name": ""}, "name"),
    ({"name": "x" * 257}, "name"),
    ({"description": "x" * 2_049}, "description"),
    ({"system": "x" * 100_001}, "system"),
    ({"model": ""}, "model"),
    ({"metadata": {str(number): "v" for number in range(17)}}, "metadata"),
    ({"metadata": {"k" * 65: "v"}}, "metadata"),
    ({"metadata": {"k": "v" * 513}}, "metadata"),
    ({"mcp_servers": [SEARCH]}, "mcp_servers"),
    ({"tools": [{"type": "mcp_toolset", "mcp_server_name": "search"}]}, "tools"),
    ({"tools": [custom_tool(f"t{number}") for number in range(129)]}, "tools"),
    ({"tools": [TOOLSET, TOOLSET]}, "tools"),
    ({"tools": [custom_tool("bash")]}, "tools.0.name"),
    ({"tools": [custom_tool("mcp__x")]}, "tools.0.name"),
    ({"tools": [custom_tool("a b")]}, "tools.0.name"),
    ({"tools": [custom_tool(), custom_tool()]}, "tools"),
    ({"tools": [{**custom_tool(), "description": ""}]}, "tools.0.description"),
    ({"tools": [{**custom_tool(), "input_schema": {"type": "array"}}]}, "tools.0.input_schema"),
    ({"tools": [{**custom_tool(), "input_schema": {"type": "object", "anyOf": []}}]}, "tools.0.input_schema"),
    (
        {"tools": [{**custom_tool(), "input_schema": {"type": "object", "properties": {"a": {"$ref": "#"}}}}]},
        "tools.0.input_schema",
    ),
    ({"nickname": "x"}, "nickname"),
]


@pytest.mark.requirement("F012", "F015")
@pytest.mark.parametrize(("fields", "path"), REFUSED)
def test_a_definition_that_breaks_a_rule_is_refused_with_its_path(client: Anthropic, fields: Json, path: str) -> None:
    with pytest.raises(anthropic.BadRequestError) as caught:
        client.post("/v1/agents", body={"name": "n", "model": "m", **fields}, cast_to=object, options=BETA)
    assert path in caught.value.message


@pytest.mark.requirement("F013")
def test_an_aws_role_is_kept(client: Anthropic) -> None:
    identity: Json = {"type": "aws_role", "role_arn": "arn:aws:iam::1:role/r"}
    agent = client.beta.agents.create(name="n", model="m", execution_identity=identity)
    assert client.beta.agents.retrieve(agent.id).execution_identity.to_dict() == identity


@pytest.mark.requirement("F014")
def test_a_toolset_shows_every_setting_written_out(client: Anthropic) -> None:
    toolset: Json = {**TOOLSET, "configs": [{"name": "bash", "enabled": False}]}
    (shown,) = client.beta.agents.create(name="n", model="m", tools=[toolset]).tools
    assert shown.to_dict() == {
        "type": "agent_toolset_20260401",
        "configs": [
            {"name": "bash", "type": "bash", "enabled": False, "permission_policy": {"type": "always_allow"}},
        ],
        "default_config": {"enabled": True, "permission_policy": {"type": "always_allow"}},
    }


@pytest.mark.requirement("F016")
def test_tools_of_an_mcp_server_ask_by_default(client: Anthropic) -> None:
    toolset: Json = {"type": "mcp_toolset", "mcp_server_name": "search"}
    server: Json = SEARCH
    agent = client.beta.agents.create(name="n", model="m", mcp_servers=[server], tools=[toolset])
    assert agent.tools[0].to_dict() == {
        **toolset,
        "configs": [],
        "default_config": {"enabled": True, "permission_policy": {"type": "always_ask"}},
    }


@pytest.mark.requirement("F002")
def test_the_model_is_asked_as_the_agent_says(client: Anthropic) -> None:
    session = new_session(client, agent=new_agent(client, model={"id": "m", "effort": "low", "speed": "fast"}))
    seen = turn(client, session.id, script(bash("true"), {"echo": "prompt"}))
    read = texts(next(event for event in seen if event.type == "agent.message"))
    assert '"model":"m"' in read and '"effort":"low"' in read and '"speed":"fast"' in read
