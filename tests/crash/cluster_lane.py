"""Two servers and two workers with all that they depend on, of which any process can be killed: see `lanes.py`.

A worker comes back at once, on its own machine and to its own sandboxes; or it stays away until the session of the one
who killed it has come to its end ("host"), so that the other one has to go on without them.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from signal import SIGKILL
from tempfile import TemporaryDirectory

from anthropic import Anthropic

from corral.sandboxes.directory import SessionDirectory
from tests import postgres_server, temporal_server
from tests.contracts.bucket import serving_bucket
from tests.crash.counting import Counting
from tests.crash.lanes import TOML, Lane, Victim, kill_proxy, kill_sandbox, last_lines
from tests.e2e.clusters import Cluster, Process, cluster


class ClusterLane(Lane):
    """An installation of many processes; each of its servers is a way in."""

    victims: tuple[Victim, ...] = ("server", "worker", "host", "sandbox", "proxy", "postgres", "temporal")

    def __init__(
        self,
        made: Cluster,
        database: postgres_server.Server,
        temporal: temporal_server.Server,
        clients: Sequence[Anthropic],
        counting: Counting,
    ) -> None:
        super().__init__(clients, counting)
        self._cluster, self._database, self._temporal = made, database, temporal
        self._away: dict[int, Process] = {}
        """Workers that are not there, by the number of the round that must do without."""

    def _kill(self, victim: Victim, session_id: str | None, number: int) -> bool:
        match victim:
            case "server":
                self._restart(self._cluster.servers[number % len(self.clients)])  # the one that its client asks
            case "worker":
                self._restart_worker(session_id)
            case "host":
                self._take_away(session_id, number)
            case "postgres":
                self._restart(self._database)
            case "temporal":
                self._temporal.kill()  # nobody who asks a server notices
                self._temporal.start()
            case "sandbox":
                there = [worker.sandboxes for worker in self._cluster.workers]
                return session_id is not None and any(kill_sandbox(each, session_id) for each in there)
            case "proxy":
                return kill_proxy(self._worker_of(session_id).pid)
        return True

    def _restart(self, which: Process | postgres_server.Server) -> None:
        self.up.clear()
        try:
            if isinstance(which, Process):
                which.end(SIGKILL)
            else:
                which.kill()
            which.start()
        finally:
            self.up.set()

    def _restart_worker(self, session_id: str | None) -> None:
        worker = self._worker_of(session_id)
        worker.end(SIGKILL)
        worker.start()

    def _take_away(self, session_id: str | None, number: int) -> None:
        if self._away:  # one must be there, or nobody's session comes to its end
            self._restart_worker(session_id)
            return
        self._away[number] = worker = self._worker_of(session_id)
        worker.end(SIGKILL)

    def _worker_of(self, session_id: str | None) -> Process:
        """The worker that has the session's sandbox, or else any; one that is there."""
        there = [worker for worker in self._cluster.workers if worker.pid]
        if session_id is None:
            return there[0]
        return next((each for each in there if SessionDirectory(each.sandboxes, session_id).is_running()), there[0])

    def over(self, number: int) -> None:
        with self._killing:
            if number in self._away:
                self._away.pop(number).start()

    def workspaces(self, session_id: str) -> list[Path]:
        return [worker.workspace(session_id) for worker in self._cluster.workers]

    def log_text(self) -> str:
        processes = (*self._cluster.servers, *self._cluster.workers)
        return "\n".join(f"--- {process.log.parent.name}\n{last_lines(process.log)}" for process in processes)


@contextmanager
def lane_on_cluster(counting: Counting) -> Generator[ClusterLane]:
    """On a PostgreSQL server and a Temporal server of its own. What they have said to have kept is on disk."""
    with ExitStack() as stack:
        database = postgres_server.Server(fsync="on")
        stack.callback(database.close)
        place = stack.enter_context(TemporaryDirectory(prefix="corral-temporal-"))
        temporal = temporal_server.Server(Path(place) / "temporal.db")
        stack.callback(temporal.close)
        bucket = stack.enter_context(serving_bucket())
        toml = TOML + counting.toml
        made = stack.enter_context(cluster(bucket, toml, postgres=database.url, temporal=temporal.address))
        clients = [stack.enter_context(server.client()) for server in made.servers]
        yield ClusterLane(made, database, temporal, clients, counting)
