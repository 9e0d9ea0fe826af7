"""Doing something until it is done, an interrupt arrives, or time is up."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

from corral.interfaces.engine import Signal

T = TypeVar("T")


async def unless(interrupted: Signal, seconds_left: float | None, action: Callable[[], Awaitable[T]]) -> T | None:
    """The action's result; None when it was dropped on the way, which happens at once."""
    result: T | None = None
    async with anyio.create_task_group() as tasks:

        async def watch() -> None:
            with anyio.move_on_after(seconds_left):
                await interrupted.wait()
            tasks.cancel_scope.cancel()

        tasks.start_soon(watch)
        result = await action()
        tasks.cancel_scope.cancel()
    return result
