"""Moving in and out: what one server shows is what the next one shows, and its sessions go on there."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from anthropic import Anthropic

from tests.e2e.conftest import ServerProcess, serving
from tests.e2e.mcp_host import mcp_host
from tests.e2e.sessions import history, new_session, results, script, send, texts, turn
from tests.e2e.test_mcp import call, session_on

Json = dict[str, Any]


def corral(server: ServerProcess, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "corral", *arguments, "--data-dir", str(server.directory / "data")],
        env={"HOME": str(server.directory), "PATH": "/usr/bin:/bin"},
        cwd=server.directory,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def dump(client: Anthropic) -> Iterator[Json]:
    """The program of docs/moving.md."""
    for environment in client.beta.environments.list(include_archived=True):
        yield environment.to_dict(mode="json")
    for agent in client.beta.agents.list(include_archived=True):
        for version in client.beta.agents.versions.list(agent.id):
            yield version.to_dict(mode="json")
    for session in client.beta.sessions.list(include_archived=True):
        yield session.to_dict(mode="json")
        for event in client.beta.sessions.events.list(session.id):
            yield {"session_id": session.id, "event": event.to_dict(mode="json")}


def shown(lines: list[Json]) -> list[Json]:
    """Without what goes on by itself."""
    for line in lines:
        if line.get("type") == "session" and line["status"] != "terminated":
            line["stats"].pop("duration_seconds", None)
    return lines


def in_some_order(lines: list[Json]) -> list[str]:
    return sorted(json.dumps(line, sort_keys=True) for line in shown(lines))


def fill(client: Anthropic) -> str:
    """Objects of every kind and state. Returns a session that had a turn with a tool."""
    session = new_session(client, title="first")
    client.beta.agents.update(session.agent.id, version=1, description="Second.")
    client.beta.agents.update(session.agent.id, version=2, system="Third.", metadata={"team": "moving"})
    client.beta.agents.archive(client.beta.agents.create(name="old", model="scripted").id)
    client.beta.environments.archive(client.beta.environments.create(name="old").id)
    task = script([{"say": "Looking."}, {"tool": "bash", "input": {"command": "echo old-result"}}], {"say": "Done."})
    turn(client, session.id, task)
    turn(client, session.id, "Thank you")
    asking = client.beta.agents.create(
        name="asks",
        model="scripted",
        tools=[
            {
                "type": "agent_toolset_20260401",
                "default_config": {"permission_policy": {"type": "always_ask"}},
            }
        ],
    )
    waiting = client.beta.sessions.create(agent=asking.id, environment_id=session.environment_id, title="waits")
    turn(client, waiting.id, script({"tool": "bash", "input": {"command": "echo confirmed"}}, {"say": "Done."}))
    over = client.beta.sessions.create(agent=session.agent.id, environment_id=session.environment_id)
    client.beta.sessions.archive(over.id)
    return session.id


@pytest.fixture(scope="module")
def moved() -> Iterator[tuple[ServerProcess, str, list[Json]]]:
    """A server on new data, into which another one's objects were imported; one session of it, and the objects.

    The first tests compare everything; those that change something come after them, and leave each other's alone.
    """
    with serving() as server:
        with server.client() as client:
            session_id = fill(client)
            before = list(dump(client))
        server.stop()
        (server.directory / "data").rename(server.directory / "old-data")
        file = server.directory / "dump.jsonl"
        file.write_text("".join(json.dumps(line) + "\n" for line in before), encoding="utf-8")
        done = corral(server, "import", str(file))
        assert done.returncode == 0, done.stderr
        assert "3 agents, 2 environments, 3 sessions" in done.stdout
        server.start()
        yield server, session_id, before


def test_an_imported_server_shows_what_the_old_one_showed(moved: tuple[ServerProcess, str, list[Json]]) -> None:
    server, _, before = moved
    with server.client() as client:
        assert shown(list(dump(client))) == shown(before)


def test_an_export_holds_the_same_and_is_known_when_it_is_imported_again(
    moved: tuple[ServerProcess, str, list[Json]],
) -> None:
    server, _, before = moved
    refused = corral(server, "export")
    assert refused.returncode == 1 and "is in use by process" in refused.stderr
    server.stop()
    file = server.directory / "export.jsonl"
    assert corral(server, "export", str(file)).returncode == 0
    assert file.stat().st_mode & 0o777 == 0o600
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    heads = [line for line in lines if line.get("type") == "workspace"]
    rest = [line for line in lines if line.get("type") != "workspace"]
    assert heads == [{"type": "workspace", "id": "wrkspc_default"}]
    assert in_some_order(rest) == in_some_order(before)
    again = corral(server, "import", str(file))
    assert "Here already, and the same: 3 agents, 2 environments, 3 sessions." in again.stdout
    server.start()


def test_an_imported_session_goes_on_with_its_conversation(moved: tuple[ServerProcess, str, list[Json]]) -> None:
    server, session_id, _ = moved
    with server.client() as client:
        seen = turn(client, session_id, script({"echo": "messages"}))
        (said,) = [event for event in seen if event.type == "agent.message"]
        messages = json.loads("".join(block.text for block in said.content if block.type == "text"))
        kinds = [(message["role"], [block["type"] for block in message["content"]]) for message in messages]
        assert kinds == [
            ("user", ["text"]),
            ("assistant", ["text", "tool_use"]),
            ("user", ["tool_result"]),
            ("assistant", ["text"]),
            ("user", ["text"]),
            ("assistant", ["text"]),
            ("user", ["text"]),
        ]
        assert "old-result" in json.dumps(messages[2]) and "Thank you" in json.dumps(messages[4])
        assert client.beta.sessions.retrieve(session_id).status == "idle"
        call = script({"tool": "bash", "input": {"command": "echo new-result"}}, {"say": "Done."})
        assert results(turn(client, session_id, call)) == ["new-result"]


def test_a_question_that_was_open_can_be_answered_after_the_move(moved: tuple[ServerProcess, str, list[Json]]) -> None:
    server, _, _ = moved
    with server.client() as client:
        (waiting,) = [session for session in client.beta.sessions.list() if session.title == "waits"]
        (use,) = [event for event in history(client, waiting.id) if event.type == "agent.tool_use"]
        with client.beta.sessions.events.stream(waiting.id) as stream:
            client.beta.sessions.events.send(
                waiting.id, events=[{"type": "user.tool_confirmation", "tool_use_id": use.id, "result": "allow"}]
            )
            next(event for event in stream if event.type == "session.status_idle")
        assert results(history(client, waiting.id)) == ["confirmed"]


def test_an_imported_agent_can_be_changed_and_its_versions_read(moved: tuple[ServerProcess, str, list[Json]]) -> None:
    server, session_id, _ = moved
    with server.client() as client:
        agent_id = client.beta.sessions.retrieve(session_id).agent.id
        assert client.beta.agents.update(agent_id, version=3, description="Fourth.").version == 4
        assert client.beta.agents.retrieve(agent_id, version=2).description == "Second."
        assert [agent.version for agent in client.beta.agents.versions.list(agent_id)] == [4, 3, 2, 1]


def test_a_session_that_was_running_goes_on_by_itself(server: ServerProcess) -> None:
    with server.client() as client:
        session = new_session(client)
        with client.beta.sessions.events.stream(session.id) as stream:
            send(client, session.id, script({"say": "Half an answer", "hang": True}))
            next(event for event in stream if event.type == "span.model_request_start")
    server.kill()
    file = server.directory / "export.jsonl"
    assert corral(server, "export", str(file)).returncode == 0
    (server.directory / "data").rename(server.directory / "old-data")
    done = corral(server, "import", str(file))
    assert "go on when the server starts: 1" in done.stdout, done.stderr
    server.start()
    with server.client() as client:
        with client.beta.sessions.events.stream(session.id) as stream:
            client.beta.sessions.events.send(session.id, events=[{"type": "user.interrupt"}])
            next(event for event in stream if event.type == "session.status_idle")
        requests = [event for event in history(client, session.id) if event.type.startswith("span.model_request")]
        assert [event.type.rpartition("_")[2] for event in requests][:2] == ["start", "end"]
        assert requests[1].type == "span.model_request_end" and requests[1].is_error
        (said,) = [event for event in turn(client, session.id, "Hello?") if event.type == "agent.message"]
        assert "Hello?" in said.to_json()


def test_a_bad_last_line_leaves_nothing_behind(server: ServerProcess, tmp_path: Path) -> None:
    with server.client() as client:
        new_session(client)
        lines = [json.dumps(line) for line in dump(client)]
    server.stop()
    (server.directory / "data").rename(server.directory / "old-data")
    file = tmp_path / "dump.jsonl"
    for spoil in ("not json", "{}"):
        file.write_text("\n".join([*lines, spoil]), encoding="utf-8")
        done = corral(server, "import", str(file))
        assert done.returncode == 1
        assert f"line {len(lines) + 1}: " in done.stderr and "nothing was imported" in done.stderr
        assert corral(server, "export").stdout == ""


@pytest.mark.requirement("F125", "F033")
def test_vaults_come_along_when_asked_and_their_secrets_work(server: ServerProcess) -> None:
    token = "planted-token-5Lq"
    file = server.directory / "export.jsonl"
    with mcp_host() as host:
        host.token = token
        with server.client() as client:
            vault_id = client.beta.vaults.create(display_name="moving").id
            auth: Any = {"type": "static_bearer", "mcp_server_url": host.url, "token": token}
            credential_id = client.beta.vaults.credentials.create(vault_id, auth=auth).id
            session_id = session_on(client, host.url, vault_ids=[vault_id])
            seen = turn(client, session_id, script(call("add", a=1, b=1), {"say": "Two."}))
            assert "agent.mcp_tool_result" in [event.type for event in seen]
        server.stop()
        redacted = corral(server, "export")
        assert redacted.returncode == 0 and vault_id in redacted.stdout
        assert token not in redacted.stdout and credential_id not in redacted.stdout
        done = corral(server, "export", "--with-secrets", str(file))
        assert done.returncode == 0 and "secrets of all its vaults in clear" in done.stderr.replace("\n", " ")
        assert token in file.read_text(encoding="utf-8") and token not in done.stderr
        assert file.stat().st_mode & 0o777 == 0o600
        (server.directory / "data").rename(server.directory / "old-data")
        (server.directory / "redacted.jsonl").write_text(redacted.stdout, encoding="utf-8")
        without = corral(server, "import", str(server.directory / "redacted.jsonl"))
        assert without.returncode == 0, without.stderr
        assert f"Vaults that sessions name and that are not here: {vault_id}." in without.stdout.replace("\n", " ")
        done = corral(server, "import", str(file))
        assert done.returncode == 0, done.stderr
        assert "1 sessions." in done.stdout and "1 vaults, 1 credentials" in done.stdout
        assert "not here" not in done.stdout
        server.start()
        host.seen.clear()
        with server.client() as client:
            seen = turn(client, session_id, script(call("add", a=2, b=2), {"say": "Four."}))
            assert [texts(event) for event in seen if event.type == "agent.mcp_tool_result"] == ["4"]
            assert set(host.seen) == {f"Bearer {token}"}
    held = [path for path in (server.directory / "data").rglob("*") if path.is_file()]
    assert not [path for path in held if token.encode() in path.read_bytes()]
