"""Work that many callers hand to one writer: a job for each, and whatever its decision raises for its caller alone.

A decision function may raise anything, and its caller waits elsewhere. So nothing is swallowed here: what is caught is
raised again where the operation was submitted. The writers of all databases share this file; it knows none of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
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

    __slots__ = ("_let_through", "error", "future", "operation", "value")

    def __init__(
        self,
        operation: Callable[[B], object],
        future: asyncio.Future[Any],
        let_through: tuple[type[Exception], ...],
    ) -> None:
        self.operation = operation
        self.future = future
        self.value: object = None
        self.error: Exception | None = None
        self._let_through = let_through

    def run(self, batch: B) -> None:
        """Run the operation. Only what is to be let through comes out; anything else is the caller's."""
        self.error = None
        with Caught(let_through=self._let_through) as caught:
            self.value = self.operation(batch)
        self.error = caught.error

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
