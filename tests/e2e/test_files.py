"""Files through a real server and its sandboxes: given to an agent, shown to a model, and left for the client."""

from __future__ import annotations

import base64
import json
import os
import time
from pathlib import Path
from typing import Any

import anthropic
import pytest
from anthropic import Anthropic

from tests.e2e.conftest import ServerProcess
from tests.e2e.sessions import bash, message, new_session, reading, results, script, send, texts, turn

UPLOADS, OUTPUTS = "/mnt/session/uploads", "/mnt/session/outputs"
PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256))
BIG_BYTES = 200 * 1024 * 1024
"""More than all the memory that a server has."""


def upload(client: Anthropic, data: bytes, name: str = "data.csv", **more: Any) -> str:
    return client.beta.files.upload(file=(name, data), **more).id


def mount(file_id: str, path: str | None = None) -> Any:
    return {"type": "file", "file_id": file_id, **({} if path is None else {"mount_path": path})}


def ran(client: Anthropic, session_id: str, *commands: str) -> list[str]:
    """What these commands print, run by the agent one after another."""
    return results(turn(client, session_id, script(*map(bash, commands))))


def outputs(client: Anthropic, session_id: str) -> dict[str, bytes]:
    """All outputs, downloaded."""
    files = client.beta.files.list(scope_id=session_id)
    return {file.filename: client.beta.files.download(file.id).read() for file in files}


@pytest.mark.requirement("F113")
def test_an_agent_reads_its_files_and_cannot_change_them(client: Anthropic) -> None:
    file_id = upload(client, b"a,b\n1,2\n")
    session = new_session(client, resources=[mount(file_id), mount(file_id, "/in/same.csv")])
    read, change, made = ran(
        client,
        session.id,
        f"cat {UPLOADS}/{file_id} {UPLOADS}/in/same.csv",
        f"echo x > {UPLOADS}/in/same.csv",
        f"touch {UPLOADS}/new",
    )
    assert read.split() == ["a,b", "1,2"] * 2
    assert "Read-only" in change and "Read-only" in made


def test_the_file_tools_read_mounted_files(client: Anthropic) -> None:
    session = new_session(client, resources=[mount(upload(client, b"alpha\nbeta\n"), "/words.txt")])
    read = {"tool": "read", "input": {"file_path": f"{UPLOADS}/words.txt"}}
    found = {"tool": "grep", "input": {"pattern": "beta", "path": UPLOADS}}
    first, second = results(turn(client, session.id, script(read, found)))
    assert "alpha" in first
    assert "words.txt" in second


@pytest.mark.requirement("F114")
def test_resources_that_come_and_go_are_seen_at_the_next_call(client: Anthropic) -> None:
    session = new_session(client)
    assert ran(client, session.id, f"ls {UPLOADS} | wc -l") == ["0"]
    resources = client.beta.sessions.resources
    added = resources.add(session.id, type="file", file_id=upload(client, b"later"), mount_path="/later.txt")
    assert ran(client, session.id, f"cat {UPLOADS}/later.txt") == ["later"]
    resources.delete(added.id, session_id=session.id)
    assert ran(client, session.id, f"ls {UPLOADS} | wc -l") == ["0"]


def test_a_file_added_in_the_middle_of_a_turn_is_there_for_the_next_call(
    live: ServerProcess, client: Anthropic
) -> None:
    ask = [{"type": "agent_toolset_20260401", "configs": [_asked("bash")]}]
    session = new_session(client, *ask)
    with reading(client, session.id) as reader:
        send(client, session.id, script(bash(f"cat {UPLOADS}/now.txt")))
        stop = reader.idle()
        file_id = upload(client, b"just now")
        client.beta.sessions.resources.add(session.id, type="file", file_id=file_id, mount_path="now.txt")
        allow: Any = {"type": "user.tool_confirmation", "tool_use_id": stop.event_ids[0], "result": "allow"}
        client.beta.sessions.events.send(session.id, events=[allow])
        assert texts(reader.until("agent.tool_result")) == "just now"
        reader.idle()


def _asked(name: str) -> Any:
    return {"name": name, "permission_policy": {"type": "always_ask"}}


def test_mounted_files_outlive_their_upload_and_a_restart(server: ServerProcess) -> None:
    with server.client() as client:
        file_id = upload(client, b"kept")
        session = new_session(client, resources=[mount(file_id, "/kept.txt")])
        client.beta.files.delete(file_id)
        assert ran(client, session.id, f"cat {UPLOADS}/kept.txt") == ["kept"]
    server.kill()
    server.start()
    with server.client() as client:
        kept, _ = ran(client, session.id, f"cat {UPLOADS}/kept.txt", f"echo out > {OUTPUTS}/o.txt")
        assert kept == "kept"
        assert outputs(client, session.id) == {"data.csv": b"kept", "o.txt": b"out\n"}, "its copies and its outputs"


# ----------------------------------------------------------------------------------------------------- outputs


@pytest.mark.requirement("F118")
def test_outputs_are_listed_within_two_seconds_and_downloaded(client: Anthropic) -> None:
    session = new_session(client)
    ran(client, session.id, f"echo report > {OUTPUTS}/report.md; mkdir {OUTPUTS}/sub; echo 1 > {OUTPUTS}/sub/n.csv")
    asked = time.monotonic()
    assert outputs(client, session.id) == {"report.md": b"report\n", "n.csv": b"1\n"}
    assert time.monotonic() - asked < 2
    assert all(file.downloadable for file in client.beta.files.list(scope_id=session.id))


def test_outputs_stay_when_the_sandbox_goes_on_and_go_with_the_session(client: Anthropic) -> None:
    session = new_session(client)
    ran(client, session.id, f"echo one > {OUTPUTS}/a.txt")
    (first,) = client.beta.files.list(scope_id=session.id)
    ran(client, session.id, "echo unrelated")
    assert [file.id for file in client.beta.files.list(scope_id=session.id)] == [first.id]
    client.beta.sessions.delete(session.id)
    with pytest.raises(anthropic.NotFoundError):
        client.beta.files.download(first.id)


def test_a_hostile_sandbox_gives_nothing_of_the_host_away(client: Anthropic) -> None:
    session = new_session(client)
    tricks = "ln -s /etc/passwd passwd; ln -s /proc/1/environ env; ln -s ../../../data data; mkfifo pipe; echo ok > ok"
    ran(client, session.id, f"cd {OUTPUTS}; {tricks}; mv ok $'new\\nline'; rmdir {OUTPUTS}; mv {OUTPUTS} {OUTPUTS}2")
    assert outputs(client, session.id) == {"new_line": b"ok\n"}


def test_an_output_of_one_session_is_an_input_of_the_next(client: Anthropic) -> None:
    first = new_session(client)
    ran(client, first.id, f"echo passed on > {OUTPUTS}/baton.txt")
    (baton,) = client.beta.files.list(scope_id=first.id)
    second = new_session(client, resources=[mount(baton.id, "/baton.txt")])
    assert ran(client, second.id, f"cat {UPLOADS}/baton.txt") == ["passed on"]


def test_large_files_pass_both_ways_without_being_held_in_memory(server: ServerProcess) -> None:
    with server.client() as client:
        session = new_session(client)
        ran(client, session.id, "true")
        data = os.urandom(1024 * 1024) * (BIG_BYTES // (1024 * 1024))
        file_id = upload(client, data, "big.bin")
        client.beta.sessions.resources.add(session.id, type="file", file_id=file_id, mount_path="big.bin")
        ran(client, session.id, f"cp {UPLOADS}/big.bin {OUTPUTS}/copy.bin")
        files = {file.filename: file.id for file in client.beta.files.list(scope_id=session.id)}
        assert client.beta.files.download(files["copy.bin"]).read() == data
        assert _peak_bytes(server) < BIG_BYTES


def _peak_bytes(server: ServerProcess) -> int:
    """The most memory that the server has had so far."""
    assert server.process is not None
    status = Path(f"/proc/{server.process.pid}/status").read_text(encoding="ascii")
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


# --------------------------------------------------------------------------------------- references in messages


def sent_to_model(client: Anthropic, session_id: str, *blocks: Any) -> list[Any]:
    """The blocks of the first message as the model gets them."""
    with reading(client, session_id) as reader:
        step = script({"echo": "messages"})
        client.beta.sessions.events.send(session_id, events=[message(*blocks, step)])
        said = texts(reader.until("agent.message"))
        reader.idle()
    return json.loads(said)[0]["content"]


def block(kind: str, file_id: str) -> Any:
    return {"type": kind, "source": {"type": "file", "file_id": file_id}}


@pytest.mark.requirement("F077")
def test_a_model_gets_the_bytes_of_files_that_messages_refer_to(client: Anthropic) -> None:
    image, pdf = upload(client, PNG, "p.png"), upload(client, b"%PDF-1.7", "d.pdf")
    text = upload(client, "Grüße".encode(), "t.md")
    session = new_session(client)
    document = {**block("document", pdf), "title": "T"}
    first = sent_to_model(client, session.id, block("image", image), document, block("document", text))
    assert first[0]["source"] == {"type": "base64", "media_type": "image/png", "data": base64.b64encode(PNG).decode()}
    assert first[1]["title"] == "T"
    assert base64.b64decode(first[1]["source"]["data"]) == b"%PDF-1.7"
    assert first[2]["source"] == {"type": "text", "media_type": "text/plain", "data": "Grüße"}
    again = sent_to_model(client, session.id, "and now?")
    assert again[:3] == first[:3], "history is the same bytes in every request"
    (event, *_) = client.beta.sessions.events.list(session.id, types=["user.message"])
    shown: Any = event.to_dict()
    assert shown["content"][0] == block("image", image), "the log keeps the reference"


def test_a_file_that_was_deleted_since_is_a_sentence_that_says_so(client: Anthropic) -> None:
    file_id = upload(client, b"text", "t.txt")
    session = new_session(client)
    sent_to_model(client, session.id, block("document", file_id))
    client.beta.files.delete(file_id)
    (gone, *_) = sent_to_model(client, session.id, "still there?")
    assert gone == {"type": "text", "text": f"[The file {file_id} is no longer available.]"}
