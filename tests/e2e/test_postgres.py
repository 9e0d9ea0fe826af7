"""A real server on a real PostgreSQL: turns, restarts, moving in from SQLite, and what it says when it cannot start."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Generator, Sequence
from pathlib import Path

import anyio.from_thread
import pytest

from tests import postgres_server
from tests.e2e.conftest import API_KEY, ServerProcess, serving
from tests.e2e.sessions import bash, history, new_session, results, script, send, texts, turn, wait_until_idle

pytestmark = pytest.mark.skipif(postgres_server.unavailable() is not None, reason=str(postgres_server.unavailable()))

SECONDS_MAX = 60


@pytest.fixture
def url() -> Generator[str]:
    with anyio.from_thread.start_blocking_portal() as portal:
        with portal.wrap_async_context_manager(postgres_server.database()) as made:
            yield made


@pytest.fixture
def server(url: str) -> Generator[ServerProcess]:
    with serving(database=url) as running:
        yield running


def corral(data_dir: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "HOME": str(data_dir), "CORRAL_API_KEY": API_KEY}
    command = [sys.executable, "-m", "corral", *arguments, "--data-dir", str(data_dir)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS_MAX)


def lines_of(export: Path) -> list[str]:
    """The lines, but for how old each session was at that moment."""
    return [re.sub(r'"duration_seconds":[0-9.]+', "", line) for line in export.read_text(encoding="utf-8").splitlines()]


def test_a_server_on_postgres_runs_turns_and_goes_on_after_it_was_killed(server: ServerProcess) -> None:
    gate = "while [ ! -e go ]; do sleep 0.02; done; echo finished"
    with server.client() as client:
        session = new_session(client)
        assert results(turn(client, session.id, script(bash("echo first"), {"say": "One."}))) == ["first"]
        with client.beta.sessions.events.stream(session.id) as stream:
            send(client, session.id, script(bash(gate), {"say": "Two."}))
            next(event for event in stream if event.type == "agent.tool_use")
    server.kill()
    server.start()
    (server.workspace(session.id) / "go").touch()
    with server.client() as client:
        events = wait_until_idle(client, session.id)
        assert results(events) == ["first", "finished"]
        assert [texts(event) for event in events if event.type == "agent.message"] == ["One.", "Two."]
        assert [event.id for event in history(client, session.id)] == [event.id for event in events]


def test_a_second_server_on_one_database_is_refused_in_one_sentence(
    server: ServerProcess, url: str, tmp_path: Path
) -> None:
    second = corral(tmp_path, "serve", "--port", "0", "--sandbox", "process", "--database", url)
    assert second.returncode == 1
    assert "Another server advances the sessions of this database" in second.stderr
    with server.client() as client:
        assert client.beta.sessions.list().data == []


def test_what_moves_from_sqlite_to_postgres_is_exported_as_it_was(url: str, tmp_path: Path) -> None:
    with serving() as old:
        with old.client() as client:
            for number in range(3):
                turn(client, new_session(client).id, script(bash(f"echo {number}"), {"say": "Done."}))
            waiting = new_session(
                client, {"type": "custom", "name": "w", "description": "d", "input_schema": {"type": "object"}}
            )
            turn(client, waiting.id, script({"tool": "w", "input": {}}))
        old.stop()
        exported = corral(old.directory / "data", "export", str(tmp_path / "sqlite.jsonl"))
        assert exported.returncode == 0, exported.stderr
    new = tmp_path / "new"
    for arguments in (["import", str(tmp_path / "sqlite.jsonl")], ["export", str(tmp_path / "postgres.jsonl")]):
        done = corral(new, *arguments, "--database", url)
        assert done.returncode == 0, done.stderr
    assert lines_of(tmp_path / "postgres.jsonl") == lines_of(tmp_path / "sqlite.jsonl")
    again = corral(new, "import", str(tmp_path / "sqlite.jsonl"), "--database", url)
    assert "Here already, and the same" in again.stdout


def test_migrate_prepares_a_database_once(url: str, tmp_path: Path) -> None:
    for database in (url, f"sqlite:///{tmp_path}/deep/corral.db"):
        first, second = (corral(tmp_path, "migrate", "--database", database) for _ in range(2))
        assert "was brought from schema 0 to schema" in first.stdout.replace("\n", " "), first.stderr
        assert "is up to date" in second.stdout.replace("\n", " ")
        assert postgres_server.ESCAPED_PASSWORD not in first.stdout + second.stdout


@pytest.mark.parametrize("command", [["serve", "--port", "0", "--sandbox", "process"], ["migrate"]])
@pytest.mark.parametrize(
    ("database", "said"),
    [
        ("postgresql://corral:hunter2@127.0.0.1:1/corral", "No PostgreSQL server answers"),
        ("postgresql://corral:hunter2@[bad/corral", "cannot be used"),
        ("mysql://corral:hunter2@127.0.0.1/corral", "names no store"),
        ("/var/lib/corral.db", "names no store"),
    ],
)
def test_a_database_that_cannot_be_had_is_one_sentence(
    tmp_path: Path, command: Sequence[str], database: str, said: str
) -> None:
    done = corral(tmp_path / "data", *command, "--database", database)
    assert done.returncode == 1
    assert said in done.stderr.replace("\n", " ") and "Traceback" not in done.stderr
    assert "hunter2" not in done.stderr + done.stdout
    assert not (tmp_path / "data" / "api_key").exists()


def test_a_schema_of_a_newer_program_is_refused_and_left_alone(url: str, tmp_path: Path) -> None:
    assert corral(tmp_path, "migrate", "--database", url).returncode == 0
    asyncio.run(postgres_server.execute(url, "INSERT INTO corral_schema (version) VALUES (1000)"))
    for arguments in (["migrate"], ["serve", "--port", "0", "--sandbox", "process"]):
        done = corral(tmp_path, *arguments, "--database", url)
        assert done.returncode == 1 and "newer Corral" in done.stderr.replace("\n", " ")
