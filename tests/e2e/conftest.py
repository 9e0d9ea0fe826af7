"""A real `corral serve` process with a sandbox directory that the test can look into."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from anthropic import Anthropic

from tests.e2e.strict import Watch
from tests.places import stage

START_SECONDS_MAX = 60
STOP_SECONDS_MAX = 30
CLIENT_SECONDS_MAX = 60
API_KEY = "sk-corral-test-key-of-the-e2e-suite"

SCRIPTED = '[[models]]\npattern = "*"\nprovider = "scripted"\n'
LIVELY = """
[server]
ping_seconds = 0.5

[harness]
backoff_seconds = 0.02
backoff_seconds_max = 60.0
model_attempts_max = 3
tool_rounds_max = 20

[prices.priced]
input = 100.0
output = 100.0
cache_read = 100.0
cache_write_5m = 100.0
cache_write_1h = 100.0
"""
"""Settings of the server that most tests share: it pings often, retries soon, and has a list price for the model
"priced": a dollar for ten thousand tokens of any kind."""


class ServerProcess:
    """A server that can be killed and started again on the same data and port."""

    def __init__(
        self,
        directory: Path,
        *,
        toml: str = "",
        models: str = SCRIPTED,
        database: str | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self.directory = directory
        self._variables = variables or {}
        self.sandboxes = directory / "sandboxes"
        stage(self.sandboxes)
        self.config = directory / "corral.toml"
        top = f'database = "{database}"\n' if database else ""
        self.config.write_text(top + models + toml, encoding="utf-8")
        self.port = 0
        self.watch = Watch()
        self.launcher: tuple[str, ...] = ()
        """A command that runs the server, in surroundings of its own."""
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.directory),
            "CORRAL_API_KEY": API_KEY,
            "CORRAL_SANDBOX_DIR": str(self.sandboxes),
            **self._variables,
        }
        command = [
            *self.launcher,
            sys.executable,
            "-m",
            "corral",
            "serve",
            "--port",
            str(self.port),
            "--config",
            str(self.config),
        ]
        command += ["--data-dir", str(self.directory / "data")]
        log = (self.directory / "server.log").open("a", encoding="utf-8")
        with log:
            self.process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True)
        url = self._first_line().rsplit(" ", 1)[-1].strip()
        self.port = int(url.rsplit(":", 1)[-1])

    def _first_line(self) -> str:
        assert self.process is not None and self.process.stdout is not None
        timer = threading.Timer(START_SECONDS_MAX, self.process.kill)
        timer.start()
        line = self.process.stdout.readline()
        timer.cancel()
        if "listening on" not in line:
            self.kill()
        assert self.process is not None, (self.directory / "server.log").read_text(encoding="utf-8")
        return line

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, api_key: str = API_KEY) -> Anthropic:
        """The official SDK; everything it receives is compared with its own types."""
        http_client = self.watch.client(CLIENT_SECONDS_MAX)
        return Anthropic(base_url=self.base_url, api_key=api_key, max_retries=0, http_client=http_client)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        return self._end(signal.SIGTERM)

    def _end(self, how: signal.Signals) -> int:
        if self.process is None:
            return 0
        self.process.send_signal(how)
        code = self.process.wait(STOP_SECONDS_MAX)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.process = None
        return code

    def workspace(self, session_id: str) -> Path:
        return self.sandboxes / "sessions" / session_id / "files" / "workspace"


@contextmanager
def serving(
    toml: str = "",
    *,
    models: str = SCRIPTED,
    database: str | None = None,
    variables: Mapping[str, str] | None = None,
) -> Generator[ServerProcess]:
    """A server with settings of the test's own. `models` says who answers, if not the script."""
    # Not under `tmp_path`: that is closed to the users that sandboxes run as when the tests run as root.
    directory = Path(tempfile.mkdtemp(prefix="corral-e2e-"))
    directory.chmod(0o711)
    running = ServerProcess(directory, toml=toml, models=models, database=database, variables=variables)
    try:
        running.start()
        yield running
        assert running.watch.problems == []
    finally:
        try:
            _delete_sessions(running)
        finally:
            running.stop()
            shutil.rmtree(directory)


@pytest.fixture
def server() -> Iterator[ServerProcess]:
    """A server for tests that kill it or look at everything it has."""
    with serving() as running:
        yield running


@pytest.fixture(scope="session")
def shared_server() -> Iterator[ServerProcess]:
    with serving(LIVELY) as running:
        yield running


@pytest.fixture
def live(shared_server: ServerProcess) -> Iterator[ServerProcess]:
    """A server that tests share: each brings its own agents and sessions, and leaves others' alone."""
    yield shared_server
    found, shared_server.watch.problems = shared_server.watch.problems, []
    assert found == []


@pytest.fixture
def client(live: ServerProcess) -> Iterator[Anthropic]:
    """The official SDK, talking to the shared server."""
    with live.client() as connected:
        yield connected


def _delete_sessions(server: ServerProcess) -> None:
    """Deleting a session ends its sandbox; nothing that a test started may outlive it."""
    if server.process is None:
        server.start()
    with server.client() as client:
        for session in client.beta.sessions.list(include_archived=True):
            if session.status in ("running", "rescheduling"):
                with client.beta.sessions.events.stream(session.id) as stream:
                    client.beta.sessions.events.send(session.id, events=[{"type": "user.interrupt"}])
                    # What waited behind the interrupt has a turn of its own.
                    while client.beta.sessions.retrieve(session.id).status != "idle":
                        next(event for event in stream if event.type == "session.status_idle")
            client.beta.sessions.delete(session.id)
