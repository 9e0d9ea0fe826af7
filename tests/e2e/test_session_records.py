"""Sessions as records: how they are made, read, listed, changed, archived and deleted."""

from __future__ import annotations

import anthropic
import pytest
from anthropic import Anthropic
from anthropic.types.beta import BetaManagedAgentsSession

from tests.e2e.sessions import (
    TOOLSET,
    Json,
    answer,
    bash,
    custom_tool,
    error_code,
    history,
    message,
    new_agent,
    new_environment,
    new_session,
    reading,
    refused,
    results,
    script,
    send,
    texts,
    turn,
    types,
)

HANG = script({"hang": True})


@pytest.mark.requirement("F056")
def test_a_session_takes_its_agent_by_id_by_version_or_with_overrides(client: Anthropic) -> None:
    agent_id = new_agent(client, system="one")
    client.beta.agents.update(agent_id, system="two")
    forms: list[Json] = [
        agent_id,
        {"type": "agent", "id": agent_id, "version": 1},
        {"type": "agent_with_overrides", "id": agent_id, "system": "three"},
    ]
    made = [new_session(client, agent=form).agent for form in forms]
    assert [(agent.id, agent.version, agent.system) for agent in made] == [
        (agent_id, 2, "two"),
        (agent_id, 1, "one"),
        (agent_id, 2, "three"),
    ]
    seen = turn(client, new_session(client, agent=forms[2]).id, script({"echo": "system"}))
    assert texts(next(event for event in seen if event.type == "agent.message")).startswith("three")


@pytest.mark.requirement("F057")
def test_overrides_inherit_clear_or_replace(client: Anthropic) -> None:
    agent_id = new_agent(client, system="s", model={"id": "m", "effort": "low"}, tools=[TOOLSET, custom_tool()])
    base: Json = {"type": "agent_with_overrides", "id": agent_id}
    inherited = new_session(client, agent=base).agent
    assert (inherited.system, len(inherited.tools), inherited.model.id) == ("s", 2, "m")
    cleared = new_session(client, agent={**base, "system": None, "tools": []}).agent
    assert (cleared.system, cleared.tools) == (None, [])
    replaced = new_session(client, agent={**base, "model": "other", "tools": [custom_tool("tides")]}).agent
    assert replaced.model.effort is not None
    assert (replaced.model.id, replaced.model.effort.type, len(replaced.tools)) == ("other", "high", 1)
    assert client.beta.agents.retrieve(agent_id).version == 1
    with pytest.raises(anthropic.BadRequestError) as caught:
        new_session(client, agent={**base, "model": None})
    assert error_code(caught.value) == "agent_model_required"
    with pytest.raises(anthropic.BadRequestError, match=r"agent\.tools"):
        new_session(client, agent={**base, "tools": [custom_tool(), custom_tool()]})


@pytest.mark.requirement("F060")
def test_a_session_shows_everything_it_has(client: Anthropic) -> None:
    made = new_session(client, title="A title", metadata={"k": "v"})
    session = client.beta.sessions.retrieve(made.id)
    assert (session.title, session.metadata, session.status) == ("A title", {"k": "v"}, "idle")
    assert (session.resources, session.vault_ids, session.outcome_evaluations) == ([], [], [])
    assert session.usage.input_tokens == 0
    assert session.stats.duration_seconds is not None and session.stats.duration_seconds >= 0
    with pytest.raises(anthropic.NotFoundError):
        client.beta.sessions.retrieve("sesn_nobody")
    wrong: list[Json] = [{"title": "x" * 501}, {"metadata": {"k": "v" * 513}}, {"agent": "agent_nobody"}]
    for fields in wrong:
        with pytest.raises((anthropic.BadRequestError, anthropic.NotFoundError)):
            new_session(client, **fields)


@pytest.fixture
def five(client: Anthropic) -> tuple[str, list[BetaManagedAgentsSession]]:
    """An agent with five sessions."""
    agent_id, environment_id = new_agent(client), new_environment(client)
    create = client.beta.sessions.create
    return agent_id, [create(agent=agent_id, environment_id=environment_id) for _ in range(5)]


@pytest.mark.requirement("F061")
def test_lists_page_both_ways_and_a_cursor_keeps_its_order(
    client: Anthropic, five: tuple[str, list[BetaManagedAgentsSession]]
) -> None:
    agent_id, sessions = five
    ids = [session.id for session in sessions]
    assert [each.id for each in client.beta.sessions.list(agent_id=agent_id, limit=2)] == ids[::-1]
    assert [each.id for each in client.beta.sessions.list(agent_id=agent_id, limit=2, order="asc")] == ids
    first = client.beta.sessions.list(agent_id=agent_id, limit=2)
    assert first.prev_page is None and first.next_page is not None
    second = client.beta.sessions.list(agent_id=agent_id, limit=2, page=first.next_page)
    assert second.prev_page is not None
    back = client.beta.sessions.list(agent_id=agent_id, limit=2, page=second.prev_page)
    assert [each.id for each in back.data] == [each.id for each in first.data]
    with pytest.raises(anthropic.BadRequestError, match="page"):
        client.beta.sessions.list(agent_id=agent_id, limit=2, order="asc", page=first.next_page)
    late = client.beta.sessions.list(agent_id=agent_id, created_at_gt=sessions[2].created_at)
    assert {each.id for each in late} <= set(ids[3:])
    with pytest.raises(anthropic.BadRequestError, match="agent_version"):
        client.beta.sessions.list(agent_version=1)
    assert len(list(client.beta.sessions.list(agent_id=agent_id, agent_version=1))) == 5
    assert list(client.beta.sessions.list(agent_id=agent_id, agent_version=2)) == []


@pytest.mark.requirement("F062", "F065", "F061")
def test_lists_filter_by_status_and_hide_what_is_archived(
    client: Anthropic, five: tuple[str, list[BetaManagedAgentsSession]]
) -> None:
    agent_id, (over, busy, *_) = five
    client.beta.sessions.archive(over.id)
    with reading(client, busy.id) as reader:
        send(client, busy.id, HANG)
        reader.until("span.model_request_start")
        sessions = client.beta.sessions
        assert [each.id for each in sessions.list(agent_id=agent_id, statuses=["running"])] == [busy.id]
        assert len(list(sessions.list(agent_id=agent_id, statuses=["idle", "running"]))) == 4
        assert len(list(sessions.list(agent_id=agent_id))) == 4
        archived = sessions.list(agent_id=agent_id, include_archived=True, statuses=["terminated"])
        assert [each.id for each in archived] == [over.id]
        answer(client, busy.id, {"type": "user.interrupt"})
        reader.idle()


@pytest.mark.requirement("F063")
def test_an_update_is_told_to_readers_with_only_what_changed(client: Anthropic) -> None:
    session = new_session(client, title="one", metadata={"a": "1"})
    with reading(client, session.id) as reader:
        client.beta.sessions.update(session.id, title="one")
        changed = client.beta.sessions.update(session.id, title="two", metadata={"a": None, "b": "2"})
        client.beta.sessions.update(session.id, title=None)
        first, second = reader.until("session.updated"), reader.until("session.updated")
    assert (changed.title, changed.metadata) == ("two", {"b": "2"})
    assert first.to_dict().keys() == {"id", "type", "processed_at", "title", "metadata"}
    assert (first.title, first.metadata) == ("two", {"b": "2"})
    assert second.to_dict()["title"] is None
    assert types(history(client, session.id)) == ["session.updated", "session.updated"]


@pytest.mark.requirement("F064")
def test_tools_can_be_changed_between_turns_only(client: Anthropic) -> None:
    session = new_session(client, custom_tool())
    client.beta.sessions.update(session.id, agent={"tools": [TOOLSET]})
    with reading(client, session.id) as reader:
        send(client, session.id, script(bash("echo ran"), {"hang": True}))
        reader.until("agent.tool_result")
        with pytest.raises(anthropic.BadRequestError, match="running"):
            client.beta.sessions.update(session.id, agent={"tools": []})
        assert client.beta.sessions.update(session.id, title="Titles can.").title == "Titles can."
        answer(client, session.id, {"type": "user.interrupt"})
        reader.idle()
    assert results(reader.seen)[0] == "ran"
    body: Json = {"vault_ids": ["vlt_x"]}
    with pytest.raises(anthropic.BadRequestError, match="vault_ids"):
        client.beta.sessions.update(session.id, **body)


@pytest.mark.requirement("F065")
def test_an_archived_session_is_over_and_can_be_read(client: Anthropic) -> None:
    session = new_session(client)
    turn(client, session.id, "Hello.")
    with reading(client, session.id) as reader:
        archived = client.beta.sessions.archive(session.id)
        reader.until("session.status_terminated")
    assert (archived.status, archived.archived_at is None) == ("terminated", False)
    assert types(reader.seen) == ["session.thread_status_terminated", "session.status_terminated"]
    assert types(history(client, session.id))[-1] == "session.status_terminated"
    assert "terminated" in refused(client, session.id, message("Hello?"))
    with pytest.raises(anthropic.BadRequestError):
        client.beta.sessions.update(session.id, title="x")


@pytest.mark.requirement("F065")
def test_a_deleted_session_is_gone(client: Anthropic) -> None:
    session = new_session(client)
    turn(client, session.id, "Hello.")
    assert client.beta.sessions.delete(session.id).to_dict() == {"id": session.id, "type": "session_deleted"}
    with pytest.raises(anthropic.NotFoundError):
        client.beta.sessions.retrieve(session.id)
    with pytest.raises(anthropic.NotFoundError):
        history(client, session.id)
    with pytest.raises(anthropic.NotFoundError):
        client.beta.sessions.events.stream(session.id)


@pytest.mark.requirement("F066")
def test_a_running_session_can_be_neither_archived_nor_deleted(client: Anthropic) -> None:
    session = new_session(client)
    with reading(client, session.id) as reader:
        send(client, session.id, HANG)
        reader.until("span.model_request_start")
        for refuse in (client.beta.sessions.archive, client.beta.sessions.delete):
            with pytest.raises(anthropic.BadRequestError, match="running"):
                refuse(session.id)
        answer(client, session.id, {"type": "user.interrupt"})
        reader.idle()
    assert client.beta.sessions.archive(session.id).status == "terminated"


@pytest.mark.requirement("F072", "F073")
def test_a_history_is_read_in_any_order_by_pages_types_and_times(client: Anthropic) -> None:
    session = new_session(client)
    turn(client, session.id, "One.")
    turn(client, session.id, script({"tool": "glob", "input": {"pattern": "*"}}, {"say": "Done."}))
    events = client.beta.sessions.events
    whole = history(client, session.id)
    assert list(events.list(session.id, limit=3)) == whole
    assert list(events.list(session.id, order="desc", limit=4)) == whole[::-1]
    assert len(events.list(session.id, limit=1000).data) == len(whole)
    said = list(events.list(session.id, types=["agent.message", "agent.tool_use"]))
    assert types(said) == ["agent.message", "agent.tool_use", "agent.message"]
    first_idle = next(event for event in whole if event.type == "session.status_idle")
    until = list(events.list(session.id, created_at_lte=first_idle.processed_at))
    since = list(events.list(session.id, created_at_gt=first_idle.processed_at))
    assert [*until, *since] == whole and until[-1].id == first_idle.id
    for wrong in ({"limit": 1001}, {"limit": 0}, {"types": ["nonsense"]}, {"order": "random"}):
        query: Json = wrong
        with pytest.raises(anthropic.BadRequestError):
            events.list(session.id, **query)
