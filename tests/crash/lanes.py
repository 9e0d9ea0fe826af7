"""A server with all that it depends on, of which any process can be killed and is then brought back.

The installation of many processes, with the same face, is `cluster_lane.py`.
"""

from __future__ import annotations

import os
import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal, TypeAlias

from anthropic import Anthropic

from corral.sandboxes.directory import SessionDirectory
from tests import postgres_server
from tests.crash.counting import PAGE_HOST, Counting
from tests.crash.stubborn_client import tools
from tests.e2e.conftest import ServerProcess, serving
from tests.e2e.sessions import Json, new_agent

Victim: TypeAlias = Literal["server", "worker", "host", "sandbox", "proxy", "postgres", "temporal"]
PROXY = b"corral.sandboxes.egress.proxy"
LOG_LINES = 400
TOML = """
[server]
ping_seconds = 0.5

[harness]
backoff_seconds = 0.02
"""


class Lane(ABC):
    """What sessions run on; their clients wait for `up` when it has failed them."""

    victims: tuple[Victim, ...]
    """What can be killed here."""

    def __init__(self, clients: Sequence[Anthropic], counting: Counting) -> None:
        self.clients = clients
        """One for each way in."""
        self._killing = threading.Lock()
        self.up = threading.Event()
        self.up.set()
        client = clients[0]
        self.agents = {which: new_agent(client, **tools(counting, with_mcp=which)) for which in (False, True)}
        networking: Json = {"type": "limited", "allowed_hosts": [PAGE_HOST]}
        config: Json = {"type": "cloud", "networking": networking}
        self.environment_id = client.beta.environments.create(name="counted", config=config).id

    def client(self, number: int) -> Anthropic:
        """The one for a round."""
        return self.clients[number % len(self.clients)]

    def kill(self, victim: Victim, session_id: str | None, number: int) -> bool:
        """SIGKILL to one process, and to no other than this lane's own; False when there is none to kill."""
        with self._killing:
            return self._kill(victim, session_id, number)

    @abstractmethod
    def _kill(self, victim: Victim, session_id: str | None, number: int) -> bool: ...

    @abstractmethod
    def over(self, number: int) -> None:
        """The round's session has come to its end: bring back what stays away until then."""

    @abstractmethod
    def workspaces(self, session_id: str) -> list[Path]:
        """Where the session's files may be."""

    @abstractmethod
    def log_text(self) -> str:
        """The end of what the processes have said."""


class ServerLane(Lane):
    """One server."""

    def __init__(
        self, server: ServerProcess, database: postgres_server.Server | None, client: Anthropic, counting: Counting
    ) -> None:
        super().__init__([client], counting)
        self._server, self._database = server, database
        usual: tuple[Victim, ...] = ("server", "sandbox", "proxy")
        self.victims = (*usual, "postgres") if database is not None else usual

    def _kill(self, victim: Victim, session_id: str | None, number: int) -> bool:
        match victim:
            case "server":
                self._restart(self._server)
                return True
            case "postgres":
                assert self._database is not None
                self._restart(self._database)
                return True
            case "sandbox":
                return session_id is not None and kill_sandbox(self._server.sandboxes, session_id)
            case "proxy":
                assert self._server.process is not None
                return kill_proxy(self._server.process.pid)
            case _:
                raise AssertionError(f"there is no {victim} here")

    def over(self, number: int) -> None:
        """Nothing does."""

    def _restart(self, which: ServerProcess | postgres_server.Server) -> None:
        self.up.clear()
        try:
            which.kill()
            which.start()
        finally:
            self.up.set()

    def workspaces(self, session_id: str) -> list[Path]:
        return [self._server.workspace(session_id)]

    def log_text(self) -> str:
        return last_lines(self._server.directory / "server.log")


def kill_sandbox(sandboxes: Path, session_id: str) -> bool:
    """The first process of the session's sandbox there; False when none runs."""
    directory = SessionDirectory(sandboxes, session_id)
    record = directory.record()
    return record is not None and directory.is_running() and _kill(record.pid)


def kill_proxy(server_pid: int) -> bool:
    """The egress proxy that this process has started; False when it has none."""
    children = Path(f"/proc/{server_pid}/task").glob("*/children")
    pids = [int(pid) for each in children for pid in each.read_text(encoding="ascii").split()]
    return any(_kill(pid) for pid in pids if PROXY in _command(pid))


def last_lines(path: Path) -> str:
    """Of a log."""
    return "\n".join(path.read_text(encoding="utf-8").splitlines()[-LOG_LINES:])


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
        yield ServerLane(server, None, client, counting)


@contextmanager
def lane_on_postgres(counting: Counting) -> Generator[Lane]:
    """A server on a PostgreSQL server of its own, which can be killed. Every commit is on disk, as in production."""
    database = postgres_server.Server(fsync="on")
    with ExitStack() as stack:
        stack.callback(database.close)
        server = stack.enter_context(serving(TOML + counting.toml, database=database.url))
        client = stack.enter_context(server.client())
        yield ServerLane(server, database, client, counting)
