"""Sandboxes that rest, seen through the API: their files survive, and nothing else of them is left."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from anthropic import Anthropic

from tests.e2e.conftest import ServerProcess, serving
from tests.e2e.sessions import bash, new_session, results, script, turn

WAIT_SECONDS_MAX = 60
RESTING = "[sandbox]\npause_seconds = 0.3\ncheckpoint_seconds = 0.6\nwarm_seconds = 3.0\nreap_seconds = 0.5\n"
OUTPUTS = "/mnt/session/outputs"


@pytest.fixture
def resting() -> Iterator[ServerProcess]:
    """A server whose sandboxes rest soon."""
    with serving(RESTING) as running:
        yield running


def ran(client: Anthropic, session_id: str, *commands: str) -> list[str]:
    events = turn(client, session_id, script(*map(bash, commands)))
    said = results(events)
    assert not any(event.is_error for event in events if event.type == "agent.tool_result"), said
    return said


def until(look: Callable[[], object], wanted: object) -> None:
    """Until this is seen, soon: what rests sends no event."""
    deadline = time.monotonic() + WAIT_SECONDS_MAX
    while (seen := look()) != wanted:
        assert time.monotonic() < deadline, seen
        threading.Event().wait(0.02)  # leave the processor to the server


def left(server: ServerProcess) -> list[Path]:
    """What is on disk of any sandbox."""
    return [path for name in ("sessions", "uids", "trash") for path in (server.sandboxes / name).glob("*")]


def blobs(server: ServerProcess) -> list[Path]:
    found = (server.directory / "data" / "blobs").rglob("*")
    return [path for path in found if path.is_file() and path.name != "lock"]


def processes(server: ServerProcess) -> set[int]:
    """All that run, below this server or left by it, but for the server itself."""
    assert server.process is not None
    found: set[int] = set()
    for place in Path("/proc").glob("[0-9]*"):
        try:
            text = (place / "cmdline").read_bytes() + (place / "environ").read_bytes()
        except OSError:
            continue
        if os.fsencode(server.directory) in text and int(place.name) != server.process.pid:
            found.add(int(place.name))
    return found


@pytest.mark.requirement("F118")
def test_files_are_there_after_the_sandbox_rested_and_the_server_was_restarted(resting: ServerProcess) -> None:
    with resting.client() as client:
        session = new_session(client)
        made = "echo kept > file; chmod 750 file; ln -s file link; touch -d 2001-02-03 file; sleep 1000 &"
        ran(client, session.id, made, f"echo report > {OUTPUTS}/report.txt")
        until(lambda: (left(resting), processes(resting)), (list[Path](), set[int]()))
        (output,) = client.beta.files.list(scope_id=session.id)
        assert client.beta.files.download(output.id).read() == b"report\n"
    assert resting.stop() == 0
    resting.start()
    with resting.client() as client:
        first, second = ran(client, session.id, "cat link; stat -c '%a %Y' file", "pgrep sleep; echo done")
        assert first.startswith("[The sandbox had rested") and first.endswith("]kept\n750 981158400")
        assert second == "done", "told once, and the process is gone"


def test_a_sandbox_that_crashed_is_reported_and_a_fresh_one_has_its_files(server: ServerProcess) -> None:
    with server.client() as client:
        session = new_session(client)
        ran(client, session.id, "echo kept > file; export COLOUR=green")
        record = server.sandboxes / "sessions" / session.id / "server" / "instance.json"
        pid = int(record.read_text(encoding="ascii").partition('"pid":')[2].partition(",")[0])
        os.kill(pid, signal.SIGKILL)
        until(lambda: Path(f"/proc/{pid}/ns").exists(), wanted=False)
        (told,) = ran(client, session.id, "cat file; echo [$COLOUR]")
        assert told.startswith("[The sandbox had stopped") and told.endswith("]kept\n[]")


@pytest.mark.parametrize("way", ["delete", "archive and delete", "delete and kill", "kill, delete"])
def test_nothing_is_left_of_sessions_that_are_deleted(resting: ServerProcess, way: str) -> None:
    with resting.client() as client:
        before = (left(resting), blobs(resting), processes(resting))
        assert before == ([], [], set())
        rested, used = new_session(client), new_session(client)
        ran(client, rested.id, "echo x > x; setsid sleep 1000 &")
        until(lambda: left(resting), [])
        assert len(blobs(resting)) == 1
        if "kill" in way:
            # What a server has stored of a sandbox and not yet referred to when it is killed stays: no other one rests.
            assert resting.stop() == 0
            text = resting.config.read_text(encoding="utf-8")
            resting.config.write_text(text.replace("checkpoint_seconds = 0.6", ""), encoding="utf-8")
            resting.start()
        ran(client, used.id, f"echo y > y; echo z > {OUTPUTS}/z; setsid sleep 1000 &")
        if way == "kill, delete":
            resting.kill()
            resting.start()
        for session in (rested, used):
            if way.startswith("archive"):
                client.beta.sessions.archive(session.id)
            client.beta.sessions.delete(session.id)
        if way.endswith("and kill"):
            resting.kill()
            resting.start()
        until(lambda: (left(resting), blobs(resting), processes(resting)), before)
