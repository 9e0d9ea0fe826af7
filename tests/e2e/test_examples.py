"""The programs in `examples/`, run as a reader would run them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.contracts.web_site import site
from tests.e2e.conftest import API_KEY, ServerProcess, serving
from tests.e2e.mcp_host import mcp_host
from tests.e2e.sessions import bash, script

EXAMPLES = Path(__file__).parents[2] / "examples"
PROGRAM_SECONDS_MAX = 120
LINES_MAX = 60


def run(server: ServerProcess, name: str, *arguments: str, typed: str = "", **variables: str) -> str:
    """What the program prints."""
    environment = {
        "PATH": os.environ["PATH"],
        "ANTHROPIC_BASE_URL": server.base_url,
        "ANTHROPIC_API_KEY": API_KEY,
        **variables,
    }
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        env=environment,
        input=typed,
        capture_output=True,
        text=True,
        timeout=PROGRAM_SECONDS_MAX,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("program", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_a_program_is_short_says_what_it_needs_and_is_run_here(program: Path) -> None:
    text = program.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LINES_MAX
    assert "ANTHROPIC_BASE_URL" in text and "ANTHROPIC_API_KEY" in text
    tests = Path(__file__).parent
    assert any(program.name in path.read_text(encoding="utf-8") for path in tests.glob("test_*.py"))


@pytest.mark.requirement("F090", "F091")
def test_text_is_shown_as_it_is_written(live: ServerProcess) -> None:
    task = script([{"think": "How to begin?"}, {"say": "Once upon a time there was an end.", "pieces": 8}])
    printed = run(live, "streaming_deltas.py", task).splitlines()
    assert printed == ["(thinking ...)", "Once upon a time there was an end.", "(8 words)", "[idle: end_turn]"]


@pytest.mark.requirement("F026", "F027", "F079")
def test_a_person_allows_one_command_and_denies_another(live: ServerProcess) -> None:
    task = script({"parallel": [bash("echo first-ran"), bash("echo second-ran")]}, {"say": "So be it."})
    printed = run(live, "human_approval.py", task, typed="y\nno\n")
    assert printed.count("The agent wants to run:") == 2
    assert "\nfirst-ran\n" in printed and "\nsecond-ran\n" not in printed
    assert "The user does not want this command." in printed
    assert printed.endswith("So be it.\n[idle: end_turn]\n")


@pytest.mark.requirement("F081")
def test_a_function_of_the_program_answers_the_agent(live: ServerProcess) -> None:
    calls = [{"tool": "temperature", "input": {"city": city}} for city in ("Bergen", "Atlantis")]
    printed = run(live, "custom_tool.py", script({"parallel": calls}, {"echo": "prompt"}))
    assert "temperature({'city': 'Bergen'}) -> ok" in printed
    assert "temperature({'city': 'Atlantis'}) -> error" in printed
    assert "no thermometer in Atlantis" in printed


@pytest.mark.requirement("F083", "F084")
def test_an_agent_is_stopped_and_does_something_else(live: ServerProcess) -> None:
    task = script(bash("while :; do sleep 0.1; done"), {"say": "Never said."})
    printed = run(live, "interrupt_and_redirect.py", task, script({"say": "This instead."}))
    assert "Stop! Something else." in printed
    assert "interrupted" in printed and "Never said." not in printed
    assert printed.endswith("This instead.\n[idle: end_turn]\n")


@pytest.mark.requirement("F141", "F085")
def test_a_budget_is_reached_and_raised(live: ServerProcess) -> None:
    costly = {"tool": "glob", "input": {"pattern": "*"}, "usage": {"output_tokens": 4_000}}
    printed = run(live, "budget.py", script([costly], {"say": "Where was I?"}))
    assert printed.index("[the budget is reached") < printed.index("Where was I?")
    assert printed.count(" tokens written]") == 2
    assert printed.endswith("[idle: end_turn]\n")


@pytest.mark.requirement("F030", "F033")
def test_a_tool_of_an_mcp_server_is_used_with_a_token_from_a_vault(live: ServerProcess) -> None:
    task = script({"tool": "mcp__example__add", "input": {"a": 19, "b": 23}}, {"say": "That was easy."})
    with mcp_host() as host:
        host.token = "token-of-the-example"
        printed = run(live, "mcp_with_vault.py", task, MCP_SERVER_URL=host.url, MCP_TOKEN=host.token)
        assert set(host.seen) == {"Bearer token-of-the-example"}
    assert printed.splitlines() == ["example: add({'a': 19, 'b': 23})", "42", "That was easy.", "[idle: end_turn]"]


@pytest.mark.requirement("F022", "F023")
def test_the_web_is_read_where_the_agent_may() -> None:
    with (
        site() as web,
        serving('[web]\nallowed_private = ["127.0.0.1"]\nhosts = { "site.example" = "127.0.0.1" }\n') as server,
    ):
        place = f"http://site.example:{web.port}"
        steps = [{"tool": "web_fetch", "input": {"url": f"{place}{path}"}} for path in ("/", "/more")]
        elsewhere = {"tool": "web_fetch", "input": {"url": "http://other.example/"}}
        printed = run(server, "web_research.py", "site.example", script(*steps, elsewhere, {"say": "That is all."}))
    assert "web_fetch: " in printed and "# Heading" in printed and "  -> more\n" in printed
    assert "error: url_not_allowed" in printed
    assert printed.endswith("That is all.\n[idle: end_turn]\n")
