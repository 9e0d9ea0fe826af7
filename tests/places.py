"""Directories for the sandboxes of tests.

The programs that sandboxes see are copied and compiled when a server starts in a new directory: most of what such a
start costs. Here that happens once, and each test gets links to the copies.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import threading
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import anyio

from corral.config_sections import SandboxSettings
from corral.errors import MachineUnfit
from corral.sandboxes.bubblewrap import BubblewrapSandboxes
from corral.sandboxes.directory import remove_tree
from corral.sandboxes.process import ProcessSandboxes

_staging = threading.Lock()
BACKENDS = {"bubblewrap": BubblewrapSandboxes, "process": ProcessSandboxes}


@contextmanager
def open_place() -> Generator[Path]:
    """A directory that a sandbox's own user can get to, which pytest's are not."""
    path = Path(tempfile.mkdtemp(prefix="corral-test-"))
    path.chmod(0o755)
    yield path
    remove_tree(path)


def stage(sandboxes: Path, backend: str = "bubblewrap") -> None:
    """Let a server whose sandboxes are kept there find what it would otherwise make when it starts."""
    if backend not in BACKENDS or (sandboxes / "programs").exists():
        return
    sandboxes.mkdir(exist_ok=True)
    with _staging:
        staged = _staged(backend)
    shutil.copytree(staged, sandboxes / "programs", symlinks=True, copy_function=os.link)


@cache
def _staged(backend: str) -> Path:
    directory = Path(tempfile.mkdtemp(prefix="corral-staged-"))
    atexit.register(remove_tree, directory)
    directory.chmod(0o755)
    (directory / "programs").mkdir()
    with ThreadPoolExecutor(1) as thread:
        thread.submit(anyio.run, _start_once, backend, directory).result()
    return directory / "programs"


async def _start_once(backend: str, directory: Path) -> None:
    server = BACKENDS[backend](SandboxSettings(directory=str(directory)), directory)
    try:
        await server.start()
    except MachineUnfit:
        pass  # the tests themselves say why
    await server.close()
