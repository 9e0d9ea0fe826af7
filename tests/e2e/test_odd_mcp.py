"""MCP servers that are broken, slow or hostile: bounded, said clearly, nothing leaked, and the session goes on."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Iterator

import pytest
from anthropic import Anthropic

from tests.e2e.conftest import ServerProcess, serving
from tests.e2e.mcp_host import mcp_host
from tests.e2e.odd_mcp import Oddity, OddServer, flowing, odd_server, resulting, saying, silent, slamming, tool
from tests.e2e.sessions import Json, Step, history, reading, script, send, texts
from tests.e2e.test_mcp import call, session_on

TOKEN = "token-that-must-not-travel"
IMPATIENT = """
[mcp]
connect_seconds_max = 4.0
call_seconds_max = 4.0
denied = ["10.0.0.0/8", "169.254.0.0/16", "127.6.6.0/24"]
"""
EVENTS = "text/event-stream"
NOISE = (
    b'data: {"jsonrpc": "2.0", "method": "notifications/progress", "params": {"progressToken": 9, "progress": 1}}\n\n'
)


@pytest.fixture(scope="module")
def impatient() -> Iterator[ServerProcess]:
    with serving(IMPATIENT) as running:
        yield running


@pytest.fixture
def client(impatient: ServerProcess) -> Iterator[Anthropic]:
    with impatient.client() as connected:
        yield connected


@pytest.fixture
def odd() -> Iterator[OddServer]:
    with odd_server() as running:
        yield running


def with_token(client: Anthropic, url: str) -> str:
    """A session whose vault has a token for the server."""
    vault_id = client.beta.vaults.create(display_name="odd").id
    auth: Json = {"type": "static_bearer", "mcp_server_url": url, "token": TOKEN}
    client.beta.vaults.credentials.create(vault_id, auth=auth)
    return session_on(client, url, vault_ids=[vault_id])


def turn(client: Anthropic, session_id: str, *steps: Step) -> tuple[list[str], list[Json]]:
    """Messages of errors and results of tools in a turn that ends well."""
    with reading(client, session_id) as reader:
        send(client, session_id, script(*steps, {"say": "I went on."}))
        assert reader.idle().type == "end_turn"
    assert texts(reader.of("agent.message")[-1]) == "I went on."
    assert TOKEN not in str(history(client, session_id))
    errors = [event.error for event in reader.of("session.error")]
    assert {error.type for error in errors} <= {"mcp_connection_failed_error"}
    return [error.message for error in errors], list(reader.of("agent.mcp_tool_result"))


UNUSABLE: dict[str, tuple[str, Oddity]] = {
    "web page": ("initialize", saying(b"<html>Hello</html>", kind="text/html")),
    "no type": ("initialize", saying(b"Hello", kind="")),
    "garbage": ("initialize", saying(b'{"jsonrpc": "2.0", "id": ')),
    "other JSON": ("initialize", saying(b'["cake"]')),
    "odd hello": ("initialize", resulting({"protocolVersion": 7})),
    "500": ("initialize", saying(b"down", status=500)),
    "says nothing": ("initialize", silent),
    "endless comments": ("initialize", flowing(EVENTS, b": still here\n\n")),
    "endless notices": ("initialize", flowing(EVENTS, NOISE)),
    "endless line": ("initialize", flowing(EVENTS, b"x" * 65_536, 2_000)),
    "100 MB": ("initialize", flowing("application/json", b" " * 1_000_000, 100)),
    "compressed": ("initialize", saying(gzip.compress(b" " * 50_000_000), headers={"content-encoding": "gzip"})),
    "list of nothing": ("tools/list", silent),
    "list is no list": ("tools/list", resulting({"tools": "many"})),
    "list is 500": ("tools/list", saying(b"down", status=500)),
    "list too deep": ("tools/list", saying(b'{"jsonrpc":"2.0","id":2,"result":' + b"[" * 100_000)),
}


@pytest.mark.requirement("F032")
@pytest.mark.parametrize("case", UNUSABLE)
def test_a_server_that_cannot_be_used_is_an_event(client: Anthropic, odd: OddServer, case: str) -> None:
    method, oddity = UNUSABLE[case]
    odd.odd[method] = oddity
    session_id = with_token(client, odd.url)
    (said,), _ = turn(client, session_id)
    assert said.startswith("The MCP server `tests` ")
    assert len(said) < 500
    odd.odd.clear()
    errors, (result,) = turn(client, session_id, call("good"))
    assert (errors, texts(result)) == ([], "well done")


BROKEN_CALLS: dict[str, Oddity] = {
    "web page": saying(b"<html>Hello</html>", kind="text/html"),
    "garbage": saying(b"{{{{"),
    "500": saying(b"down", status=500),
    "404": saying(b"who?", status=404),
    "says nothing": silent,
    "endless notices": flowing(EVENTS, NOISE),
    "stream ends": flowing(EVENTS, NOISE, 3),
    "100 MB": flowing("application/json", b" " * 1_000_000, 100),
    "100 MB event": flowing(EVENTS, b"x" * 1_000_000, 100),
    "odd result": resulting({"content": "text"}),
    "half a million texts": resulting({"content": [{"type": "text", "text": ""}] * 500_000}),
    "a million texts": resulting({"content": [], "structuredContent": {"x": [""] * 1_000_000}}),
}


@pytest.mark.requirement("F030", "F032")
@pytest.mark.parametrize("case", BROKEN_CALLS)
def test_a_call_that_breaks_is_an_error_result(client: Anthropic, odd: OddServer, case: str) -> None:
    session_id = with_token(client, odd.url)
    odd.odd["tools/call"] = BROKEN_CALLS[case]
    _, (result,) = turn(client, session_id, call("good"))
    assert result.is_error
    assert "`tests`" in texts(result)
    odd.odd.clear()
    errors, (result,) = turn(client, session_id, call("good"))
    assert (errors, texts(result), result.is_error) == ([], "well done", False)


@pytest.mark.requirement("F030")
def test_a_token_that_the_server_repeats_is_taken_out(
    client: Anthropic, impatient: ServerProcess, odd: OddServer
) -> None:
    session_id = with_token(client, odd.url)
    odd.tools = [tool("good", description=f"Use {TOKEN}.")]
    odd.odd["tools/call"] = resulting({"content": [{"type": "text", "text": f"You are {TOKEN}!"}]})
    _, (prompt, result) = turn(client, session_id, call("good"), call("good"))
    assert texts(result) == texts(prompt) == "You are [redacted]!"
    error = {"code": -32000, "message": f"not you, Bearer {TOKEN}"}
    odd.odd["tools/call"] = saying(json.dumps({"jsonrpc": "2.0", "id": 1, "error": error}).encode(), status=400)
    turn(client, session_id, call("good"))
    odd.odd["tools/call"] = saying(f'{{"jsonrpc": "2.0", "id": "{TOKEN}", "result": ["{TOKEN}"]'.encode())
    turn(client, session_id, call("good"))
    odd.odd["tools/call"] = resulting({"content": [{"type": TOKEN}]})
    turn(client, session_id, call("good"))
    assert TOKEN not in (impatient.directory / "server.log").read_text(encoding="utf-8")


@pytest.mark.requirement("F030", "F031")
@pytest.mark.parametrize("case", ["10,000 tools", "endless pages", "large and deep", "names"])
def test_what_is_too_much_is_left_out_and_the_rest_is_used(client: Anthropic, odd: OddServer, case: str) -> None:
    deep: dict[str, object] = {"type": "object"}
    for _ in range(45):
        deep = {"type": "object", "properties": {"in": deep}}
    huge = {"type": "object", "properties": {"x": {"description": "x" * 1_000_000}}}
    good = tool("good", description="d" * 1_000_000)
    if case == "10,000 tools":
        odd.tools = [good, *(tool(f"tool_{number}") for number in range(10_000))]
    elif case == "endless pages":
        odd.odd["tools/list"] = resulting({"tools": [good], "nextCursor": "more"})
    elif case == "large and deep":
        odd.tools = [tool("deep", inputSchema=deep), tool("huge", inputSchema=huge), good]
    else:
        names = ["a b", "a_b", "a.b", "good", "ctrl\x00\x1b[2J", "", "n" * 1_000, "tools__x", "ünïcode"]
        odd.tools = [good, *(tool(name) for name in names)]
    session_id = with_token(client, odd.url)
    errors, (result,) = turn(client, session_id, [{"echo": "prompt"}, call("good")])
    assert (errors, texts(result)) == ([], "well done")
    prompt = next(texts(event) for event in history(client, session_id) if event.type == "agent.message")
    offered = json.loads(prompt)["tools"]
    assert "mcp__tests__good" in offered
    assert len(offered) == len(set(offered)) <= 500
    if case == "large and deep":
        assert offered == ["mcp__tests__good"]
    if case == "names":
        assert len(offered) == 6


@pytest.mark.requirement("F032", "F033")
@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_token_does_not_follow_a_redirect_elsewhere(client: Anthropic, odd: OddServer, status: int) -> None:
    with mcp_host() as elsewhere:
        moved = saying(b"", status=status, headers={"location": elsewhere.url})
        odd.odd = dict.fromkeys(("initialize", "server/discover"), moved)
        errors, _ = turn(client, with_token(client, odd.url))
        assert len(errors) == 1
        assert elsewhere.seen == []
    metadata = saying(b"", status=status, headers={"location": "http://169.254.169.254/latest/meta-data/"})
    odd.odd = dict.fromkeys(("initialize", "server/discover"), metadata)
    errors, _ = turn(client, with_token(client, odd.url))
    assert len(errors) == 1


@pytest.mark.requirement("F032")
@pytest.mark.parametrize(
    "url",
    ["http://nobody.invalid/mcp", "http://10.1.2.3/mcp", "http://127.6.6.6:9/mcp", "http://[::ffff:10.1.2.3]/mcp"],
)
def test_places_that_are_not_or_are_denied(client: Anthropic, url: str) -> None:
    (said,), _ = turn(client, with_token(client, url))
    assert ("name cannot be resolved" if "invalid" in url else "`denied` under `[mcp]`") in said


@pytest.mark.requirement("F032")
def test_a_connection_that_is_reset(client: Anthropic) -> None:
    with slamming() as url:
        (said,), _ = turn(client, with_token(client, url))
    assert "could not be reached" in said


@pytest.mark.requirement("F030", "F032")
def test_a_schema_that_takes_for_ever_to_check_stops_nobody(client: Anthropic, odd: OddServer) -> None:
    endless, wrong = ({"type": "object", "properties": {"x": each}} for each in ({"pattern": "^(a+)+$"}, {"type": "?"}))
    odd.tools = [tool("good", outputSchema=endless), tool("other", outputSchema=wrong)]
    said = {"content": [{"type": "text", "text": "well done"}], "structuredContent": {"x": "a" * 100 + "!"}}
    odd.odd["tools/call"] = resulting(said)
    _, (result, other) = turn(client, with_token(client, odd.url), call("good"), call("other"))
    assert (texts(result), texts(other)) == ("well done", "well done")


@pytest.mark.requirement("F030")
def test_of_a_token_not_even_a_part_comes_back(client: Anthropic, odd: OddServer) -> None:
    """Reasons are cut to a length, and schemas and names of tools are shown to the model."""
    session_id = with_token(client, odd.url)
    odd.tools = [tool("good", inputSchema={"type": "object", "title": f"for {TOKEN}"}), tool(f"for_{TOKEN}")]
    for before in range(240, 300, 10):
        error = {"code": -32000, "message": "x" * before + TOKEN}
        odd.odd["tools/call"] = saying(json.dumps({"jsonrpc": "2.0", "id": 1, "error": error}).encode(), status=400)
        turn(client, session_id, [{"echo": "prompt"}, call("good")] if before == 240 else call("good"))
    assert TOKEN[:7] not in str(history(client, session_id))


@pytest.mark.requirement("F030", "F032")
def test_a_picture_that_is_none_is_not_shown_to_models(client: Anthropic, odd: OddServer) -> None:
    """A provider that cannot read one picture refuses the conversation, for ever."""
    png = base64.b64encode(b"\x89PNG\r\n\x1a\n and more").decode()
    content = [
        {"type": "image", "mimeType": "image/png", "data": "no base64 at all"},
        {"type": "image", "mimeType": "image/png", "data": base64.b64encode(b"<html>").decode()},
        {"type": "image", "mimeType": "image/png", "data": ""},
        {"type": "image", "mimeType": "image/png", "data": png + "A" * 12_000_000},
        {"type": "resource", "resource": {"uri": "a://b", "mimeType": "application/pdf", "blob": "JVBE!"}},
        {"type": "image", "mimeType": "image/webp", "data": png},
    ]
    odd.odd["tools/call"] = resulting({"content": content})
    _, (result,) = turn(client, with_token(client, odd.url), call("good"))
    assert [block.type for block in result.content] == ["text"] * 5 + ["image"]
    assert result.content[5].source.media_type == "image/png"
