"""Who decides whether a tool call runs: policies, confirmations, disabled tools, and the judge."""

from __future__ import annotations

import pytest
from anthropic import Anthropic

from tests.e2e.conftest import ServerProcess
from tests.e2e.sessions import (
    GATE,
    TOOLSET,
    Json,
    answer,
    bash,
    history,
    message,
    new_session,
    open_gate,
    policies,
    reading,
    refused,
    results,
    script,
    send,
    texts,
    turn,
    types,
)

ECHO = script(bash("echo ran"), {"echo": "prompt"})


def allow(use: Json) -> Json:
    return {"type": "user.tool_confirmation", "tool_use_id": use.id, "result": "allow"}


def deny(use: Json, **more: str) -> Json:
    return {"type": "user.tool_confirmation", "tool_use_id": use.id, "result": "deny", **more}


@pytest.mark.requirement("F026")
def test_a_call_that_must_be_asked_for_waits_and_runs_when_it_is_allowed(client: Anthropic) -> None:
    session = new_session(client, policies(bash="always_ask"))
    with reading(client, session.id) as reader:
        send(client, session.id, ECHO)
        reason = reader.idle()
        (use,) = reader.of("agent.tool_use")
        assert (use.evaluated_permission, use.evaluation.type) == ("ask", "always_ask")
        assert (reason.type, reason.event_ids) == ("requires_action", [use.id])
        assert client.beta.sessions.retrieve(session.id).status == "idle"
        assert reader.of("agent.tool_result") == []
        (echo,) = answer(client, session.id, allow(use))
        assert echo.processed_at is not None
        assert reader.idle().type == "end_turn"
    (result,) = reader.of("agent.tool_result")
    assert (result.tool_use_id, texts(result), result.is_error) == (use.id, "ran", False)
    after = types(reader.seen)[types(reader.seen).index("session.status_idle") + 1 :]
    assert after[:4] == [
        "user.tool_confirmation",
        "session.status_running",
        "session.thread_status_running",
        "agent.tool_result",
    ]


@pytest.mark.requirement("F026", "F027")
@pytest.mark.parametrize(
    ("more", "told"),
    [({}, "Permission to use bash has been denied."), ({"deny_message": "Not on a Sunday."}, "Not on a Sunday.")],
)
def test_a_denied_call_does_not_run_and_the_model_reads_why(client: Anthropic, more: Json, told: str) -> None:
    session = new_session(client, policies(bash="always_ask"))
    with reading(client, session.id) as reader:
        send(client, session.id, ECHO)
        reader.idle()
        (use,) = reader.of("agent.tool_use")
        answer(client, session.id, deny(use, **more))
        assert reader.idle().type == "end_turn"
    (result,) = reader.of("agent.tool_result")
    assert (result.tool_use_id, texts(result), result.is_error) == (use.id, told, True)
    read = texts(reader.of("agent.message")[-1])
    assert told in read and '"last_result_is_error":true' in read


@pytest.mark.requirement("F027", "F071")
def test_a_deny_message_that_cannot_be_is_refused(client: Anthropic) -> None:
    session = new_session(client, policies(bash="always_ask"))
    turn(client, session.id, ECHO)
    (use,) = [event for event in history(client, session.id) if event.type == "agent.tool_use"]
    assert "deny_message" in refused(client, session.id, {**allow(use), "deny_message": "but why"})
    assert "deny_message" in refused(client, session.id, deny(use, deny_message="x" * 10_001))


@pytest.mark.requirement("F079")
def test_answers_to_some_of_the_calls_leave_the_session_waiting_for_the_rest(client: Anthropic) -> None:
    session = new_session(client, policies(bash="always_ask"))
    both = {"parallel": [bash("echo one"), bash("echo two")]}
    with reading(client, session.id) as reader:
        send(client, session.id, script(both, {"say": "Done."}))
        reason = reader.idle()
        first, second = reader.of("agent.tool_use")
        assert reason.event_ids == [first.id, second.id]
        answer(client, session.id, allow(second))
        remainder = reader.idle()
        assert (remainder.type, remainder.event_ids) == ("requires_action", [first.id])
        assert len(reader.of("session.status_running")) == 1
        answer(client, session.id, deny(first))
        assert reader.idle().type == "end_turn"
    by_call = {result.tool_use_id: texts(result) for result in reader.of("agent.tool_result")}
    assert by_call == {first.id: "Permission to use bash has been denied.", second.id: "two"}


@pytest.mark.requirement("F026", "F079")
def test_calls_that_need_no_answer_run_before_the_session_waits(client: Anthropic) -> None:
    session = new_session(client, policies(bash="always_ask"))
    both = {"parallel": [bash("echo asked"), {"tool": "write", "input": {"file_path": "a.txt", "content": "x"}}]}
    with reading(client, session.id) as reader:
        send(client, session.id, script(both, {"say": "Done."}))
        reason = reader.idle()
        asked, written = reader.of("agent.tool_use")
        assert reason.event_ids == [asked.id]
        assert [result.tool_use_id for result in reader.of("agent.tool_result")] == [written.id]


@pytest.mark.requirement("F026")
def test_a_call_can_be_confirmed_while_others_still_run(live: ServerProcess, client: Anthropic) -> None:
    session = new_session(client, policies(glob="always_ask"))
    opened, waits = GATE
    both = {"parallel": [waits, {"tool": "glob", "input": {"pattern": "*"}}]}
    with reading(client, session.id) as reader:
        send(client, session.id, script(opened, both, {"say": "Done."}))
        reader.until("agent.tool_result")
        reader.until("span.model_request_end")
        asked = reader.of("agent.tool_use")[-1]
        answer(client, session.id, allow(asked))
        open_gate(live, session.id)
        while reader.idle().type == "requires_action":
            pass
    assert {result.tool_use_id for result in reader.of("agent.tool_result")} == {
        use.id for use in reader.of("agent.tool_use")
    }
    assert not any(result.is_error for result in reader.of("agent.tool_result"))


@pytest.mark.requirement("F029", "F025")
def test_only_a_call_that_asked_can_be_confirmed(client: Anthropic) -> None:
    configs = [*policies(bash="always_ask")["configs"], {"name": "write", "enabled": False}]
    session = new_session(client, {**TOOLSET, "configs": configs})
    calls = [bash("echo asked"), {"tool": "glob", "input": {"pattern": "*"}}, {"tool": "write"}]
    turn(client, session.id, script({"parallel": calls}, {"say": "Done."}))
    asked, allowed, disabled = [event for event in history(client, session.id) if event.type == "agent.tool_use"]
    stranger = {"type": "user.tool_confirmation", "tool_use_id": "sevt_stranger", "result": "allow"}
    for event in (allow(allowed), deny(allowed), allow(disabled), stranger):
        assert event["tool_use_id"] in refused(client, session.id, event)
    with reading(client, session.id) as reader:
        answer(client, session.id, allow(asked))
        reader.idle()
    assert asked.id in refused(client, session.id, allow(asked))


@pytest.mark.requirement("F080")
def test_while_a_session_waits_for_answers_it_takes_no_messages(client: Anthropic) -> None:
    session = new_session(client, policies(bash="always_ask"))
    turn(client, session.id, ECHO)
    (use,) = [event for event in history(client, session.id) if event.type == "agent.tool_use"]
    assert use.id in refused(client, session.id, message("Hello?"))
    system = {"type": "system.message", "content": [{"type": "text", "text": "Be brief."}]}
    assert "system.message" in refused(client, session.id, allow(use), system)


@pytest.mark.requirement("F025")
def test_a_call_of_a_tool_that_is_not_enabled_is_denied_without_evaluation(client: Anthropic) -> None:
    disabled = {**TOOLSET, "configs": [{"name": "bash", "enabled": False, "permission_policy": {"type": "always_ask"}}]}
    session = new_session(client, disabled)
    seen = turn(client, session.id, script(bash("echo ran"), {"tool": "no_such_tool", "input": {}}, {"say": "Done."}))
    uses = [event for event in seen if event.type == "agent.tool_use"]
    assert [use.evaluated_permission for use in uses] == ["deny", "deny"]
    assert not any("evaluation" in use.to_dict() for use in uses)
    assert results(seen) == ["Permission to use bash has been denied.", "There is no tool named no_such_tool."]
    assert all(event.is_error for event in seen if event.type == "agent.tool_result")
    assert types(seen).count("session.status_idle") == 1


@pytest.mark.requirement("F014")
def test_the_settings_of_a_tool_win_over_those_of_its_toolset(client: Anthropic) -> None:
    configs = [{"name": "bash", "enabled": True}]
    session = new_session(client, {**TOOLSET, "configs": configs, "default_config": {"enabled": False}})
    seen = turn(
        client, session.id, script(bash("echo ran"), {"tool": "glob", "input": {"pattern": "*"}}, {"echo": "prompt"})
    )
    assert results(seen)[0] == "ran"
    assert [event.evaluated_permission for event in seen if event.type == "agent.tool_use"] == ["allow", "deny"]
    (spoken,) = [event for event in seen if event.type == "agent.message"]
    assert '"tools":["bash"]' in texts(spoken)


@pytest.mark.requirement("F028")
def test_a_judge_lets_a_harmless_call_run(client: Anthropic) -> None:
    session = new_session(client, policies(bash="auto"))
    seen = turn(client, session.id, script(bash("echo ran # judge:ALLOW"), {"say": "Done."}))
    use: Json = next(event for event in seen if event.type == "agent.tool_use")
    assert (use.evaluated_permission, use.evaluation.to_dict()) == (
        "allow",
        {"type": "auto", "evaluated_permission": {"type": "allow"}},
    )
    assert results(seen) == ["ran"]


@pytest.mark.requirement("F028", "F029")
def test_what_the_judge_denies_nobody_can_allow(client: Anthropic) -> None:
    session = new_session(client, policies(bash="auto", glob="always_ask"))
    calls = [bash("echo ran # judge:DENY"), {"tool": "glob", "input": {"pattern": "*"}}]
    with reading(client, session.id) as reader:
        send(client, session.id, script({"parallel": calls}, {"say": "Done."}))
        reason = reader.idle()
    denied, asked = reader.of("agent.tool_use")
    assert (denied.evaluated_permission, denied.evaluation.to_dict()) == (
        "deny",
        {"type": "auto", "evaluated_permission": {"type": "deny", "reason_code": "high_risk"}},
    )
    assert reason.event_ids == [asked.id]
    (result,) = reader.of("agent.tool_result")
    assert (texts(result), result.is_error) == ("Permission to use bash has been denied.", True)
    assert denied.id in refused(client, session.id, allow(denied))


@pytest.mark.requirement("F028")
def test_a_judge_that_only_denies_does_not_stop_the_session(client: Anthropic) -> None:
    session = new_session(client, policies(bash="auto"))
    seen = turn(client, session.id, script(bash("echo ran # judge:DENY"), {"say": "Then not."}))
    assert types(seen).count("session.status_idle") == 1
    assert texts(next(event for event in seen if event.type == "agent.message")) == "Then not."


@pytest.mark.requirement("F028")
@pytest.mark.parametrize("verdict", ["ASK", "PERHAPS", "fail"])
def test_a_judge_that_is_not_sure_or_not_there_leaves_it_to_the_user(client: Anthropic, verdict: str) -> None:
    session = new_session(client, policies(bash="auto"))
    with reading(client, session.id) as reader:
        send(client, session.id, script(bash(f"echo ran # judge:{verdict}"), {"say": "Done."}))
        reason = reader.idle()
        (use,) = reader.of("agent.tool_use")
        assert (use.evaluated_permission, use.evaluation.to_dict()) == (
            "ask",
            {"type": "auto", "evaluated_permission": {"type": "ask", "reason_code": "indeterminate"}},
        )
        assert reason.event_ids == [use.id]
        answer(client, session.id, allow(use))
        assert reader.idle().type == "end_turn"
    assert results(reader.seen) == ["ran"]
