"""Sessions on a real server: order of events, isolation of files, parallel calls, interrupts, errors."""

from __future__ import annotations

from anthropic import Anthropic

from tests.e2e.conftest import ServerProcess
from tests.e2e.sessions import history, new_session, results, script, send, turn, wait_until_idle

FULL_TURN = [
    "session.status_running",
    "session.thread_status_running",
    "user.message",
    "span.model_request_start",
    "agent.message",
    "agent.tool_use",
    "span.model_request_end",
    "agent.tool_result",
    "span.model_request_start",
    "agent.message",
    "span.model_request_end",
    "session.thread_status_idle",
    "session.usage",
    "session.status_idle",
]


def test_a_turn_is_logged_in_the_order_that_clients_rely_on(live: ServerProcess) -> None:
    with live.client() as client:
        session = new_session(client)
        task = script([{"say": "Looking."}, {"tool": "bash", "input": {"command": "echo hi"}}], {"say": "Done."})
        seen = turn(client, session.id, task)
        assert [event.type for event in history(client, session.id)] == FULL_TURN
        assert [event.type for event in seen] == ["user.message", *FULL_TURN]
        messages = [event for event in seen if event.type == "user.message"]
        assert messages[0].id == messages[1].id
        assert (messages[0].processed_at, messages[1].processed_at is None) == (None, False)
        assert results(seen) == ["hi"]
        assert client.beta.sessions.retrieve(session.id).status == "idle"


def test_two_sessions_of_one_agent_do_not_see_each_others_files(live: ServerProcess) -> None:
    with live.client() as client:
        first = new_session(client)
        second = client.beta.sessions.create(agent=first.agent.id, environment_id=first.environment_id)
        command = "echo {0} > mine.txt; touch here-{0}; ls; cat mine.txt; ls /tmp"
        for session, name in ((first, "one"), (second, "two")):
            bash = {"tool": "bash", "input": {"command": command.format(name)}}
            send(client, session.id, script(bash, {"say": "Done."}))
        (left,) = results(wait_until_idle(client, first.id))
        (right,) = results(wait_until_idle(client, second.id))
        assert left.split() == ["here-one", "mine.txt", "one"]
        assert right.split() == ["here-two", "mine.txt", "two"]


def test_parallel_calls_of_one_answer_run_side_by_side(live: ServerProcess) -> None:
    """Each command waits for a word from the other: one after the other they would never end."""
    commands = [
        "mkfifo a 2>/dev/null; until [ -p b ]; do :; done; echo ping > b; cat a",
        "mkfifo b 2>/dev/null; until [ -p a ]; do :; done; cat b; echo pong > a",
    ]
    parallel = {"parallel": [{"tool": "bash", "input": {"command": command}} for command in commands]}
    with live.client() as client:
        session = new_session(client)
        seen = turn(client, session.id, script(parallel, {"say": "Done."}))
        assert sorted(results(seen)) == ["ping", "pong"]


def test_an_interrupt_stops_a_running_command_and_the_session_goes_on(live: ServerProcess) -> None:
    with live.client() as client:
        session = new_session(client)
        with client.beta.sessions.events.stream(session.id) as stream:
            endless = {"tool": "bash", "input": {"command": "while :; do sleep 0.1; done"}}
            send(client, session.id, script(endless, {"say": "Never said."}))
            next(event for event in stream if event.type == "agent.tool_use")
            client.beta.sessions.events.send(session.id, events=[{"type": "user.interrupt"}])
            idle = next(event for event in stream if event.type == "session.status_idle")
        assert idle.stop_reason.type == "end_turn"
        assert "interrupted" in results(history(client, session.id))[0]
        again = turn(client, session.id, script({"tool": "bash", "input": {"command": "echo alive"}}, {"say": "Yes."}))
        assert results(again) == ["alive"]


def test_a_model_that_fails_ends_the_turn_with_an_error_and_the_session_stays_usable(live: ServerProcess) -> None:
    with live.client() as client:
        session = new_session(client)
        failed = turn(client, session.id, script({"fail": "refused"}))
        (error,) = [event for event in failed if event.type == "session.error"]
        assert error.error.retry_status.type == "exhausted"
        assert failed[-1].type == "session.status_idle" and failed[-1].stop_reason.type == "retries_exhausted"
        (spoken,) = [event for event in turn(client, session.id, "Hello?") if event.type == "agent.message"]
        assert "Hello?" in spoken.to_json()


def test_what_the_agent_needs_is_in_the_sandbox(live: ServerProcess) -> None:
    command = "python -c 'print(1+1)'; rg --version | head -1 | cut -d' ' -f1; pwd; id -u; ls -d /mnt/session/outputs"
    with live.client() as client:
        session = new_session(client)
        (text,) = results(turn(client, session.id, script({"tool": "bash", "input": {"command": command}})))
        version, ripgrep, directory, uid, outputs = text.split("\n")
        assert (version, ripgrep, directory, outputs) == ("2", "ripgrep", "/workspace", "/mnt/session/outputs")
        assert uid != "0"


def test_a_wrong_key_is_refused(live: ServerProcess) -> None:
    import anthropic
    import pytest

    with Anthropic(base_url=live.base_url, api_key="wrong-key-entirely") as client:
        with pytest.raises(anthropic.AuthenticationError):
            client.beta.agents.create(name="x", model="m")
