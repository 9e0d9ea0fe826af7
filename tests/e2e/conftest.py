"""A real `corral serve` process with a sandbox directory that the test can look into."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from anthropic import Anthropic

START_SECONDS_MAX = 60
STOP_SECONDS_MAX = 30
API_KEY = "sk-corral-test-key-of-the-e2e-suite"


class ServerProcess:
    """A server that can be killed and started again on the same data and port."""

    def __init__(self, directory: Path, *, toml: str = "") -> None:
        self.directory = directory
        self.sandboxes = directory / "sandboxes"
        self.sandboxes.mkdir()
        self.config = directory / "corral.toml"
        self.config.write_text('[[models]]\npattern = "*"\nprovider = "scripted"\n' + toml, encoding="utf-8")
        self.port = 0
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.directory),
            "CORRAL_API_KEY": API_KEY,
            "CORRAL_SANDBOX_DIR": str(self.sandboxes),
        }
        command = [sys.executable, "-m", "corral", "serve", "--port", str(self.port), "--config", str(self.config)]
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

    def client(self) -> Anthropic:
        return Anthropic(base_url=self.base_url, api_key=API_KEY, timeout=60)

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


@pytest.fixture
def server() -> Iterator[ServerProcess]:
    # Not under `tmp_path`: that is closed to the users that sandboxes run as when the tests run as root.
    directory = Path(tempfile.mkdtemp(prefix="corral-e2e-"))
    directory.chmod(0o711)
    running = ServerProcess(directory)
    try:
        running.start()
        yield running
    finally:
        try:
            _delete_sessions(running)
        finally:
            running.stop()
            shutil.rmtree(directory)


def _delete_sessions(server: ServerProcess) -> None:
    """Deleting a session ends its sandbox; nothing that a test started may outlive it."""
    if server.process is None:
        server.start()
    with server.client() as client:
        for session in client.beta.sessions.list(include_archived=True):
            if session.status == "running":
                client.beta.sessions.events.send(session.id, events=[{"type": "user.interrupt"}])
                with client.beta.sessions.events.stream(session.id) as stream:
                    if client.beta.sessions.retrieve(session.id).status == "running":
                        next(event for event in stream if event.type == "session.status_idle")
            client.beta.sessions.delete(session.id)
