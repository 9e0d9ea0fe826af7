"""Doing something until it is done, an interrupt arrives, or time is up."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

from corral.errors import CorralError
from corral.interfaces.engine import Signal
from corral.interfaces.event_log import EventLog

T = TypeVar("T")


async def unless(
    interrupted: Signal,
    log: EventLog,
    session_id: str,
    seconds_left: float | None,
    action: Callable[[], Awaitable[T]],
) -> T | None:
    """The action's result; None when it was dropped on the way, which happens at once.

    A signal counts if an interrupt still waits: one that comes late, from another process maybe, would drop what was
    begun after its interrupt, and a command that is dropped and begun anew would run twice.
    """
    result: T | None = None
    async with anyio.create_task_group() as tasks:

        async def watch() -> None:
            with anyio.move_on_after(seconds_left):
                while True:
                    await interrupted.wait()
                    interrupted.clear()  # before the look, so that a later one is not lost
                    if await _interrupt_waits(log, session_id):
                        break
            tasks.cancel_scope.cancel()

        tasks.start_soon(watch)
        result = await action()
        tasks.cancel_scope.cancel()
    return result


async def _interrupt_waits(log: EventLog, session_id: str) -> bool:
    """Whether an interrupt of the session is still to be taken up."""
    try:
        state = (await log.snapshot(session_id)).state
    except CorralError:
        return True  # gone, or without its store: the next commit says so
    return any(queued.type == "user.interrupt" for queued in state.queue)
