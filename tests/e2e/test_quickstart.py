"""The published quickstart, saved as a file and run with nothing but where it connects."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

from tests.e2e.conftest import API_KEY, ServerProcess
from tests.e2e.sessions import script

PROGRAM = """
from anthropic import Anthropic

client = Anthropic()

agent = client.beta.agents.create(
    name="Coding Assistant",
    model="claude-opus-4-8",
    system="You are a helpful coding assistant.",
    tools=[{"type": "agent_toolset_20260401"}],
)
environment = client.beta.environments.create(
    name="quickstart-env",
    config={"type": "cloud", "networking": {"type": "unrestricted"}},
)
session = client.beta.sessions.create(agent=agent.id, environment_id=environment.id, title="Quickstart session")

with client.beta.sessions.events.stream(session.id) as stream:
    client.beta.sessions.events.send(
        session.id,
        events=[{"type": "user.message", "content": [{"type": "text", "text": TASK}]}],
    )
    for event in stream:
        match event.type:
            case "agent.message":
                for block in event.content:
                    print(block.text, end="")
            case "agent.tool_use":
                print(f"\\n[Using tool: {event.name}]")
            case "session.status_idle":
                print("\\n\\nAgent finished.")
                break
"""


def run_program(server: ServerProcess, path: Path, *arguments: str) -> str:
    environment = {"ANTHROPIC_BASE_URL": server.base_url, "ANTHROPIC_API_KEY": API_KEY}
    done = subprocess.run(
        [sys.executable, str(path), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_published_program_prints_text_tool_calls_and_stops(server: ServerProcess, tmp_path: Path) -> None:
    task = script(
        [{"say": "I will write it. "}, {"tool": "write", "input": {"file_path": "hi.py", "content": "print(6 * 7)"}}],
        {"tool": "bash", "input": {"command": "python3 hi.py > out.txt; cat out.txt"}},
        {"say": "It printed 42."},
    )
    program = tmp_path / "quickstart.py"
    program.write_text(f"TASK = {task!r}\n" + textwrap.dedent(PROGRAM), encoding="utf-8")
    printed = run_program(server, program)
    assert "I will write it." in printed
    assert printed.index("[Using tool: write]") < printed.index("[Using tool: bash]") < printed.index("It printed 42.")
    assert printed.rstrip().endswith("Agent finished.")
    with server.client() as client:
        (session,) = client.beta.sessions.list()
    assert (server.workspace(session.id) / "out.txt").read_text(encoding="utf-8") == "42\n"


def test_the_example_in_the_repository_runs(server: ServerProcess) -> None:
    example = Path(__file__).parents[2] / "examples" / "quickstart.py"
    task = script({"tool": "bash", "input": {"command": "echo from-the-sandbox"}}, {"say": "Done it."})
    printed = run_program(server, example, task)
    assert "from-the-sandbox" in printed
    assert printed.rstrip().endswith("[idle: end_turn]")
