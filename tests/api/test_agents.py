from __future__ import annotations

from datetime import timedelta
from typing import Any

import anthropic
import pytest
from anthropic.types.beta import BetaManagedAgentsAgent

from tests.api.live_server import START, Server
from tests.api.sdk_types import assert_is

TOOLSET: Any = {"type": "agent_toolset_20260401"}
SEARCH = {"name": "web_search", "blocked_domains": ["x.org"]}
WRONG = {"name": "bash", "allowed_domains": ["x.org"]}


def create(server: Server, **fields: Any) -> Any:
    body: Any = {"name": "helper", "model": "claude-opus-5-5", **fields}
    return server.client.beta.agents.create(**body)


def mcp(url: str, **toolset: Any) -> Any:
    """Fields of an agent with one MCP server."""
    tools = [{"type": "mcp_toolset", "mcp_server_name": "s", **toolset}]
    return {"mcp_servers": [{"type": "url", "name": "s", "url": url}], "tools": tools}


def test_a_new_agent_echoes_every_default(server: Server) -> None:
    response = server.http.post("/v1/agents", json={"name": "helper", "model": "claude-opus-5-5"})
    agent = response.json()
    assert_is(agent, BetaManagedAgentsAgent)
    assert agent["version"] == 1
    assert agent["model"] == {
        "id": "claude-opus-5-5",
        "effort": {"type": "high"},
        "inference_geo": None,
        "speed": "standard",
    }
    assert agent["execution_identity"] == {"type": "service_account"}
    assert (agent["tools"], agent["mcp_servers"], agent["skills"], agent["metadata"]) == ([], [], [], {})
    assert agent["system"] is agent["description"] is agent["archived_at"] is agent["multiagent"] is None


def test_tools_are_echoed_with_policies_written_out(server: Server) -> None:
    custom: Any = {"type": "custom", "name": "weather", "description": "Says it", "input_schema": {"type": "object"}}
    tools = [
        {
            **TOOLSET,
            "configs": [{"name": "bash", "enabled": False}, {"name": "web_search", "blocked_domains": ["x.org"]}],
        },
        custom,
    ]
    agent = server.http.post("/v1/agents", json={"name": "n", "model": "m", "tools": tools}).json()
    assert_is(agent, BetaManagedAgentsAgent)
    toolset = agent["tools"][0]
    assert toolset["default_config"] == {"enabled": True, "permission_policy": {"type": "always_allow"}}
    assert toolset["configs"][0] == {
        "name": "bash",
        "type": "bash",
        "enabled": False,
        "permission_policy": {"type": "always_allow"},
    }
    assert toolset["configs"][1]["blocked_domains"] == ["x.org"]
    assert agent["tools"][1] == custom


def test_mcp_toolsets_are_stored_and_ask_by_default(server: Server) -> None:
    agent = create(
        server,
        mcp_servers=[{"type": "url", "name": "docs", "url": "https://mcp.example.com"}],
        tools=[{"type": "mcp_toolset", "mcp_server_name": "docs"}],
    )
    assert agent.tools[0].default_config.permission_policy.type == "always_ask"


def test_an_update_makes_the_next_version_and_keeps_what_is_left_out(server: Server) -> None:
    agent = create(server, system="Be kind.", description="d", metadata={"a": "1", "b": "2"})
    updated = server.client.beta.agents.update(agent.id, name="other", metadata={"a": None, "c": "3"})
    assert (updated.version, updated.name, updated.system, updated.description) == (2, "other", "Be kind.", "d")
    assert updated.metadata == {"b": "2", "c": "3"}
    assert updated.created_at == agent.created_at
    assert updated.updated_at > agent.updated_at


def test_null_clears_what_can_be_cleared(server: Server) -> None:
    agent = create(server, system="s", description="d", tools=[TOOLSET])
    updated = server.client.beta.agents.update(agent.id, system=None, description="", tools=None)
    assert (updated.system, updated.description, updated.tools) == (None, None, [])


@pytest.mark.parametrize("field", ["name", "model"])
def test_name_and_model_cannot_be_cleared(server: Server, field: str) -> None:
    agent = create(server)
    response = server.http.post(f"/v1/agents/{agent.id}", json={field: None})
    assert response.status_code == 400
    assert response.json()["error"]["message"].startswith(f"{field}: ")


def test_an_update_that_changes_nothing_makes_no_version(server: Server) -> None:
    agent = create(server, metadata={"a": "1"})
    for _ in range(2):
        assert server.client.beta.agents.update(agent.id, name="helper", metadata={"a": "1"}).version == 1
    assert len(server.client.beta.agents.versions.list(agent.id).data) == 1


def test_a_stale_version_is_a_conflict_that_clients_do_not_repeat(server: Server) -> None:
    agent = create(server)
    server.client.beta.agents.update(agent.id, name="second", version=1)
    with pytest.raises(anthropic.ConflictError) as caught:
        server.client.beta.agents.update(agent.id, name="second", version=1)
    assert caught.value.type == "conflict_error"
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert server.client.beta.agents.update(agent.id, name="third").version == 3


def test_every_version_can_be_read_and_listed_newest_first(server: Server) -> None:
    agent = create(server, name="v1")
    for number in range(2, 6):
        server.client.beta.agents.update(agent.id, name=f"v{number}")
    assert server.client.beta.agents.retrieve(agent.id).name == "v5"
    assert server.client.beta.agents.retrieve(agent.id, version=2).name == "v2"
    listed = list(server.client.beta.agents.versions.list(agent.id, limit=2))
    assert [each.version for each in listed] == [5, 4, 3, 2, 1]
    with pytest.raises(anthropic.NotFoundError):
        server.client.beta.agents.retrieve(agent.id, version=6)
    with pytest.raises(anthropic.BadRequestError):
        server.client.beta.agents.retrieve(agent.id, version=0)


def test_an_archived_agent_is_hidden_and_cannot_be_changed(server: Server) -> None:
    agent = create(server)
    archived = server.client.beta.agents.archive(agent.id)
    assert archived.archived_at is not None
    assert archived.version == 1
    assert server.client.beta.agents.archive(agent.id).archived_at == archived.archived_at
    assert server.client.beta.agents.retrieve(agent.id, version=1).archived_at == archived.archived_at
    with pytest.raises(anthropic.BadRequestError, match="archived"):
        server.client.beta.agents.update(agent.id, name="x")
    assert server.client.beta.agents.list().data == []
    assert [each.id for each in server.client.beta.agents.list(include_archived=True)] == [agent.id]


def test_lists_page_through_everything_newest_first(server: Server) -> None:
    made = [create(server, name=f"a{index}").id for index in range(7)]
    first = server.client.beta.agents.list(limit=3)
    assert len(first.data) == 3
    assert first.next_page is not None
    assert [each.id for each in server.client.beta.agents.list(limit=3)] == made[::-1]


def test_lists_filter_by_creation_time_inclusively(server: Server) -> None:
    agents = [create(server, name=f"a{index}") for index in range(3)]
    after = server.client.beta.agents.list(created_at_gte=agents[1].created_at)
    before = server.client.beta.agents.list(created_at_lte=agents[1].created_at)
    assert [each.id for each in after] == [agents[2].id, agents[1].id]
    assert [each.id for each in before] == [agents[1].id, agents[0].id]
    assert server.client.beta.agents.list(created_at_gte=START + timedelta(days=1)).data == []


def test_a_cursor_of_another_list_or_filter_is_refused(server: Server) -> None:
    for index in range(3):
        create(server, name=f"a{index}")
    page = server.client.beta.agents.list(limit=1).next_page
    assert page is not None
    for query in ({"page": page, "include_archived": "true"}, {"page": "nonsense"}, {"page": page[:-2]}):
        response = server.http.get("/v1/agents", params=query)
        assert response.status_code == 400
        assert response.json()["error"]["message"].startswith("page: ")
    assert server.http.get("/v1/environments", params={"page": page}).status_code == 400


def test_another_workspace_sees_nothing(server: Server) -> None:
    agent = create(server)
    other = server.sdk("key-two")
    assert other.beta.agents.list().data == []
    for attempt in (other.beta.agents.retrieve, other.beta.agents.update, other.beta.agents.archive):
        with pytest.raises(anthropic.NotFoundError):
            attempt(agent.id)


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({}, "model"),
        ({"model": "m"}, "name"),
        ({"model": "m", "name": ""}, "name"),
        ({"model": "m", "name": "n" * 257}, "name"),
        ({"model": "", "name": "n"}, "model.id"),
        ({"model": {"id": "m", "effort": "extreme"}, "name": "n"}, "model.effort"),
        ({"model": {"id": "m", "temperature": 1}, "name": "n"}, "model.temperature"),
        ({"model": "m", "name": 3}, "name"),
        ({"model": "m", "name": "n", "colour": "red"}, "colour"),
        ({"model": "m", "name": "n", "system": "x" * 100_001}, "system"),
        ({"model": "m", "name": "n", "description": "x" * 2_049}, "description"),
        ({"model": "m", "name": "n", "metadata": {"k": 1}}, "metadata"),
        ({"model": "m", "name": "n", "metadata": {str(i): "v" for i in range(17)}}, "metadata"),
        ({"model": "m", "name": "n", "tools": [TOOLSET | {"foo": 1}]}, "tools.0.foo"),
        ({"model": "m", "name": "n", "tools": [{"type": "browser"}]}, "tools.0.type"),
        ({"model": "m", "name": "n", "tools": [TOOLSET | {"configs": [{"name": "rm"}]}]}, "tools.0.configs.0.name"),
        (
            {
                "model": "m",
                "name": "n",
                "tools": [TOOLSET | {"configs": [WRONG]}],
            },
            "tools.0.configs.0.allowed_domains",
        ),
        (
            {
                "model": "m",
                "name": "n",
                "tools": [
                    {"type": "custom", "name": "t", "description": "d", "input_schema": {"type": "object", "$ref": "#"}}
                ],
            },
            "tools.0.input_schema.$ref",
        ),
        ({"model": "m", "name": "n", "mcp_servers": [{"type": "url", "name": "s", "url": "https://s"}]}, "mcp_servers"),
        ({"model": "m", "name": "n", **mcp("https://[s/")}, "mcp_servers.0.url"),
        ({"model": "m", "name": "n", **mcp("https://s:99999/")}, "mcp_servers.0.url"),
        ({"model": "m", "name": "n", **mcp("https:///mcp")}, "mcp_servers.0.url"),
        ({"model": "m", "name": "n", **mcp("https://s/a b")}, "mcp_servers.0.url"),
        ({"model": "m", "name": "n", "skills": [{"type": "custom", "skill_id": "s"}]}, "skills"),
        ({"model": "m", "name": "n", "multiagent": {"type": "coordinator", "agents": []}}, "multiagent"),
        ({"model": "m", "name": "n", "multiagent": {}}, "multiagent"),
        (
            {
                "model": "m",
                "name": "n",
                **mcp("https://s", configs=[{"name": "x" * 129}]),
            },
            "tools.0.configs.0.name",
        ),
    ],
)
def test_a_bad_body_is_refused_with_the_path_of_its_field(server: Server, body: dict[str, Any], path: str) -> None:
    response = server.http.post("/v1/agents", json=body)
    error = response.json()["error"]
    assert response.status_code == 400
    assert error["type"] == "invalid_request_error"
    assert error["message"].startswith(f"{path}: ")
    assert server.client.beta.agents.list().data == []


def test_a_schema_may_have_null_for_what_it_leaves_out(server: Server) -> None:
    schema: Any = {"type": "object", "properties": None, "required": None, "title": None}
    tool: Any = {"type": "custom", "name": "t", "description": "d", "input_schema": schema}
    agent = server.http.post("/v1/agents", json={"name": "n", "model": "m", "tools": [tool]}).json()
    assert agent["tools"] == [tool | {"input_schema": {"type": "object", "title": None}}]
    assert_is(agent, BetaManagedAgentsAgent)


@pytest.mark.parametrize("change", [{"version": 0}, {"version": -1, "name": "x"}, {"multiagent": {}}])
def test_an_update_with_a_value_that_never_was_one_is_invalid(server: Server, change: Any) -> None:
    agent = server.client.beta.agents.create(name="n", model="m")
    response = server.http.post(f"/v1/agents/{agent.id}", json=change)
    assert response.status_code == 400
    assert response.json()["error"]["message"].startswith(f"{next(iter(change))}: ")


def test_an_aws_role_is_stored_and_echoed(server: Server) -> None:
    identity: Any = {"type": "aws_role", "role_arn": "arn:aws:iam::1:role/r"}
    agent = server.http.post("/v1/agents", json={"name": "n", "model": "m", "execution_identity": identity}).json()
    assert agent["execution_identity"] == identity
    assert_is(agent, BetaManagedAgentsAgent)
