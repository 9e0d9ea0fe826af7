"""The built-in tools in a real sandbox, as the log shows them."""

from __future__ import annotations

import base64

import pytest
from anthropic import Anthropic

from tests.e2e.conftest import ServerProcess
from tests.e2e.sessions import GATE, Json, bash, new_session, open_gate, reading, results, script, send, turn

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


def call(tool: str, **arguments: object) -> dict[str, object]:
    return {"tool": tool, "input": arguments}


def ran(client: Anthropic, *calls: dict[str, object]) -> list[tuple[str, bool]]:
    """Each call's result and whether it is an error."""
    seen = turn(client, new_session(client).id, script(*calls, {"say": "Done."}))
    errors = [bool(event.is_error) for event in seen if event.type == "agent.tool_result"]
    return list(zip(results(seen), errors, strict=True))


@pytest.mark.requirement("F017")
def test_the_shell_keeps_its_place_until_it_is_restarted(client: Anthropic) -> None:
    calls = [bash("cd /tmp; WORD=kept"), bash("pwd; echo $WORD"), call("bash", restart=True), bash("pwd; echo $WORD.")]
    _, kept, _, fresh = ran(client, *calls)
    assert kept == ("/tmp\nkept", False)
    assert fresh == ("/workspace\n.", False)
    failed, slow, after = ran(
        client, bash("echo out; exit 3"), call("bash", command="sleep 30", timeout_ms=200), bash("echo on")
    )
    assert failed[1] and "out" in failed[0]
    assert slow[1] and "timed out" in slow[0].lower()
    assert after == ("on", False)


@pytest.mark.requirement("F018")
def test_files_are_read_whole_by_lines_and_as_images(live: ServerProcess, client: Anthropic) -> None:
    session = new_session(client)
    with reading(client, session.id) as reader:
        ranged = call("read", file_path="a.txt", view_range=[2, 3])
        steps: list[Json] = [*GATE, call("read", file_path="a.txt"), ranged, call("read", file_path="a.png")]
        send(client, session.id, script(*steps, call("read", file_path="none.txt"), {"say": "Done."}))
        reader.until("agent.tool_result")
        (live.workspace(session.id) / "a.txt").write_text("one\ntwo\nthree\nfour\n", encoding="utf-8")
        (live.workspace(session.id) / "a.png").write_bytes(PIXEL)
        open_gate(live, session.id)
        reader.idle()
    whole, lines, image, none = reader.of("agent.tool_result")[2:]
    assert "one" in whole.content[0].text and "four" in whole.content[0].text
    assert "two" in lines.content[0].text and "three" in lines.content[0].text and "four" not in lines.content[0].text
    assert (image.content[0].type, image.content[0].source.media_type) == ("image", "image/png")
    assert none.is_error


@pytest.mark.requirement("F019")
def test_an_edit_needs_exactly_one_match(client: Anthropic) -> None:
    edit = {"file_path": "dir/a.txt", "old_string": "a", "new_string": "b"}
    twice, unique, everywhere, shown = ran(
        client,
        call("write", file_path="dir/a.txt", content="a a c"),
        call("edit", **edit),
        call("edit", **{**edit, "old_string": "c", "new_string": "d"}),
        call("edit", **edit, replace_all=True),
        bash("cat dir/a.txt"),
    )[1:]
    assert twice[1]
    assert (unique[1], everywhere[1], shown) == (False, False, ("b b d", False))


@pytest.mark.requirement("F020")
def test_files_are_found_by_name_newest_first_and_by_content(client: Anthropic) -> None:
    make = "mkdir d; echo needle > d/old.txt; touch -d yesterday d/old.txt; echo hay > new.txt"
    found, matched, none = ran(
        client,
        bash(make),
        call("glob", pattern="**/*.txt"),
        call("grep", pattern="need.e"),
        call("grep", pattern="absent"),
    )[1:]
    assert [line.rsplit("/", 1)[-1] for line in found[0].split()] == ["new.txt", "old.txt"]
    assert "old.txt:1:needle" in matched[0]
    assert (none[1], "no matches" in none[0].lower()) == (False, True)


@pytest.mark.requirement("F024")
def test_a_result_over_a_hundred_thousand_characters_is_a_preview_and_a_file_that_the_agent_can_read(
    client: Anthropic,
) -> None:
    session = new_session(client)
    long = "for i in $(seq 20000); do echo line $i; done"
    seen = turn(client, session.id, script(bash(long), {"say": "ok"}))
    (shown,) = results(seen)
    (call,) = [event for event in seen if event.type == "agent.tool_use"]
    path = f"/home/agent/tool_results/{call.id}.txt"
    assert path in shown and "line 20000" in shown and "[output truncated" in shown and len(shown) < 6_000
    look = {"tool": "read", "input": {"file_path": path, "view_range": [500, 501]}}
    counted, lines = results(turn(client, session.id, script(bash(f"wc -c < {path}"), look, {"say": "ok"})))
    assert int(counted) > 100_000 and lines.count("line ") == 2
