"""A real Temporal server for tests: the development server of a wheel, started once, on a port of this machine's own.

`CORRAL_TEST_TEMPORAL` names another server instead, as `host:port`; tests use task queues of their own on it. Where
neither can be had, `unavailable()` says why. What it stores is in memory, or in a file for tests that kill it.
"""

from __future__ import annotations

import asyncio
import atexit
import functools
import os
import secrets
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest
from temporalio.client import Client
from temporalio.service import RPCError

from tests.listening import free_port

START_SECONDS_MAX = 60.0


def program() -> Path | None:
    """Where the wheel has put its program."""
    path = Path(sys.executable).with_name("temporal")
    return path if path.exists() else None


def unavailable() -> str | None:
    """Why there is no server for tests; None when there is one."""
    if os.environ.get("CORRAL_TEST_TEMPORAL") or program():
        return None
    return "no Temporal development server for this platform; name a server with CORRAL_TEST_TEMPORAL"


class Server:
    """A development server; with a `file` it finds what it had after it was killed."""

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()
        self.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start, and wait until it has its namespace."""
        found = program()
        assert found is not None, "unavailable() comes first"
        command = [str(found), "server", "start-dev", "--headless", "--log-level", "never"]
        command += ["--ip", "127.0.0.1", "--port", str(self.port)]
        command += ["--db-filename", str(self._file)] if self._file else []
        self._process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        try:
            # On a thread, because the test that asks first may have a loop of its own here.
            with ThreadPoolExecutor(1) as thread:
                thread.submit(lambda: asyncio.run(_ready(self.address))).result()
        except BaseException:
            self.kill()
            raise

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(START_SECONDS_MAX)
            self._process = None

    def close(self) -> None:
        """Stop."""
        self.kill()


async def _ready(address: str) -> None:
    """Until it answers for its namespace; bounded."""
    until = time.monotonic() + START_SECONDS_MAX
    while True:
        try:
            client = await Client.connect(address)
            await client.workflow_service.describe_namespace(DescribeNamespaceRequest(namespace="default"))
            return
        except (RuntimeError, RPCError):
            assert time.monotonic() < until, "the Temporal server did not start"
            await asyncio.sleep(0.1)


@functools.cache
def shared() -> str:
    """The address of the server that all tests share, started by the first of them that asks."""
    given = os.environ.get("CORRAL_TEST_TEMPORAL")
    if given:
        return given
    server = Server()
    atexit.register(server.close)
    return server.address


def new_task_queue() -> str:
    """Of one test's own."""
    return f"test-{secrets.token_hex(6)}"


@functools.cache
def version() -> str:
    """The server's."""
    found = program()
    if found is None:
        return ""
    said = subprocess.run([str(found), "--version"], capture_output=True, text=True, timeout=START_SECONDS_MAX).stdout
    return said.partition("(Server ")[2].partition(",")[0]
