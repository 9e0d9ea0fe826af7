"""Work that many callers hand to one writer: a job for each, and whatever its decision raises for its caller alone.

A decision function may raise anything, and its caller waits elsewhere. So nothing is swallowed here: what is caught is
raised again where the operation was submitted. The writers of all databases share this file; it knows none of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Generic, TypeVar

B = TypeVar("B")


class Caught:
    """What became of a block: nothing, or an exception that somebody else is to receive."""

    def __init__(self, *, let_through: tuple[type[Exception], ...] = ()) -> None:
        self.error: Exception | None = None
        self._let_through = let_through

    def __enter__(self) -> Caught:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> bool:
        if not isinstance(error, Exception) or isinstance(error, self._let_through):
            return False
        self.error = error
        return True


class Job(Generic[B]):
    """An operation on a batch, and who waits for it."""

    __slots__ = ("error", "future", "operation", "value")

    def __init__(self, operation: Callable[[B], object], future: asyncio.Future[Any]) -> None:
        self.operation = operation
        self.future = future
        self.value: object = None
        self.error: Exception | None = None

    def settle(self) -> None:
        """Let the caller continue. On the event loop."""
        if self.future.done():
            return
        if isinstance(self.error, StopIteration):  # which a future refuses to carry
            self.future.set_exception(RuntimeError("a decision function raised StopIteration"))
        elif self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self.value)


def run(jobs: Iterable[Job[B]], batch: B, *, let_through: tuple[type[Exception], ...] = ()) -> None:
    """Run operations one after another, each whatever became of the others. Only what is to be let through comes out;
    anything else is for the operation's caller."""
    waiting = iter(jobs)
    job = next(waiting, None)
    while job is not None:
        with Caught(let_through=let_through) as caught:  # one for all, until one of them raises
            while job is not None:
                job.error = None
                job.value = job.operation(batch)
                job = next(waiting, None)
        if job is not None:
            job.error = caught.error
            job = next(waiting, None)
