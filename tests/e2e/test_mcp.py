"""MCP servers that agents name: connected, confirmed, called, cancelled and lost, through the official SDK."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from anthropic import Anthropic

from tests.e2e.conftest import ServerProcess
from tests.e2e.mcp_host import McpHost, mcp_host
from tests.e2e.sessions import (
    TOOLSET,
    Json,
    answer,
    history,
    message,
    new_agent,
    new_environment,
    reading,
    script,
    send,
    texts,
)

ALLOW: Json = {"permission_policy": {"type": "always_allow"}}


@pytest.fixture
def host() -> Iterator[McpHost]:
    with mcp_host() as running:
        yield running


def toolset(name: str = "tests", **fields: Json) -> Json:
    return {"type": "mcp_toolset", "mcp_server_name": name, **fields}


def session_on(client: Anthropic, url: str, *tools: Json, **fields: Json) -> str:
    """A session whose agent names one MCP server."""
    servers = [{"type": "url", "name": "tests", "url": url}]
    agent = new_agent(client, tools=list(tools) or [toolset(default_config=ALLOW)], mcp_servers=servers)
    return client.beta.sessions.create(agent=agent, environment_id=new_environment(client), **fields).id


def call(tool: str, **arguments: object) -> dict[str, object]:
    return {"tool": f"mcp__tests__{tool}", "input": arguments}


@pytest.mark.requirement("F030")
def test_a_tool_of_a_server_is_called_and_its_result_read(client: Anthropic, host: McpHost) -> None:
    session_id = session_on(client, host.url)
    with reading(client, session_id) as reader:
        send(client, session_id, script(call("add", a=2, b=3), {"say": "Five."}))
        assert reader.idle().type == "end_turn"
    (use,), (result,) = reader.of("agent.mcp_tool_use"), reader.of("agent.mcp_tool_result")
    assert (use.mcp_server_name, use.name, use.input) == ("tests", "add", {"a": 2, "b": 3})
    assert (use.evaluated_permission, use.evaluation.type) == ("allow", "always_allow")
    assert (result.mcp_tool_use_id, texts(result), result.is_error) == (use.id, "5", False)


@pytest.mark.requirement("F016", "F030")
def test_by_default_a_call_is_asked_for(client: Anthropic, host: McpHost) -> None:
    session_id = session_on(client, host.url, toolset())
    with reading(client, session_id) as reader:
        send(client, session_id, script([call("add", a=1, b=1), call("add", a=5, b=5)], {"say": "Well."}))
        reason = reader.idle()
        first, second = reader.of("agent.mcp_tool_use")
        assert (reason.type, reason.event_ids) == ("requires_action", [first.id, second.id])
        assert host.ran == []
        confirmation = {"type": "user.tool_confirmation", "tool_use_id": first.id, "result": "allow"}
        denial = {"type": "user.tool_confirmation", "tool_use_id": second.id, "result": "deny"}
        answer(client, session_id, confirmation, denial)
        assert reader.idle().type == "end_turn"
    results = {each.mcp_tool_use_id: (texts(each), each.is_error) for each in reader.of("agent.mcp_tool_result")}
    assert results[first.id] == ("2", False)
    assert results[second.id] == ("Permission to use add has been denied.", True)


@pytest.mark.requirement("F031")
def test_only_enabled_tools_are_offered_and_run(client: Anthropic, host: McpHost) -> None:
    tools = toolset(default_config={"enabled": False}, configs=[{"name": "add", "enabled": True, **ALLOW}])
    session_id = session_on(client, host.url, tools)
    with reading(client, session_id) as reader:
        send(client, session_id, script([{"echo": "prompt"}, call("secret"), call("add", a=1, b=1)]))
        reader.idle()
    prompt = texts(reader.of("agent.message")[0])
    assert "mcp__tests__add" in prompt
    assert "mcp__tests__secret" not in prompt
    (refused,) = reader.of("agent.tool_use")
    assert refused.evaluated_permission == "deny"
    assert host.ran == ["add"]


@pytest.mark.requirement("F032")
def test_a_server_that_is_not_there_is_an_error_and_the_session_goes_on(client: Anthropic) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{taken.getsockname()[1]}/mcp"
        session_id = session_on(client, nowhere)
        with reading(client, session_id) as reader:
            send(client, session_id, "Hello.")
            assert reader.idle().type == "end_turn"
            send(client, session_id, "Again.")
            assert reader.idle().type == "end_turn"
    errors = [event.error for event in reader.of("session.error")]
    assert [(e.type, e.mcp_server_name) for e in errors] == [("mcp_connection_failed_error", "tests")] * 2
    assert len(reader.of("agent.message")) == 2


@pytest.mark.requirement("F033")
def test_the_first_vault_that_has_a_credential_for_the_server_wins(client: Anthropic, host: McpHost) -> None:
    host.token = "token-of-the-first"
    vaults = client.beta.vaults
    empty, first, second = (vaults.create(display_name=name).id for name in ("empty", "first", "second"))
    spelled = host.url.replace("http://", "HTTP://") + "/"
    for vault_id, token in ((first, "token-of-the-first"), (second, "token-of-the-second")):
        auth: Json = {"type": "static_bearer", "mcp_server_url": spelled, "token": token}
        vaults.credentials.create(vault_id, auth=auth)
    session_id = session_on(client, host.url, vault_ids=[empty, first, second])
    with reading(client, session_id) as reader:
        send(client, session_id, script(call("add", a=2, b=2)))
        reader.idle()
    assert [texts(each) for each in reader.of("agent.mcp_tool_result")] == ["4"]
    assert set(host.seen) == {"Bearer token-of-the-first"}
    assert "token-of" not in str(history(client, session_id))


@pytest.mark.requirement("F032", "F033", "F131")
def test_a_rotated_token_reaches_a_running_session(client: Anthropic, host: McpHost) -> None:
    host.token = "new"
    vault_id = client.beta.vaults.create(display_name="rotating").id
    auth: Json = {"type": "static_bearer", "mcp_server_url": host.url, "token": "outdated"}
    credential = client.beta.vaults.credentials.create(vault_id, auth=auth)
    session_id = session_on(client, host.url, vault_ids=[vault_id])
    with reading(client, session_id) as reader:
        send(client, session_id, "Hello.")
        reader.idle()
        (error,) = reader.of("session.error")
        assert (error.error.type, error.error.mcp_server_name) == ("mcp_authentication_failed_error", "tests")
        change: Json = {"type": "static_bearer", "token": "new"}
        client.beta.vaults.credentials.update(credential.id, vault_id=vault_id, auth=change)
        send(client, session_id, script(call("add", a=3, b=3)))
        reader.idle()
    assert [texts(each) for each in reader.of("agent.mcp_tool_result")] == ["6"]


@pytest.mark.requirement("F030")
def test_pictures_errors_and_long_results_arrive_as_models_take_them(client: Anthropic, host: McpHost) -> None:
    session_id = session_on(client, host.url, toolset(default_config=ALLOW), TOOLSET)
    with reading(client, session_id) as reader:
        send(client, session_id, script(call("picture"), call("fail"), call("long")))
        reader.idle()
    picture, failed, long = reader.of("agent.mcp_tool_result")
    assert [(block.type, block.source.media_type) for block in picture.content] == [("image", "image/png")]
    assert failed.is_error
    assert "it is broken" in texts(failed)
    assert "150,000 characters" in texts(long)
    assert f"/home/agent/tool_results/{long.mcp_tool_use_id}.txt" in texts(long)


@pytest.mark.requirement("F030")
def test_an_interrupt_cancels_a_call(client: Anthropic, host: McpHost) -> None:
    session_id = session_on(client, host.url)
    with reading(client, session_id) as reader:
        send(client, session_id, script(call("wait")))
        reader.until("agent.mcp_tool_use")
        assert host.started.wait(30)
        client.beta.sessions.events.send(session_id, events=[{"type": "user.interrupt"}])
        assert reader.idle().type == "end_turn"
    (result,) = reader.of("agent.mcp_tool_result")
    assert result.is_error
    assert host.cancelled.wait(30)


@pytest.mark.requirement("F030")
def test_a_list_that_changed_is_read_again(client: Anthropic, host: McpHost) -> None:
    session_id = session_on(client, host.url)
    with reading(client, session_id) as reader:
        send(client, session_id, script(call("grow")))
        reader.idle()
        send(client, session_id, script(call("late")))
        reader.idle()
    assert [texts(each) for each in reader.of("agent.mcp_tool_result")] == ["grown", "I came later."]


@pytest.mark.requirement("F030", "F064")
def test_a_server_comes_and_goes_while_its_session_rests(client: Anthropic, host: McpHost) -> None:
    session_id = client.beta.sessions.create(agent=new_agent(client), environment_id=new_environment(client)).id
    servers: Json = [{"type": "url", "name": "tests", "url": host.url}]
    changes: list[Json] = [
        {"mcp_servers": servers, "tools": [TOOLSET, toolset(default_config=ALLOW)]},
        {"mcp_servers": [], "tools": [TOOLSET]},
    ]
    offered: list[bool] = []
    for change in (None, *changes):
        if change is not None:
            client.beta.sessions.update(session_id, agent=change)
        with reading(client, session_id) as reader:
            send(client, session_id, script({"echo": "prompt"}))
            reader.idle()
        offered.append("mcp__tests__add" in texts(reader.of("agent.message")[-1]))
    assert offered == [False, True, False]


@pytest.mark.requirement("F030")
def test_an_older_server_is_reached_by_server_sent_events(client: Anthropic) -> None:
    with mcp_host(events=True) as host:
        session_id = session_on(client, f"http://127.0.0.1:{host.port}/sse")
        with reading(client, session_id) as reader:
            send(client, session_id, script(call("add", a=20, b=3)))
            reader.idle()
        assert [texts(each) for each in reader.of("agent.mcp_tool_result")] == ["23"]


@pytest.mark.requirement("F030")
def test_a_call_that_was_cut_by_a_crash_is_not_made_again(server: ServerProcess, host: McpHost) -> None:
    with server.client() as client:
        session_id = session_on(client, host.url)
        with reading(client, session_id) as reader:
            send(client, session_id, script(call("wait"), {"say": "So."}))
            reader.until("agent.mcp_tool_use")
            assert host.started.wait(30)
            server.kill()
            host.started.clear()
    server.start()
    with server.client() as client:
        with reading(client, session_id) as reader:
            if client.beta.sessions.retrieve(session_id).status != "idle":
                reader.idle()
        (result,) = [event for event in history(client, session_id) if event.type == "agent.mcp_tool_result"]
        assert result.is_error
        assert "unknown whether" in texts(result)
        assert not host.started.is_set()
        assert message("x")
