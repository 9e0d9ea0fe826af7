"""The workflow of one session: runs the activity `advance` for as long as the session is woken, then ends. And a small
one beside it, which reaches the host of a sandbox to have its outputs.

It holds nothing but a session's id and where its sandbox is; what a session is, and what a turn does, is in the log. It
is replayed, so it does nothing but this, asks nothing but Temporal, and imports nothing of Corral. Temporal's sandbox
for workflows would watch over that, but it loads this file anew for each workflow, which costs every fourth turn. Times
are here because a replay must find those it began with.
"""

from __future__ import annotations

from datetime import timedelta

from temporalio import workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError, ApplicationError, TimeoutError, TimeoutType

WORKFLOW = "corral-session"
ACTIVITY = "corral-advance"
OUTPUTS_WORKFLOW = "corral-outputs"
OUTPUTS_ACTIVITY = "corral-collect"
LEFT = "Left"
"""The type of the error of a worker that stops in mid-turn."""
HEARTBEAT_SECONDS_MAX = 2.3
"""A worker that is silent for this long has lost the session: four beats must fail to come. The server may notice up to
a second later, for the reason that is below."""
HOST_SECONDS_MAX = 1.0
"""How long the host of a session's sandbox may take to fetch the turn before another one goes on without that sandbox.
A host that lives has a request for it open at the server all the time, however busy it is. Less would be no faster: the
server reads its timers up to a second ahead, so one that is set when another fires takes a second at least."""
RESTART_SECONDS_MAX = 2.0
"""The same for a host whose worker stopped in order: it may be started again, and finds the sandbox as it was."""
OUTPUTS_HOST_SECONDS_MAX = 3.0
"""How long it may take to fetch a question for the outputs: as above, but nothing is lost by waiting."""
OUTPUTS_SECONDS_MAX = 60.0
"""How long the host of a sandbox may take in its outputs, for whoever asks; what it has taken in stays."""
TURN_DAYS_MAX = 365
RETRY = RetryPolicy(
    initial_interval=timedelta(seconds=0.1),
    backoff_coefficient=2,
    maximum_interval=timedelta(seconds=1),
    non_retryable_error_types=["TemporalTimeout:Heartbeat"],
)
"""Of what a worker says has failed. One that has fallen silent is for the workflow to see: the server's own retry would
wait for a timer first, a second in which nothing happens."""


def queue_of(task_queue: str, host: str) -> str:
    """The task queue that only the workers of one host listen to."""
    return f"{task_queue}@{host}"


@workflow.defn(name=WORKFLOW)
class SessionWorkflow:
    """See the module. Its id is the session's."""

    def __init__(self) -> None:
        self._woken = True

    @workflow.signal
    def wake(self) -> None:
        """The session has work."""
        self._woken = True

    @workflow.run
    async def run(self, session_id: str, host: str | None, inherited: bool) -> None:
        """Advance the session until nobody has woken it meanwhile.

        `host` is where its sandbox is; `inherited` as for `Worker.advance`.
        """
        while self._woken:
            self._woken = False
            host = await self._advance(session_id, host, inherited=inherited)
            inherited = False
            if self._woken and workflow.info().is_continue_as_new_suggested():
                workflow.continue_as_new(args=[session_id, host, False])

    async def _advance(self, session_id: str, host: str | None, *, inherited: bool) -> str | None:
        """One `advance`, where the session's sandbox is, as long as somebody answers there; answers where that was."""
        task_queue, host_seconds_max = workflow.info().task_queue, HOST_SECONDS_MAX
        absent: str | None = None
        while True:
            try:
                answer: str | None = await workflow.execute_activity(
                    ACTIVITY,
                    args=[session_id, inherited, absent],
                    result_type=str | None,  # pyright: ignore[reportArgumentType]  # a type, if not a class
                    task_queue=queue_of(task_queue, host) if host else task_queue,
                    schedule_to_start_timeout=timedelta(seconds=host_seconds_max) if host else None,
                    start_to_close_timeout=timedelta(days=TURN_DAYS_MAX),
                    heartbeat_timeout=timedelta(seconds=HEARTBEAT_SECONDS_MAX),
                    retry_policy=RETRY,
                )
            except ActivityError as error:
                if host and _timed_out(error, TimeoutType.SCHEDULE_TO_START):
                    host, absent = None, host
                elif _left(error):
                    absent, host_seconds_max = None, RESTART_SECONDS_MAX
                elif _timed_out(error, TimeoutType.HEARTBEAT):
                    absent, host_seconds_max = None, HOST_SECONDS_MAX
                else:
                    raise
                inherited = True
                continue
            if answer is None:
                return host
            host = answer  # the sandbox is there


@workflow.defn(name=OUTPUTS_WORKFLOW)
class OutputsWorkflow:
    """Has the host of a session's sandbox take in the session's outputs, once, if it is there."""

    @workflow.run
    async def run(self, session_id: str, host: str) -> None:
        """See the class."""
        await workflow.execute_activity(
            OUTPUTS_ACTIVITY,
            args=[session_id],
            task_queue=queue_of(workflow.info().task_queue, host),
            schedule_to_start_timeout=timedelta(seconds=OUTPUTS_HOST_SECONDS_MAX),
            start_to_close_timeout=timedelta(seconds=OUTPUTS_SECONDS_MAX),
            retry_policy=RetryPolicy(maximum_attempts=1),
        )


def _timed_out(error: ActivityError, how: TimeoutType) -> bool:
    return isinstance(error.cause, TimeoutError) and error.cause.type is how


def _left(error: ActivityError) -> bool:
    return isinstance(error.cause, ApplicationError) and error.cause.type == LEFT
