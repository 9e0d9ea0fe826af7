"""Processes of one installation: servers that only serve and workers, over one PostgreSQL, one Temporal and one bucket.

Each has a data directory of its own, as if it were on a machine of its own, and keeps its port when it starts again.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import anyio.from_thread
from anthropic import Anthropic

from tests import postgres_server, temporal_server
from tests.contracts.bucket import Bucket
from tests.e2e.conftest import API_KEY, CLIENT_SECONDS_MAX, START_SECONDS_MAX, STOP_SECONDS_MAX
from tests.e2e.strict import Watch
from tests.places import stage

MASTER_KEY = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="


class Process:
    """One of them."""

    def __init__(self, cluster: Cluster, name: str, *arguments: str) -> None:
        self._directory = cluster.directory / name
        self.sandboxes = self._directory / "sandboxes"
        self._directory.mkdir()
        stage(self.sandboxes)
        self._command = [sys.executable, "-m", "corral", *arguments, "--config", str(cluster.config)]
        self._command += ["--data-dir", str(self._directory / "data")]
        self._environment = cluster.environment | {"CORRAL_SANDBOX_DIR": str(self.sandboxes)}
        self.log = self._directory / "log"
        self._process: subprocess.Popen[str] | None = None
        self._watch = cluster.watch
        self.base_url = ""

    @property
    def pid(self) -> int:
        """Of what runs; 0 when nothing does."""
        return self._process.pid if self._process else 0

    @property
    def has_sandboxes(self) -> bool:
        """Whether there are files of any sandbox here."""
        return any(self.sandboxes.glob("sessions/*"))

    def start(self) -> None:
        """Start, and wait until it says that it works."""
        command = [*self._command, "--port", self.base_url.rpartition(":")[2] or "0"]
        with self.log.open("a", encoding="utf-8") as log:
            process = self._process = subprocess.Popen(
                command, env=self._environment, stdout=subprocess.PIPE, stderr=log, text=True
            )
        assert process.stdout is not None
        watchdog = threading.Timer(START_SECONDS_MAX, process.kill)
        watchdog.start()
        line = process.stdout.readline()
        watchdog.cancel()
        assert "listening on" in line or "advancing" in line, self.log.read_text(encoding="utf-8")
        self.base_url = line.rsplit(" ", 1)[-1].strip()

    def client(self) -> Anthropic:
        """The official SDK; everything it receives is compared with its own types."""
        http_client = self._watch.client(CLIENT_SECONDS_MAX)
        return Anthropic(base_url=self.base_url, api_key=API_KEY, max_retries=0, http_client=http_client)

    def end(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and wait; its exit code. Idempotent."""
        process, self._process = self._process, None
        if process is None:
            return 0
        process.send_signal(how)
        assert process.stdout is not None
        with process.stdout:
            try:
                return process.wait(STOP_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(STOP_SECONDS_MAX)
                raise

    def clear(self) -> None:
        """Have it remove the sandboxes of sessions that are no more: it looks for those when it starts."""
        if not self.has_sandboxes:
            return
        self.end(signal.SIGKILL)
        self.start()
        deadline = time.monotonic() + STOP_SECONDS_MAX
        while self.has_sandboxes:
            assert time.monotonic() < deadline, f"{self.sandboxes} still has sandboxes"
            threading.Event().wait(0.05)  # a directory that goes has no event; leave the processor to the worker

    def workspace(self, session_id: str) -> Path:
        """What the session's sandbox has here."""
        return self.sandboxes / "sessions" / session_id / "files" / "workspace"


class Cluster:
    """What they share."""

    def __init__(
        self, directory: Path, database: str, bucket: Bucket, toml: str, *, workers: int, temporal: str | None
    ) -> None:
        self.directory = directory
        self.database = database
        self.config = directory / "corral.toml"
        self.watch = Watch()
        blobs = bucket.settings
        self.task_queue = temporal_server.new_task_queue()
        self.config.write_text(
            f'database = "{database}"\nengine = "temporal"\n'
            f'[temporal]\naddress = "{temporal or temporal_server.shared()}"\ntask_queue = "{self.task_queue}"\n'
            f"drain_seconds = 1.0\nsweep_seconds = 2.0\ninterrupt_check_seconds = 1.0\n"
            f'[blobs]\nbackend = "s3"\nbucket = "{blobs.bucket}"\nprefix = "{blobs.prefix}"\n'
            f'endpoint_url = "{blobs.endpoint_url}"\nregion = "{blobs.region}"\n'
            f'[[models]]\npattern = "*"\nprovider = "scripted"\n{toml}',
            encoding="utf-8",
        )
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(directory),
            "CORRAL_API_KEY": API_KEY,
            "CORRAL_MASTER_KEY": MASTER_KEY,
            "AWS_ACCESS_KEY_ID": "tests",
            "AWS_SECRET_ACCESS_KEY": "tests",
        }
        self.servers = [Process(self, f"api{n}", "serve", "--no-worker") for n in range(2)]
        self.workers = [Process(self, f"worker{n}", "worker") for n in range(workers)]

    def start(self) -> None:
        """Start all: one that prepares the database, and then the others."""
        self.servers[0].start()
        _in_pairs([process.start for process in (*self.servers[1:], *self.workers)])

    def home(self, session_id: str) -> tuple[Process, Process]:
        """The worker that has the session's sandbox, and the other one. Exactly one must have it by now."""
        there = [worker for worker in self.workers if worker.workspace(session_id).exists()]
        assert len(there) == 1, f"{len(there)} workers have a sandbox of the session"
        (other,) = (worker for worker in self.workers if worker not in there)
        return there[0], other

    def close(self) -> None:
        """Delete all sessions, so that no sandbox outlives them, and stop everything."""
        try:
            _in_pairs([worker.start for worker in self.workers if not worker.pid and worker.has_sandboxes])
            self._delete_sessions()
            _in_pairs([worker.clear for worker in self.workers])
        finally:
            _in_pairs([process.end for process in (*self.servers, *self.workers)])

    def _delete_sessions(self) -> None:
        with self.servers[0].client() as client:
            for session in client.beta.sessions.list(include_archived=True):
                if session.status != "idle":
                    with client.beta.sessions.events.stream(session.id) as stream:
                        client.beta.sessions.events.send(session.id, events=[{"type": "user.interrupt"}])
                        while client.beta.sessions.retrieve(session.id).status != "idle":
                            next(event for event in stream if event.type == "session.status_idle")
                client.beta.sessions.delete(session.id)


def _in_pairs(actions: Sequence[Callable[[], object]]) -> None:
    """All of them, two at a time; raises what the first that failed has raised, when all are done."""
    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(action) for action in actions]
    for each in running:
        each.result()


@contextmanager
def cluster(
    bucket: Bucket, toml: str = "", *, workers: int = 2, postgres: str | None = None, temporal: str | None = None
) -> Generator[Cluster]:
    """Two servers and some workers, on a database of `postgres` and the Temporal server at `temporal`, or on the
    servers that all tests share."""
    directory = Path(tempfile.mkdtemp(prefix="corral-cluster-"))
    directory.chmod(0o711)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        portal = stack.enter_context(anyio.from_thread.start_blocking_portal())
        url = stack.enter_context(portal.wrap_async_context_manager(postgres_server.database(postgres)))
        made = Cluster(directory, url, bucket.empty(), toml, workers=workers, temporal=temporal)
        stack.callback(made.close)
        made.start()
        yield made
        assert made.watch.problems == []
