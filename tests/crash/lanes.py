"""A server with all that it depends on, of which any process can be killed and is then brought back."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal, TypeAlias

from anthropic import Anthropic

from corral.sandboxes.directory import SessionDirectory, start_ticks
from tests import postgres_server
from tests.crash.counting import PAGE_HOST, Counting
from tests.crash.stubborn_client import tools
from tests.e2e.conftest import ServerProcess, serving
from tests.e2e.sessions import Json, new_agent

Victim: TypeAlias = Literal["server", "sandbox", "proxy", "postgres"]
PROXY = b"corral.sandboxes.egress.proxy"
LOG_LINES = 400
TOML = """
[server]
ping_seconds = 0.5

[harness]
backoff_seconds = 0.02
"""


class Lane:
    """One server; its clients wait for `up` when it has failed them."""

    def __init__(
        self, server: ServerProcess, database: postgres_server.Server | None, client: Anthropic, counting: Counting
    ) -> None:
        self.server, self.database, self.client = server, database, client
        self._killing = threading.Lock()
        self.up = threading.Event()
        self.up.set()
        self.agents = {which: new_agent(client, **tools(counting, with_mcp=which)) for which in (False, True)}
        networking: Json = {"type": "limited", "allowed_hosts": [PAGE_HOST]}
        config: Json = {"type": "cloud", "networking": networking}
        self.environment_id = client.beta.environments.create(name="counted", config=config).id

    @property
    def victims(self) -> tuple[Victim, ...]:
        """What can be killed here."""
        usual: tuple[Victim, ...] = ("server", "sandbox", "proxy")
        return (*usual, "postgres") if self.database is not None else usual

    def kill(self, victim: Victim, session_id: str | None) -> bool:
        """SIGKILL to one process, and to no other than this lane's own; False when there is none to kill."""
        with self._killing:
            match victim:
                case "server":
                    self._restart(self.server)
                    return True
                case "postgres":
                    assert self.database is not None
                    self._restart(self.database)
                    return True
                case "sandbox":
                    return session_id is not None and self._kill_sandbox(session_id)
                case "proxy":
                    return self._kill_proxy()

    def _restart(self, which: ServerProcess | postgres_server.Server) -> None:
        self.up.clear()
        try:
            which.kill()
            which.start()
        finally:
            self.up.set()

    def _kill_sandbox(self, session_id: str) -> bool:
        record = SessionDirectory(self.server.sandboxes, session_id).record()
        return record is not None and start_ticks(record.pid) == record.start_ticks and _kill(record.pid)

    def _kill_proxy(self) -> bool:
        assert self.server.process is not None
        children = Path(f"/proc/{self.server.process.pid}/task").glob("*/children")
        pids = [int(pid) for each in children for pid in each.read_text(encoding="ascii").split()]
        return any(_kill(pid) for pid in pids if PROXY in _command(pid))

    def log_text(self) -> str:
        """The end of what the server has said."""
        lines = (self.server.directory / "server.log").read_text(encoding="utf-8").splitlines()
        return "\n".join(lines[-LOG_LINES:])

    def workspace(self, session_id: str) -> Path:
        """Where the session's files are."""
        return self.server.workspace(session_id)


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _kill(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


@contextmanager
def lane_on_sqlite(counting: Counting) -> Generator[Lane]:
    """A server with its own file."""
    with serving(TOML + counting.toml) as server, server.client() as client:
        yield Lane(server, None, client, counting)


@contextmanager
def lane_on_postgres(counting: Counting) -> Generator[Lane]:
    """A server on a PostgreSQL server of its own, which can be killed. Every commit is on disk, as in production."""
    database = postgres_server.Server(fsync="on")
    with ExitStack() as stack:
        stack.callback(database.close)
        server = stack.enter_context(serving(TOML + counting.toml, database=database.url))
        client = stack.enter_context(server.client())
        yield Lane(server, database, client, counting)
