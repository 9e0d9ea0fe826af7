"""`kill -9` of a real server in the middle of things: nothing accepted is lost, nothing runs twice unannounced."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.e2e.conftest import ServerProcess
from tests.e2e.sessions import history, new_session, results, script, send, wait_until_idle

WAIT_SECONDS_MAX = 30
SLOW = "echo started >> runs; while [ ! -e go ]; do sleep 0.02; done; echo finished"
TASK = script({"tool": "bash", "input": {"command": SLOW}}, {"say": "All done."})


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + WAIT_SECONDS_MAX
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} never came"
        os.sched_yield()


def start_slow_command(server: ServerProcess) -> str:
    with server.client() as client:
        session = new_session(client)
        send(client, session.id, TASK)
    wait_for(server.workspace(session.id) / "runs")
    return session.id


@pytest.mark.parametrize(
    ("signal_name", "command_ends"),
    [
        ("SIGKILL", "while the server is down"),
        ("SIGKILL", "after the restart"),
        ("SIGTERM", "while the server is down"),  # one is enough of these: it waits for its grace to be over
    ],
)
def test_a_command_that_outlives_the_server_has_one_result_and_ran_once(
    server: ServerProcess, command_ends: str, signal_name: str
) -> None:
    session_id = start_slow_command(server)
    go = server.workspace(session_id) / "go"
    if signal_name == "SIGKILL":
        server.kill()
    else:
        assert server.stop() == 0
    if command_ends == "while the server is down":
        go.touch()
    server.start()
    go.touch()
    with server.client() as client:
        events = wait_until_idle(client, session_id)
        assert results(events) == ["finished"]
        assert events[-1].type == "session.status_idle" and events[-1].stop_reason.type == "end_turn"
    assert (server.workspace(session_id) / "runs").read_text(encoding="utf-8") == "started\n"


def test_a_command_that_died_with_the_server_is_reported_and_not_repeated(server: ServerProcess) -> None:
    session_id = start_slow_command(server)
    server.kill()
    kill_sandbox(server, session_id)
    server.start()
    with server.client() as client:
        events = wait_until_idle(client, session_id)
        (result,) = [event for event in events if event.type == "agent.tool_result"]
        assert result.is_error
        assert [event.type for event in events].count("agent.tool_use") == 1
    assert (server.workspace(session_id) / "runs").read_text(encoding="utf-8") == "started\n"


def test_a_model_request_that_was_cut_off_is_closed_and_asked_again(server: ServerProcess) -> None:
    with server.client() as client:
        session = new_session(client)
        with client.beta.sessions.events.stream(session.id) as stream:
            send(client, session.id, script({"say": "Half an answer", "hang": True}))
            next(event for event in stream if event.type == "span.model_request_start")
    server.kill()
    server.start()
    with server.client() as client:
        with client.beta.sessions.events.stream(session.id) as stream:
            starts = [e for e in history(client, session.id) if e.type == "span.model_request_start"]
            if len(starts) < 2:
                next(event for event in stream if event.type == "span.model_request_start")
        events = history(client, session.id)
        ends = [event for event in events if event.type == "span.model_request_end"]
        assert [end.is_error for end in ends] == [True]
        assert [event.type for event in events].count("span.model_request_start") == 2
        assert [event.type for event in events].count("user.message") == 1


def kill_sandbox(server: ServerProcess, session_id: str) -> None:
    """Kill exactly the processes of this test's sandbox: those whose root or directory is its own."""
    workspace = str(server.workspace(session_id))
    for process in Path("/proc").glob("[0-9]*"):
        try:
            mounts = (process / "mountinfo").read_text(encoding="utf-8")
        except OSError:
            continue
        if workspace in mounts:
            with suppress(ProcessLookupError):  # the first of them takes the others with it
                os.kill(int(process.name), signal.SIGKILL)
