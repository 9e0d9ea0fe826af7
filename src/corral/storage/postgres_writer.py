"""The one connection that commits: whatever waits, together, in one statement.

Callers hand in operations (`submit`) and wait. Two tasks take turns: each runs what waits as one `Batch` in memory and
sends it off, and while the server writes one batch to its disk, the other task decides the next. No session is in both
at a time, so a decision sees every commit before it. After a commit its frames are published first, then every caller
continues.

Sessions that were written lately are kept, each with its version. A batch is decided on what is kept, and the statement
that commits it locks each session's row and refuses (`corral_expect`) when a version has moved on, because another
process has written: then nothing was done, and the batch is decided again on rows read under the lock. So nobody
commits, or is refused, on a state that is not the current one; and usually that costs a single round trip.

When the connection breaks in the middle of a commit, nobody knows whether it happened. The writer makes another one,
locks the sessions, and looks (`postgres_doubts.py`): what happened is answered as if nothing had been wrong, and what
did not is decided and committed anew; one that was still on its way then finds another version and is refused. Only
when there is no database for `doubt_seconds_max` are callers told `OutcomeUnknown`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import anyio
import asyncpg
import msgspec
import structlog

from corral.errors import OutcomeUnknown, Unavailable
from corral.interfaces.clock import Clock
from corral.storage.frames import encode
from corral.storage.jobs import Caught, Job, run
from corral.storage.postgres_batch import Batch, Published
from corral.storage.postgres_connection import (
    CLASHED,
    CONNECT_SECONDS_MAX,
    SQL,
    Connection,
    connect_writer,
    is_lost,
    reason,
)
from corral.storage.postgres_doubts import Doubts
from corral.storage.postgres_rows import (
    Stored,
    archived_at,
    clean,
    event_parameters,
    insert_parameters,
    read_stored,
    session_columns,
)
from corral.storage.series import StoreSeries

T = TypeVar("T")
log = structlog.get_logger(__name__)

TASKS = 2
ATTEMPTS_MAX = 6
"""Times that one batch is decided before its callers are sent away: the first is hopeful, the others hold locks."""
NUMBERS_AT_ONCE = 32
RECONNECT_SECONDS = 0.25
"""Between attempts to reach the database while somebody waits to hear what became of a commit."""
MOVED_ON = "CR001"


class Streams(Protocol):
    """Who tells open streams, here and in other processes."""

    def notices(self, published: Iterable[Published]) -> list[str]:
        """What other processes are to be told in the transaction."""
        ...

    def deliver(self, published: Iterable[Published]) -> None:
        """A commit has happened; never blocks."""
        ...

    def doubt(self, session_ids: Iterable[str]) -> None:
        """Nobody knows whether a commit has happened; never blocks."""
        ...


class _Write(Job[Batch]):
    """An operation, and what it looks at."""

    __slots__ = ("creates", "session_id")

    def __init__(
        self, operation: Callable[[Batch], object], future: asyncio.Future[Any], session_id: str, creates: bool
    ) -> None:
        super().__init__(operation, future)
        self.session_id = session_id
        self.creates = creates


class Writer:
    """The write side of one process."""

    def __init__(
        self,
        url: str,
        connection: Connection,
        streams: Streams,
        clock: Clock,
        *,
        batch_operations_max: int,
        waiting_operations_max: int,
        sessions_cached_max: int,
        doubt_seconds_max: float,
        series: StoreSeries,
    ) -> None:
        self._url = url
        self._connection = connection
        self._streams = streams
        self._clock = clock
        self._batch_operations_max = batch_operations_max
        self._waiting_operations_max = waiting_operations_max
        self._sessions_cached_max = sessions_cached_max
        self._doubt_seconds_max = doubt_seconds_max
        self._sessions: dict[str, Stored] = {}
        self._numbers: list[int] = []
        self._submitted: list[_Write] = []
        self._busy: set[str] = set()
        """Sessions of the batches that are being decided or written."""
        self._alone = asyncio.Lock()
        """Held by whoever uses the connection."""
        self._waiting = 0
        self._series = series
        series.watch(lambda: self._waiting)
        self._idle: list[asyncio.Future[None]] = []
        """Of tasks that have nothing to do."""
        self._closed = False
        # Owned here and awaited by `close`: they must outlive every caller.
        self._tasks = [asyncio.create_task(self._work(), name="corral-postgres-writer") for _ in range(TASKS)]

    def submit(self, session_id: str, operation: Callable[[Batch], T], *, creates: bool = False) -> asyncio.Future[T]:
        """Run an operation on a session; its effects are durable when the future is done. Raises what it raises.

        When the caller is cancelled meanwhile, the operation has been committed or it has not.
        """
        if self._closed:
            raise Unavailable("the store is closed")
        if self._waiting >= self._waiting_operations_max:
            raise Unavailable("too many writes are waiting for the database; try again shortly")
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting += 1
        self._submitted.append(_Write(operation, future, session_id, creates))
        self._rouse()
        return future

    def kept(self, session_id: str) -> Stored | None:
        """The session as this process last committed or read it."""
        return self._sessions.get(session_id)

    def forget(self, session_ids: Iterable[str]) -> None:
        """Another process has written these sessions, or may have."""
        for session_id in session_ids:
            self._sessions.pop(session_id, None)

    async def close(self) -> None:
        """Commit what waits, then let the connection go. Idempotent."""
        self._closed = True
        while self._idle:
            self._rouse()
        await asyncio.wait(self._tasks)
        self._connection.terminate() if self._connection.is_closed() else await self._part()

    async def _part(self) -> None:
        with Caught(), anyio.move_on_after(CONNECT_SECONDS_MAX):
            await self._connection.close()

    # -------------------------------------------------------------------------------------------- the two tasks

    async def _work(self) -> None:
        while True:
            taken = self._take()
            if taken:
                began = time.perf_counter()
                published = await self._commit(taken)
                self._series.committed(len(taken), time.perf_counter() - began)
                self._settle(published, taken)
            elif self._closed:
                return  # what is left is of sessions in the other task's batch, and that task takes it next
            else:
                idle = asyncio.get_running_loop().create_future()
                self._idle.append(idle)
                await idle

    def _rouse(self) -> None:
        """Let one task look, if any is idle: the others look when they are done with what they have."""
        if self._idle and not (idle := self._idle.pop()).done():  # as it is when the whole loop was cancelled
            idle.set_result(None)

    def _take(self) -> list[_Write]:
        """The next batch: all that waits, but nothing of sessions that are in the other."""
        limit = self._batch_operations_max
        taken: list[_Write] = []
        left: list[_Write] = []
        for write in self._submitted:
            (left if len(taken) == limit or write.session_id in self._busy else taken).append(write)
        self._submitted = left
        self._busy.update([write.session_id for write in taken])
        return taken

    def _settle(self, published: Sequence[Published], taken: Sequence[_Write]) -> None:
        self._waiting -= len(taken)
        self._busy.difference_update([write.session_id for write in taken])
        try:
            if published:
                self._streams.deliver(published)
        finally:
            for write in taken:
                write.settle()

    async def _commit(self, taken: Sequence[_Write]) -> list[Published]:
        """Commit all, or say to each why not."""
        doubts, attempts = Doubts(taken), 0
        lost_at: float | None = None
        while attempts < ATTEMPTS_MAX:
            batch: Batch | None = None
            with Caught() as caught:
                batch = await self._attempt(taken, doubts, locked=attempts > 0)
            error = caught.error
            if error is None:
                assert batch is not None
                return list(batch.published.values())
            self.forget(write.session_id for write in taken)
            if is_lost(error):
                log.warning("database_connection_lost", reason=reason(error))
                self._connection.terminate()
                if lost_at is not None:
                    await asyncio.sleep(RECONNECT_SECONDS)
                lost_at = lost_at or time.monotonic()
                if not doubts or self._closed or time.monotonic() - lost_at > self._doubt_seconds_max:
                    return await self._give_up(taken, error, doubts)
            elif _is_worth_another(error):
                attempts += 1
            else:
                return await self._give_up(taken, error, doubts)
        return await self._give_up(taken, Unavailable("other processes write the same sessions all the time"), doubts)

    async def _give_up(self, taken: Sequence[_Write], error: Exception, doubts: Doubts) -> list[Published]:
        if doubts:
            self._streams.doubt([write.session_id for write in taken])
        elif len(taken) > 1 and not is_lost(error):  # something in it cannot be stored: that alone is to fail
            return [one for each in taken for one in await self._commit([each])]
        for write in taken:
            told = f"the database did not take the write: {reason(error)}"
            write.error = OutcomeUnknown() if doubts else Unavailable(told)
            write.error.__cause__ = error
        return []

    # ----------------------------------------------------------------------------------------------- an attempt

    async def _attempt(self, taken: Sequence[_Write], doubts: Doubts, *, locked: bool) -> Batch:
        """One try. Afterwards all of it is durable, or this raises and nothing is; or nobody knows, and it is among the
        doubts. What is durable is kept, unless it was found to be so only now."""
        locked = locked or bool(doubts)
        foreseen = None if locked else self._foresee(taken)
        async with self._alone:
            if self._connection.is_closed():
                self._connection = await connect_writer(self._url)
            if not locked:
                batch = foreseen or await self._decide(taken, self._kept(taken))
                await self._send(batch, doubts)
            else:
                async with self._connection.transaction():
                    names = {clean(write.session_id) for write in taken}
                    await self._connection.execute(SQL["lock_sessions"], list(names))
                    happened = await doubts.resolve(self._connection)
                    if happened is not None:
                        return happened
                    batch = await self._decide(taken, {})
                    await self._send(batch, doubts)
            self._remember(batch)
        return batch

    async def _send(self, batch: Batch, doubts: Doubts) -> None:
        if not batch.writes:
            return await self._write(batch)
        doubts.send(batch)
        # From here on its numbers are taken, whatever we hear of it.
        self._numbers = [number for number in self._numbers if number not in batch.created]
        with Caught() as caught:
            await self._write(batch)
        if caught.error is not None:
            if not is_lost(caught.error):
                doubts.refused()
            raise caught.error

    def _kept(self, taken: Sequence[_Write]) -> Mapping[str, Stored]:
        names = {write.session_id for write in taken}
        return {name: self._sessions[name] for name in names if name in self._sessions}

    def _foresee(self, taken: Sequence[_Write]) -> Batch | None:
        """The batch, decided while the connection may be busy; None when that takes more than is at hand."""
        sessions: dict[str, Stored | None] = {}
        for write in taken:
            stored = self._sessions.get(write.session_id)
            if stored is None or write.creates:
                return None
            sessions[write.session_id] = stored
        batch = Batch(sessions, {}, [], self._clock.now())
        run(taken, batch)
        return None if batch.missing else batch

    async def _decide(self, taken: Sequence[_Write], kept: Mapping[str, Stored]) -> Batch:
        """Run all operations in memory; again, with more bodies, until none is missing."""
        await self._number(sum(write.creates for write in taken))
        sessions = await self._load({write.session_id for write in taken}, kept)
        bodies: dict[tuple[int, int], bytes] = {}
        while True:
            batch = Batch(sessions, bodies, self._numbers, self._clock.now())
            run(taken, batch)
            if not batch.missing:
                return batch
            wanted = sorted(batch.missing)
            numbers, seqs = [key[0] for key in wanted], [key[1] for key in wanted]
            rows = await self._connection.fetch(SQL["queued_bodies"], numbers, seqs)
            if len(rows) < len(wanted):
                raise _MovedOn
            bodies |= {(row["session"], row["seq"]): row["body"] for row in rows}

    async def _load(self, session_ids: set[str], kept: Mapping[str, Stored]) -> dict[str, Stored | None]:
        """Read what is not kept: never by the statement that takes the lock, which reads documents before it waits."""
        sessions: dict[str, Stored | None] = dict.fromkeys(session_ids)
        sessions |= kept
        wanted = session_ids - kept.keys()
        if wanted:
            for row in await self._connection.fetch(SQL["sessions_by_id"], [clean(name) for name in wanted]):
                sessions[row["id"]] = read_stored(row)
        return sessions

    async def _number(self, count: int) -> None:
        """Have numbers for so many new sessions. Those of a commit that fails are lost, which harms nobody."""
        if count > len(self._numbers):
            rows = await self._connection.fetch(SQL["session_numbers"], count + NUMBERS_AT_ONCE)
            self._numbers += [row["number"] for row in rows]

    async def _write(self, batch: Batch) -> None:
        touched = list(batch.touched.values())
        guard = [each.number for each in touched], [each.version for each in touched]
        if not batch.writes:
            if touched and await self._connection.fetchval(SQL["are_current"], *guard) != len(touched):
                raise _MovedOn
        elif not batch.is_rare:
            await self._append(batch, guard)
        elif self._connection.is_in_transaction():
            await self._write_all(batch, guard)
        else:
            async with self._connection.transaction():
                await self._write_all(batch, guard)

    async def _write_all(self, batch: Batch, guard: tuple[list[int], list[int]]) -> None:
        execute, many = self._connection.execute, self._connection.executemany
        if guard[0]:
            await execute(SQL["expect_versions"], *guard)
        if batch.deleted:
            for name in ("delete_session_events", "delete_session_documents", "delete_sessions"):
                await execute(SQL[name], batch.deleted)
        if batch.created:
            await many(SQL["insert_session"], [insert_parameters(each) for each in batch.created.values()])
        described = [*batch.created.values(), *batch.redescribed.values()]
        if batch.redescribed:
            changed = [
                (each.number, *session_columns(each.session), archived_at(each.session))
                for each in batch.redescribed.values()
            ]
            await many(SQL["update_session"], changed)
        if described:
            await many(SQL["put_document"], [(each.number, encode(each.session)) for each in described])
        if batch.moved:
            numbers, seqs = zip(*batch.moved, strict=True)
            await execute(SQL["delete_events"], numbers, seqs)
        for number, stored in batch.redescribed.items():
            batch.advanced.setdefault(number, stored)  # so that its version moves on
        await self._append(batch, ([], []))

    async def _append(self, batch: Batch, guard: tuple[list[int], list[int]]) -> None:
        """The one statement. It locks sessions apart only when it rests on some that it does not change.

        Rows go in the order of sessions, so that processes seldom lock them crosswise. Should they, the server undoes
        one of them and it is decided again.
        """
        advanced = [
            (number, stored.version, encode(stored.state), stored.state.status, stored.epoch)
            for number, stored in sorted(batch.advanced.items())
        ]
        rows = [event_parameters(number, row) for (number, _), row in batch.events.items()]
        notices = self._streams.notices(batch.published.values())
        name, seen = ("append", ()) if len(advanced) == len(guard[0]) else ("append_beside_reads", guard)
        await self._connection.execute(SQL[name], advanced, rows, notices, batch.spent, *seen)

    def _remember(self, batch: Batch) -> None:
        """Sessions go to the end of what is kept, and the longest unused leave at its front."""
        for session_id, stored in batch.sessions.items():
            self._sessions.pop(session_id, None)
            if stored is None:
                continue
            if stored.number in batch.advanced or stored.number in batch.created:
                stored = msgspec.structs.replace(stored, version=stored.version + 1)
            self._sessions[session_id] = stored
        while len(self._sessions) > self._sessions_cached_max:
            del self._sessions[next(iter(self._sessions))]


class _MovedOn(Exception):
    """A session is not as it was when it was decided about."""


def _is_worth_another(error: Exception) -> bool:
    """Whether the server, or we, undid the attempt for a reason that may be gone by now."""
    if isinstance(error, (*CLASHED, _MovedOn)):
        return True
    if isinstance(error, asyncpg.UniqueViolationError):
        return error.constraint_name == "sessions_id_key"
    return isinstance(error, asyncpg.PostgresError) and error.sqlstate == MOVED_ON
