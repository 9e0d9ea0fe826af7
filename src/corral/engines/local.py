"""The engine of one process: a task for each session that has work, and none for the others.

It decides who runs what and when, and nothing else: what a run does is the harness's (`interfaces.engine.Worker`), and
that two runs never write one log is the log's (epochs). On `start` it resumes what the last process left unfinished.
The engine for many machines is `temporal.py`; both keep the contract in `interfaces.engine.Engine`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextvars import Context

import structlog
from prometheus_client import CollectorRegistry, Gauge

from corral.engines.attempts import attempt
from corral.engines.signals import LocalSignal
from corral.errors import Unavailable
from corral.interfaces.engine import Collect, Worker

log = structlog.get_logger(__name__)


class _Run:
    """One session's turn in this process."""

    def __init__(self) -> None:
        self.interrupted = LocalSignal()
        self.woken = False
        self.task: asyncio.Task[None] | None = None


class LocalEngine:
    """Runs sessions as tasks of this process."""

    def __init__(
        self, *, sessions_running_max: int, retry_seconds: float = 1.0, registry: CollectorRegistry | None = None
    ) -> None:
        self._retry_seconds = retry_seconds
        self._with_slot = 0
        self._slots = asyncio.Semaphore(sessions_running_max)
        self._runs: dict[str, _Run] = {}
        self._worker: Worker | None = None
        self._stopping = False
        registry = registry or CollectorRegistry()
        waiting = Gauge("corral_sessions_waiting", "Sessions with work that wait for a slot.", registry=registry)
        waiting.set_function(lambda: len(self._runs) - self._with_slot)

    async def start(self, worker: Worker, sessions: Sequence[str]) -> None:
        """Begin; `sessions` were unfinished when the last server stopped."""
        self._worker = worker
        for session_id in sessions:
            self._launch(session_id, inherited=True)

    def wake(self, session_id: str) -> None:
        """The session has work; during a run the wake is kept for its end."""
        run = self._runs.get(session_id)
        if run is not None:
            run.woken = True
        elif not self._stopping:
            self._launch(session_id, inherited=False)

    def interrupt(self, session_id: str) -> None:
        """An interrupt waits in the session's log."""
        run = self._runs.get(session_id)
        if run is not None:
            run.interrupted.set()
        self.wake(session_id)

    def collects(self, collect: Collect) -> None:
        """See `Engine`. Nobody else asks."""

    async def collect(self, session_id: str) -> None:
        """See `Engine`. There is no other machine."""
        raise Unavailable

    async def stop(self, grace_seconds: float) -> None:
        """Start nothing more, wait a while for what runs, then cancel it. The next process resumes it."""
        self._stopping = True
        tasks = [run.task for run in self._runs.values() if run.task is not None]
        if not tasks:
            return
        _, late = await asyncio.wait(tasks, timeout=grace_seconds)
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late)

    def _launch(self, session_id: str, *, inherited: bool) -> None:
        # A task for each session, owned by `_runs` and awaited by `stop`: sessions live longer than any request.
        run = self._runs[session_id] = _Run()
        # In a context of its own: what the log says of the request that woke it is not true of what comes later.
        run.task = asyncio.create_task(
            self._run(session_id, run, inherited=inherited), name=session_id, context=Context()
        )

    async def _run(self, session_id: str, run: _Run, *, inherited: bool) -> None:
        """Advance the session for as long as it is woken."""
        try:
            async with self._slots:
                self._with_slot += 1
                try:
                    await self._advance_while_woken(session_id, run, inherited=inherited)
                finally:
                    self._with_slot -= 1
        finally:
            del self._runs[session_id]
            if run.woken and not self._stopping:
                self._launch(session_id, inherited=True)

    async def _advance_while_woken(self, session_id: str, run: _Run, *, inherited: bool) -> None:
        while True:
            run.woken = False
            inherited = await self._advance(session_id, run, inherited=inherited)
            if not (run.woken or inherited) or self._stopping:
                return

    async def _advance(self, session_id: str, run: _Run, *, inherited: bool) -> bool:
        """One `advance`; True when it must be tried again."""
        assert self._worker is not None, "start() comes first"
        error = await attempt(self._worker, session_id, run.interrupted, inherited=inherited)
        if isinstance(error, Unavailable):
            log.warning("session_waits_for_store", session_id=session_id, reason=error.message)
            await asyncio.sleep(self._retry_seconds)
        elif error is not None:
            log.info("session_left", session_id=session_id, reason=error.message)
        return isinstance(error, Unavailable)
