"""What the processes of one PostgreSQL database tell each other: which logs have grown, and which sessions have work.

A commit sends one notice per batch, in its own transaction: `(session, first seq, last seq)` of each log, never what is
in it; and none where one process has the sessions for itself (`exclusive`), since no other shows their logs. A process
that has open streams of such a session reads the rows and shows them. Notices may be lost, with their connection: on a
new one, and now and then anyway, followed logs are compared with what was shown. So a lost notice only delays. The
commits of this process itself need no reading, unless another's come in between: a stream shows a log in its order,
here as there.

One difference remains: an event that was queued and taken up between two readings is seen once, processed.

Wake-ups are the second channel: `wake` tells whoever advances sessions elsewhere (`on_wake`). They carry no truth
either; an engine finds the same in `EventLog.unfinished`. Previews have channels of their own (`postgres_previews.py`).
"""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import NamedTuple

import anyio
import asyncpg
import msgspec
import structlog

from corral.errors import MachineUnfit, Unavailable
from corral.interfaces.bus import Bus, Frame, Subscription
from corral.interfaces.clock import Clock
from corral.storage.columns import INTEGER_MAX
from corral.storage.frames import deleted_frame
from corral.storage.jobs import Caught
from corral.storage.postgres_batch import Published
from corral.storage.postgres_connection import (
    CONNECT_SECONDS_MAX,
    LOCK_CLASS,
    LOST,
    SQL,
    WORKER_LOCK,
    Connection,
    Readers,
    connect,
)
from corral.storage.postgres_previews import PREVIEWS, READERS, Previews

log = structlog.get_logger(__name__)

EVENTS, WAKE = "corral_events", "corral_wake"
NOTICE_BYTES_MAX = 7_900
"""The server takes less than 8,000 in one notice."""
RECHECK_SECONDS = 15.0
"""How often followed logs are looked at without a notice."""
RETRY_SECONDS = 0.5
WAITING_NOTICES_MAX = 10_000
"""Ranges that wait to be read. When more come, followed logs are compared as a whole instead."""


class _Grown(msgspec.Struct, array_like=True, frozen=True):
    """One log in a notice."""

    session_id: str
    low: int
    high: int


class _Notice(msgspec.Struct, array_like=True, frozen=True):
    """One batch. A process knows its own by the origin."""

    origin: str
    logs: list[_Grown]


class _Wake(msgspec.Struct, array_like=True, frozen=True):
    session_id: str
    interrupt: bool


class _Followed:
    """A log with open streams here."""

    __slots__ = ("at", "base")

    def __init__(self) -> None:
        self.at: int | None = None
        """The last seq that was shown, or was there before; None until that is known."""
        self.base = 0
        """The last seq that was there before."""


class _Range(NamedTuple):
    """Rows to show. The deleted log's is (0, 0); (0, end of numbers) is whatever has not been shown."""

    session_id: str
    low: int
    high: int


class SharedBus:
    """The bus of one process among several: subscribing also follows what others commit and preview."""

    def __init__(self, inner: Bus, notices: Notices) -> None:
        self._inner = inner
        self._notices = notices

    def publish(self, frames: Sequence[Frame]) -> None:
        """See `Bus`."""
        self._inner.publish(frames)
        self._notices.previews.publish(frames)

    def subscribe(self, session_id: str, *, previews: Collection[str] = ()) -> Subscription:
        """See `Bus`."""
        first = not self._inner.wants_previews(session_id)
        subscription = self._inner.subscribe(session_id, previews=previews)
        if first:
            self._notices.follow(session_id)
        if previews:
            self._notices.previews.want(session_id)
        return subscription

    def opened_at(self, session_id: str, seq: int) -> None:
        """See `Bus`."""
        self._notices.opened_at(session_id, seq)

    def wants_previews(self, session_id: str) -> bool:
        """See `Bus`."""
        return self._inner.wants_previews(session_id) or self._notices.previews.are_wanted(session_id)


class Notices:
    """The ear and the mouth of one process."""

    def __init__(self, url: str, readers: Readers, bus: Bus, clock: Clock) -> None:
        self.bus = SharedBus(bus, self)
        """For whoever streams."""
        self.forget: Callable[[Iterable[str]], None] = _nobody_forgets
        """Told which sessions others have written."""
        self.on_wake: Callable[[str, bool], None] = _nobody_wakes
        """Told which sessions have work, and whether it is an interrupt, by other processes and this one."""
        self._url = url
        self._readers = readers
        self._streams = bus
        self._clock = clock
        self._origin = secrets.token_hex(8)
        self._own = f'["{self._origin}",'
        """What every notice of this process begins with."""
        self._exclusive = False
        self._followed: dict[str, _Followed] = {}
        self._ranges: deque[_Range] = deque()
        self._pending: Counter[str] = Counter()
        self.previews = Previews(readers, bus, self._origin, lambda session_id: bool(self._pending[session_id]))
        """What is said before it is a fact."""
        self._ready = asyncio.Event()
        self._is_behind = False
        self._connection: Connection | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self, *, exclusive: bool) -> None:
        """Begin to listen. Raises `MachineUnfit` when another process has the right to advance sessions."""
        self._exclusive = exclusive
        await self._listen()
        # Owned here and cancelled by `close`.
        self._task = asyncio.create_task(self._work(), name="corral-postgres-notices")
        self.previews.start()

    async def close(self) -> None:
        """Stop listening, and give up the right. Idempotent."""
        await self.previews.close()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        if self._connection is not None:
            self._connection.remove_termination_listener(self._on_loss)
            with Caught(), anyio.move_on_after(CONNECT_SECONDS_MAX, shield=True):
                await self._connection.close()
        self._connection = self._task = None

    async def wake(self, session_id: str, *, interrupt: bool = False) -> None:
        """Tell whoever advances sessions that this one has work. Raises `Unavailable`."""
        notice = msgspec.json.encode(_Wake(session_id, interrupt)).decode()
        await self._readers.fetch("notify", WAKE, notice)

    # --------------------------------------------------------------------------------------- for the writer

    def notices(self, published: Iterable[Published]) -> list[str]:
        """The texts of a batch, cut to what the server takes."""
        if self._exclusive:
            return []
        texts: list[str] = []
        logs: list[_Grown] = []
        size = 0
        for each in published:
            self.previews.drop(each.session_id)
            logs.append(_Grown(each.session_id, each.low, each.high))
            size += len(each.session_id) + 48
            if size > NOTICE_BYTES_MAX - 256:
                texts.append(self._text(logs))
                logs, size = [], 0
        return [*texts, self._text(logs)] if logs else texts

    def _text(self, logs: list[_Grown]) -> str:
        return msgspec.json.encode(_Notice(self._origin, logs)).decode()

    def deliver(self, published: Iterable[Published]) -> None:
        """Show what was committed here: at once, unless rows of others come before it."""
        for each in published:
            followed = self._followed.get(each.session_id)
            if followed is None or each.high == 0:
                self._streams.publish(each.frames)
                self._followed.pop(each.session_id, None)
            elif followed.at == each.low - 1 and not self._pending[each.session_id]:
                self._streams.publish(each.frames)
                followed.at = each.high
            else:
                self._add(_Range(each.session_id, each.low, each.high))

    def doubt(self, session_ids: Iterable[str]) -> None:
        """Show whatever is there."""
        for session_id in session_ids:
            if session_id in self._followed:
                self._add(_Range(session_id, 0, INTEGER_MAX))

    def follow(self, session_id: str) -> None:
        """A first stream of the session has been opened here."""
        self._followed[session_id] = _Followed()
        self._add(_Range(session_id, 0, INTEGER_MAX))

    def opened_at(self, session_id: str, seq: int) -> None:
        """What a stream has begun after. A look that had to wait for the database would find more than that. Nothing up
        to there is shown (there is no `base`): the first look may have shown what came later."""
        followed = self._followed.get(session_id)
        if followed is not None and followed.at is None:
            followed.at = seq

    def _add(self, wanted: _Range) -> None:
        if len(self._ranges) >= WAITING_NOTICES_MAX:
            self._is_behind = True
        else:
            self._ranges.append(wanted)
            self._pending[wanted.session_id] += 1
        self._ready.set()

    # --------------------------------------------------------------------------------------- the connection

    async def _listen(self) -> None:
        connection = await connect(self._url, "listener")
        try:
            if self._exclusive and not await connection.fetchval(SQL["take_lock"], LOCK_CLASS, WORKER_LOCK):
                raise MachineUnfit(
                    "Another server advances the sessions of this database; stop that one first. "
                    "Sharing them among several comes with a later release."
                )
            await connection.add_listener(EVENTS, self._on_events)
            await connection.add_listener(WAKE, self._on_wake)
            await connection.add_listener(PREVIEWS, self.previews.on_previews)
            await connection.add_listener(READERS, self.previews.on_readers)
        except BaseException:
            connection.terminate()
            raise
        connection.add_termination_listener(self._on_loss)
        self._connection = connection

    def _on_loss(self, connection: object) -> None:
        self._connection = None
        self._ready.set()

    def _on_events(self, connection: object, pid: int, channel: str, payload: object) -> None:
        if str(payload).startswith(self._own):  # by far the most, and each may name a hundred logs
            return
        notice = msgspec.json.decode(str(payload), type=_Notice)
        self.forget(each.session_id for each in notice.logs)
        for session_id, low, high in ((each.session_id, each.low, each.high) for each in notice.logs):
            if session_id in self._followed:
                self._add(_Range(session_id, low, high))

    def _on_wake(self, connection: object, pid: int, channel: str, payload: object) -> None:
        wake = msgspec.json.decode(str(payload), type=_Wake)
        self.on_wake(wake.session_id, wake.interrupt)

    # --------------------------------------------------------------------------------------------- the task

    async def _work(self) -> None:
        compared_at = anyio.current_time()
        while True:
            with anyio.CancelScope(deadline=compared_at + RECHECK_SECONDS):
                await self._ready.wait()
            self._ready.clear()
            try:
                # Asked as well, since one that ends while `_listen` is at its last step tells nobody.
                if self._connection is None or self._connection.is_closed():
                    await self._listen()
                    self._is_behind = True
                # By the clock, and not when nothing has come for so long: what is lost may be of one log among many.
                if self._is_behind or anyio.current_time() >= compared_at + RECHECK_SECONDS:
                    self._is_behind, compared_at = False, anyio.current_time()
                    await self._compare()
                await self._show_all()
            except (Unavailable, MachineUnfit, asyncpg.PostgresError, *LOST) as error:
                log.warning("notices_wait_for_database", reason=str(error))
                self._is_behind = True
                await asyncio.sleep(RETRY_SECONDS)
                self._ready.set()

    async def _compare(self) -> None:
        """Look at all followed logs, and stop following those that nobody reads."""
        for session_id in [name for name in self._followed if not self._streams.wants_previews(name)]:
            del self._followed[session_id]
        if not self._followed:
            return
        names = list(self._followed)
        there = {row["id"]: row["seq"] for row in await self._readers.fetch("session_seqs", names)}
        for name in names:
            followed = self._followed.get(name)
            if name not in there:
                self._add(_Range(name, 0, 0))
            elif followed is not None and followed.at is not None and there[name] > followed.at:
                self._add(_Range(name, 0, INTEGER_MAX))

    async def _show_all(self) -> None:
        """Show what waits now. What comes meanwhile comes after the next look at the clock."""
        for _ in range(len(self._ranges)):
            wanted = self._ranges[0]
            await self._show(wanted)
            self._ranges.popleft()
            self._pending[wanted.session_id] -= 1
            if not self._pending[wanted.session_id]:
                del self._pending[wanted.session_id]
        if self._ranges:
            self._ready.set()

    async def _show(self, wanted: _Range) -> None:
        """Read rows and show them, each once and in the order of the log."""
        session_id, low, high = wanted
        followed = self._followed.get(session_id)
        if followed is None:
            return
        if high == 0:
            self._streams.publish([deleted_frame(session_id, self._clock.now())])
            self._followed.pop(session_id, None)
        elif followed.at is None and low == 0:
            rows = await self._readers.fetch("session_seqs", [session_id])
            if followed.at is None:
                followed.at = followed.base = rows[0]["seq"] if rows else 0
        elif followed.at is None:
            followed.at = followed.base = low - 1
            await self._show_rows(session_id, followed, low - 1, high)
        elif 0 < high <= followed.base:
            # It was committed when the stream was already open, and its notice came after the first look at the log.
            await self._show_rows(session_id, followed, low - 1, high)
        elif high > followed.at:
            await self._show_rows(session_id, followed, followed.at, high)

    async def _show_rows(self, session_id: str, followed: _Followed, above: int, high: int) -> None:
        rows = await self._readers.fetch("rows_between", session_id, above, high)
        if self._followed.get(session_id) is not followed:
            return  # it was deleted or left meanwhile
        self._streams.publish([Frame(session_id, row["type"], row["body"]) for row in rows])
        shown = rows[-1]["seq"] if rows else above
        followed.at = max(followed.at or 0, shown if high == INTEGER_MAX else high)


def _nobody_forgets(session_ids: Iterable[str]) -> None:
    """Until there is a writer."""


def _nobody_wakes(session_id: str, interrupt: bool) -> None:
    """Until an engine listens."""
