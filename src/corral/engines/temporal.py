"""The engine of many processes: Temporal decides which worker advances a session, and moves it when that one dies.

One workflow for each session that has work, by the session's id (`temporal_session.py`); its activity is one `advance`.
Only ids go through Temporal. An interrupt is a poke beside it (`poke`), since the log has what there is to know of it.
Nothing here is trusted: two activities at once are told apart by the log's epochs, a wake that was lost is found by
looking for unfinished sessions now and then, and a lost poke by looking into the logs of those that run here. A process
that only serves the API wakes and pokes, and runs nothing.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from datetime import timedelta
from itertools import count
from typing import NamedTuple

import structlog
from temporalio import activity
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.workflowservice.v1 import ResetStickyTaskQueueRequest
from temporalio.client import Client, WorkflowFailureError
from temporalio.common import WorkflowIDConflictPolicy
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError
from temporalio.worker import UnsandboxedWorkflowRunner
from temporalio.worker import Worker as TemporalWorker

from corral.config_sections import TemporalSettings
from corral.engines.attempts import attempt
from corral.engines.signals import LocalSignal
from corral.engines.temporal_server import connect
from corral.engines.temporal_session import (
    ACTIVITY,
    LEFT,
    OUTPUTS_ACTIVITY,
    OUTPUTS_SECONDS_MAX,
    OUTPUTS_WORKFLOW,
    WORKFLOW,
    OutputsWorkflow,
    SessionWorkflow,
    queue_of,
)
from corral.errors import CorralError, Elsewhere, MachineUnfit, NotFound, Unavailable
from corral.interfaces.engine import Collect, Worker

log = structlog.get_logger(__name__)

HEARTBEAT_SECONDS = 0.5
STICKY_SECONDS_MAX = 0.3
"""How long a workflow's step waits for the worker that took the last one, and has it in memory: then it costs half. The
server makes up to a second of it. A turn that outlasts a beat gives that up, or its take-over would wait for it too."""
STEP_SECONDS_MAX = 3.0
"""For a step of a workflow, which takes milliseconds. One whose worker died in it is taken by another after this."""
WORKFLOWS_CACHED_MAX = 200
SENDING_MAX = 64
RPC_SECONDS_MAX = 5.0


class Around(NamedTuple):
    """What an engine is told by the other parts, and tells them."""

    poke: Callable[[str], Awaitable[None]]
    """Tell whoever advances the session, in whatever process, that an interrupt is in its log. Raises `Unavailable`."""
    interrupt_of: Callable[[str], Awaitable[str | None]]
    """The id of the first interrupt in the session's log that nobody has taken up. Raises `NotFound`, `Unavailable`."""
    unfinished: Callable[[], Awaitable[list[str]]]
    """As `EventLog.unfinished`."""
    host_of: Callable[[str], Awaitable[str | None]]
    """The host that has the session's sandbox; None when it has none, or it rests."""


class _Run:
    """One session's turn in this process."""

    def __init__(self) -> None:
        self.interrupted = LocalSignal()
        self.task: asyncio.Task[None] | None = None


class TemporalEngine:
    """Runs sessions as activities, in this process if it is a worker."""

    def __init__(
        self, client: Client, settings: TemporalSettings, around: Around, *, host: str | None, runs: int
    ) -> None:
        """`host` is the name of this machine's sandboxes, and `runs` how many sessions may run here: None and 0 for a
        process that runs none."""
        self._client = client
        self._settings = settings
        self._around = around
        self._host = host
        self._runs_max = runs
        self._worker: Worker | None = None
        self._collect: Collect | None = None
        self._runs: dict[str, _Run] = {}
        self._owed: dict[str, bool] = {}
        """Sessions that are to be woken, and whether an interrupt waits."""
        self._sending: dict[str, asyncio.Task[None]] = {}
        self._slots = asyncio.Semaphore(SENDING_MAX)
        self._workers: list[TemporalWorker] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = asyncio.Event()

    async def start(self, worker: Worker, sessions: Sequence[str]) -> None:
        """See `Engine`. Sessions that another process advances at this moment are left to it."""
        self._worker = worker
        if self._runs_max:
            assert self._host is not None
            self._tasks.append(asyncio.create_task(self._look_for_interrupts(), name="corral-interrupts"))
            for queue, steps in (
                (self._settings.task_queue, True),
                (queue_of(self._settings.task_queue, self._host), False),
            ):
                self._tasks.append(asyncio.create_task(self._listen(queue, steps=steps), name=f"corral-{queue}"))
        self._tasks.append(asyncio.create_task(self._look_after(sessions), name="corral-unfinished"))

    def wake(self, session_id: str) -> None:
        """See `Engine`."""
        self._owe(session_id, interrupt=False)

    def interrupt(self, session_id: str) -> None:
        """See `Engine`."""
        self.poked(session_id)
        self._owe(session_id, interrupt=True)

    def poked(self, session_id: str) -> None:
        """Some process says that an interrupt waits."""
        run = self._runs.get(session_id)
        if run is not None:
            run.interrupted.set()

    def collects(self, collect: Collect) -> None:
        """See `Engine`."""
        self._collect = collect

    async def collect(self, session_id: str) -> None:
        """See `Engine`. Each asks for itself: what another one has asked for may have been looked at already."""
        host = await self._around.host_of(session_id)
        if host is None:
            raise Unavailable("the session's sandbox was put away just now; ask again")
        try:
            async with asyncio.timeout(OUTPUTS_SECONDS_MAX):
                asked = await self._client.start_workflow(
                    OUTPUTS_WORKFLOW,
                    args=[session_id, host],
                    id=f"{session_id} outputs {secrets.token_hex(8)}",
                    task_queue=self._settings.task_queue,
                    execution_timeout=timedelta(seconds=OUTPUTS_SECONDS_MAX),
                    rpc_timeout=timedelta(seconds=RPC_SECONDS_MAX),
                )
                await asked.result()
        except (WorkflowFailureError, RPCError, TimeoutError) as error:
            log.info("outputs_not_collected", session_id=session_id, reason=str(error.__cause__ or error))
            raise Elsewhere from error

    async def stop(self, grace_seconds: float) -> None:
        """See `Engine`. What does not end in time is handed to another worker."""
        self._stopping.set()
        # Activities get the grace from their worker, and are cancelled after it.
        await asyncio.gather(*(worker.shutdown() for worker in self._workers))
        if self._sending:
            await asyncio.wait(self._sending.values(), timeout=grace_seconds)
        for task in (*self._tasks, *self._sending.values()):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    # ------------------------------------------------------------------------------------------------- waking

    def _owe(self, session_id: str, *, interrupt: bool) -> None:
        self._owed[session_id] = interrupt or self._owed.get(session_id, False)
        if session_id not in self._sending:
            # Owned by `_sending`; it ends when nothing is owed.
            self._sending[session_id] = asyncio.create_task(
                self._send(session_id), name=f"wake {session_id}", context=Context()
            )

    async def _send(self, session_id: str) -> None:
        try:
            while session_id in self._owed:
                interrupt = self._owed.pop(session_id)
                try:
                    async with self._slots:
                        await self._tell(session_id, interrupt=interrupt)
                except (RPCError, Unavailable, RuntimeError) as error:
                    log.warning("session_not_woken_yet", session_id=session_id, reason=str(error))
                    self._owed[session_id] = interrupt or self._owed.get(session_id, False)
                    await asyncio.sleep(self._settings.retry_seconds)
        finally:
            del self._sending[session_id]

    async def _tell(self, session_id: str, *, interrupt: bool) -> None:
        if interrupt:
            await self._around.poke(session_id)
        await self._begin(session_id, signal="wake", inherited=False)

    async def _begin(self, session_id: str, *, signal: str | None, inherited: bool) -> None:
        """Have the session's workflow run, and see the signal."""
        host = await self._around.host_of(session_id)
        await self._client.start_workflow(
            WORKFLOW,
            args=[session_id, host, inherited],
            id=session_id,
            task_queue=self._settings.task_queue,
            id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
            start_signal=signal,
            task_timeout=timedelta(seconds=STEP_SECONDS_MAX),
            rpc_timeout=timedelta(seconds=RPC_SECONDS_MAX),
        )

    async def _look_after(self, sessions: Sequence[str]) -> None:
        """Begin what is unfinished and that nobody has been told of. A wake may be on its way, so sessions are begun
        when they are found twice; those of the start at once, because a server may have been down for long."""
        seen, begun = set[str](), set(sessions)
        while True:
            for session_id in sorted(begun):
                try:
                    await self._begin(session_id, signal=None, inherited=True)
                except (RPCError, Unavailable, RuntimeError) as error:
                    log.warning("unfinished_session_not_begun", session_id=session_id, reason=str(error))
            await asyncio.sleep(self._settings.sweep_seconds)
            try:
                found = set(await self._around.unfinished())
            except Unavailable as error:
                log.warning("unfinished_sessions_not_found", reason=error.message)
                continue
            begun, seen = (found & seen) - self._runs.keys(), found

    async def _look_for_interrupts(self) -> None:
        """Poke the sessions that run here and have an interrupt that nobody has told of: found twice, because one that
        is being taken up at this moment must not hit what comes after it."""
        seen: dict[str, str | None] = {}
        while True:
            await asyncio.sleep(self._settings.interrupt_check_seconds)
            found: dict[str, str | None] = {}
            for session_id in list(self._runs):
                try:
                    waiting = found[session_id] = await self._around.interrupt_of(session_id)
                except (NotFound, Unavailable) as error:
                    log.info("interrupts_not_found", session_id=session_id, reason=error.message)
                    continue
                if waiting is not None and seen.get(session_id) == waiting:
                    self.poked(session_id)
            seen = found

    # ------------------------------------------------------------------------------------------------ running

    async def _listen(self, task_queue: str, *, steps: bool) -> None:
        """Take activities from a queue, and steps of workflows too; anew when Temporal's part breaks."""
        client = self._client
        while not self._stopping.is_set():
            try:
                await self._work(client, task_queue, steps=steps)
                continue
            except RuntimeError as error:
                log.error("temporal_worker_broke", task_queue=task_queue, reason=str(error))
            await asyncio.sleep(self._settings.retry_seconds)
            try:
                client = await connect(self._settings)  # a worker's end takes its client's other workers along
            except MachineUnfit as error:
                log.warning("temporal_does_not_answer", reason=error.message)

    async def _work(self, client: Client, task_queue: str, *, steps: bool) -> None:
        worker = TemporalWorker(
            client,
            task_queue=task_queue,
            workflows=[SessionWorkflow, OutputsWorkflow] if steps else [],
            activities=[self._activity, self._outputs],
            workflow_runner=UnsandboxedWorkflowRunner(),  # see the workflow's module
            identity=f"{os.getpid()}@{socket.gethostname()} {self._host}",
            max_cached_workflows=WORKFLOWS_CACHED_MAX,
            max_concurrent_activities=self._runs_max,
            sticky_queue_schedule_to_start_timeout=timedelta(seconds=STICKY_SECONDS_MAX),
            max_heartbeat_throttle_interval=timedelta(seconds=HEARTBEAT_SECONDS),
            default_heartbeat_throttle_interval=timedelta(seconds=HEARTBEAT_SECONDS),
            graceful_shutdown_timeout=timedelta(seconds=self._settings.drain_seconds),
        )
        self._workers.append(worker)
        try:
            await worker.run()
        finally:
            self._workers.remove(worker)

    @activity.defn(name=ACTIVITY)
    async def _activity(self, session_id: str, inherited: bool, absent: str | None) -> str | None:
        """Advance the session here, or say which host has its sandbox. `absent` is one that does not answer."""
        host = await self._around.host_of(session_id)
        if host not in (None, self._host, absent):
            return host
        inherited = inherited or activity.info().attempt > 1
        await self._end_older(session_id)
        run = self._runs[session_id] = _Run()
        run.task = asyncio.create_task(self._advance(session_id, run, inherited=inherited), name=session_id)
        try:
            await self._beat(session_id, run.task)
            await run.task
        except asyncio.CancelledError:
            await _ended(run.task)
            # Without a stop the connection broke, and this may be tried again here, where the sandbox is.
            leaves, why = self._stopping.is_set(), "the worker leaves the session to another"
            raise ApplicationError(why, type=LEFT if leaves else None, non_retryable=leaves) from None
        finally:
            if self._runs.get(session_id) is run:
                del self._runs[session_id]
        return None

    async def _beat(self, session_id: str, task: asyncio.Task[None]) -> None:
        """Tell Temporal that the session is in good hands, as long as it is."""
        for beat in count():
            activity.heartbeat()
            await asyncio.wait([task], timeout=HEARTBEAT_SECONDS)
            if task.done():
                return
            if beat == 0:
                await self._let_anyone_step(session_id)

    async def _let_anyone_step(self, session_id: str) -> None:
        """Have the next step of the session's workflow taken by any worker, at once."""
        execution = WorkflowExecution(workflow_id=session_id)
        request = ResetStickyTaskQueueRequest(namespace=self._settings.namespace, execution=execution)
        try:
            limit = timedelta(seconds=HEARTBEAT_SECONDS)
            await self._client.workflow_service.reset_sticky_task_queue(request, timeout=limit)
        except RPCError as error:
            log.info("workflow_still_sticky", session_id=session_id, reason=error.message)

    @activity.defn(name=OUTPUTS_ACTIVITY)
    async def _outputs(self, session_id: str) -> None:
        """Take in the outputs of a session whose sandbox is here. Raises `ApplicationError`."""
        try:
            if self._collect is None:
                raise Unavailable
            await self._collect(session_id)
        except CorralError as error:
            raise ApplicationError(error.message, type=type(error).__name__) from error

    async def _end_older(self, session_id: str) -> None:
        """Temporal took the session from us and gave it back, and what we do for it has not noticed yet."""
        run = self._runs.get(session_id)
        if run is not None and run.task is not None:
            await _ended(run.task)

    async def _advance(self, session_id: str, run: _Run, *, inherited: bool) -> None:
        """One `advance`. Raises `ApplicationError` when it must be tried again, here or elsewhere."""
        assert self._worker is not None, "start() comes first"
        error = await attempt(self._worker, session_id, run.interrupted, inherited=inherited)
        if error is not None:
            # Whoever took it may be one that Temporal has given up already; it ends when this is tried again.
            log.warning("session_tried_again", session_id=session_id, reason=error.message)
            raise ApplicationError(error.message, type=type(error).__name__) from error


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])
