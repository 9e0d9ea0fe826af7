"""The one thread that writes: it commits whatever waits, together, with one fsync.

Callers on the event loop hand in operations (`submit`) and wait; the thread takes everything that waits, runs it as one
`Batch`, commits, and then tells the loop once for the whole batch: frames go to the bus first, then every caller
continues. What an operation means is `sqlite_batch.py`.

If SQLite refuses a batch (disk full, I/O error, or one operation that it cannot stomach), the batch is rolled back and
its operations are tried again one by one, once, so that a poisonous one fails alone. The thread itself never dies.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import TypeVar

import anyio.to_thread

from corral.errors import Unavailable
from corral.interfaces.bus import Bus, Frame
from corral.interfaces.clock import Clock
from corral.storage.jobs import Caught, Job, run
from corral.storage.series import StoreSeries
from corral.storage.sqlite_batch import Batch
from corral.storage.sqlite_rows import SQL, Stored

T = TypeVar("T")


class Writer:
    """The write side of one database."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        bus: Bus,
        clock: Clock,
        *,
        batch_operations_max: int,
        waiting_operations_max: int,
        sessions_cached_max: int,
        series: StoreSeries,
    ) -> None:
        self._connection = connection
        self._bus = bus
        self._clock = clock
        self._batch_operations_max = batch_operations_max
        self._waiting_operations_max = waiting_operations_max
        self._sessions_cached_max = sessions_cached_max
        self._sessions: dict[str, Stored] = {}
        (self.spent_microdollars,) = connection.execute(SQL["spending"]).fetchone()
        self._loop = asyncio.get_running_loop()
        self._queue: SimpleQueue[list[Job[Batch]] | None] = SimpleQueue()
        self._submitted: list[Job[Batch]] = []
        self._waiting = 0
        self._series = series
        series.watch(lambda: self._waiting)
        self._closed = False
        self._os_thread = threading.Thread(target=self._work, name="corral-sqlite-writer", daemon=True)
        self._os_thread.start()

    def submit(self, operation: Callable[[Batch], T]) -> asyncio.Future[T]:
        """Run an operation; its effects are on disk when the future is done. Raises what the operation raises.

        When the caller is cancelled meanwhile, the operation has been committed or it has not.
        """
        if self._closed:
            raise Unavailable("the store is closed")
        if self._waiting >= self._waiting_operations_max:
            raise Unavailable("too many writes are waiting for the disk; try again shortly")
        future: asyncio.Future[T] = self._loop.create_future()
        self._waiting += 1
        if not self._submitted:
            self._loop.call_soon(self._hand_over)
        self._submitted.append(Job(operation, future))
        return future

    def committed(self, session_id: str) -> Stored | None:
        """The session as last committed, if it is in memory. Callable from any thread: a lookup is atomic."""
        return self._sessions.get(session_id)

    async def close(self) -> None:
        """Commit what waits, then stop the thread. Idempotent."""
        if not self._closed:
            self._closed = True
            self._hand_over()
            self._queue.put(None)
        await anyio.to_thread.run_sync(self._os_thread.join)

    # ------------------------------------------------------------------------------------------ on the OS thread

    def _work(self) -> None:
        while (first := self._queue.get()) is not None:
            jobs, last = self._collect(first)
            for start in range(0, len(jobs), self._batch_operations_max):
                batch = jobs[start : start + self._batch_operations_max]
                began = time.perf_counter()
                frames = self._commit(batch)
                self._series.committed(len(batch), time.perf_counter() - began)
                self._loop.call_soon_threadsafe(self._deliver, frames, batch)
            if last:
                return

    def _collect(self, first: list[Job[Batch]]) -> tuple[list[Job[Batch]], bool]:
        """Everything that waits; and whether the end of the queue was among it."""
        jobs = first
        while True:
            try:
                more = self._queue.get_nowait()
            except Empty:
                return jobs, False
            if more is None:
                return jobs, True
            jobs += more

    def _commit(self, jobs: Sequence[Job[Batch]]) -> list[Frame]:
        frames, error = self._try(jobs)
        if error is None:
            return frames
        if len(jobs) == 1:
            jobs[0].error = Unavailable(f"the database refused the write: {error}")
            jobs[0].error.__cause__ = error
            return []
        return [frame for job in jobs for frame in self._commit([job])]

    def _try(self, jobs: Sequence[Job[Batch]]) -> tuple[list[Frame], Exception | None]:
        """One transaction. Afterwards all of it is on disk and in memory, or none."""
        batch = Batch(self._connection, self.committed, self._clock.now())
        with Caught() as caught:
            self._connection.execute("BEGIN IMMEDIATE")
            run(jobs, batch, let_through=(sqlite3.Error,))
            batch.flush()
            self._connection.execute("COMMIT")
        if caught.error is None:
            self._remember(batch)
            return batch.frames, None
        with Caught():  # what matters is the first error; if this fails too, the next BEGIN says so
            if self._connection.in_transaction:
                self._connection.rollback()
        return [], caught.error

    def _remember(self, batch: Batch) -> None:
        """Committed sessions go to the end of the cache, and the longest unused leave at its front."""
        for session_id, stored in batch.sessions.items():
            self._sessions.pop(session_id, None)
            if stored is not None:
                self._sessions[session_id] = stored
        while len(self._sessions) > self._sessions_cached_max:
            del self._sessions[next(iter(self._sessions))]
        self.spent_microdollars += batch.spent

    # ----------------------------------------------------------------------------------------- on the event loop

    def _hand_over(self) -> None:
        """Give the thread all that was submitted in this turn of the loop at once, so that it commits it together."""
        if self._submitted:
            self._queue.put(self._submitted)
            self._submitted = []

    def _deliver(self, frames: Sequence[Frame], jobs: Sequence[Job[Batch]]) -> None:
        self._waiting -= len(jobs)
        try:
            if frames:
                self._bus.publish(frames)
        finally:
            for job in jobs:
                job.settle()
