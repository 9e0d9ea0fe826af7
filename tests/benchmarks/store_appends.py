"""Durable appends per second: the embedded store beside SQLite itself.

Two arms write the same rows into the same schema on the same disk, from the same number of sessions, each of which
waits for its append to be on disk before it sends the next. Both commit all that waits at once. The arms take turns: a
disk's weather changes within seconds. Their ratio travels between machines; the numbers of appends do not.

`store` is `EventLog.transact` with a small decision, for a holder of the session's epoch.

`raw` is what one would write for this one job on `sqlite3` itself. Its caller makes an event with a fresh id. Its
thread takes what waits, holds the caller's epoch against the session's, gives the event its place and time, encodes it
and the session's new state with msgspec, and writes rows and states by two `executemany` and one commit. It has no
decisions, no other kinds of events, no streams, no cache that forgets, no limits, and nothing survives its errors.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import statistics
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from datetime import UTC, datetime
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import NamedTuple, TypeAlias

import msgspec

from corral.domain import event as ev
from corral.domain import lifecycle
from corral.domain.agent import ModelConfig, SessionAgent
from corral.domain.content import TextBlock
from corral.domain.ids import new_id
from corral.domain.session import Session, SessionState
from corral.errors import StaleEpoch
from corral.interfaces.bus import Frame, Subscription
from corral.interfaces.event_log import Decision
from corral.storage.columns import micros
from corral.storage.frames import encode
from corral.storage.sqlite import open_store
from corral.storage.sqlite_file import open_shared
from corral.storage.sqlite_rows import SEQ_BITS

NAME = "durable appends"
SESSIONS = (1, 200)
ROUNDS = 4
SECONDS = 1.0
EPOCH = 1
TEXT = "The build is green: 412 tests passed in 38 s, none were skipped and nothing was left running. " * 4

Appending: TypeAlias = Callable[[int], Awaitable[object]]


class Row(NamedTuple):
    """One measurement."""

    label: str
    value: float
    unit: str
    note: str


class Clock:
    def now(self) -> datetime:
        return datetime.now(UTC)


class NoReaders:
    """A bus that nobody listens to."""

    def publish(self, frames: Sequence[Frame]) -> None:
        pass

    def subscribe(self, session_id: str, *, previews: Collection[str] = ()) -> Subscription:
        raise NotImplementedError

    def opened_at(self, session_id: str, seq: int) -> None:
        raise NotImplementedError

    def wants_previews(self, session_id: str) -> bool:
        return False


class Driven(NamedTuple):
    """What one arm did in one round."""

    rate: float
    """Appends per second."""
    latency: float
    """Seconds of an append, median."""
    cpu: float
    """Seconds of this process's processor time for an append."""


def run() -> list[Row]:
    """Measure all arms, in turns."""
    store: dict[int, list[Driven]] = {sessions: [] for sessions in SESSIONS}
    raw: dict[int, list[Driven]] = {sessions: [] for sessions in SESSIONS}
    fsyncs: list[float] = []
    for _ in range(ROUNDS):
        for sessions in SESSIONS:
            for arm, rounds in ((_store, store), (_raw, raw)):
                with tempfile.TemporaryDirectory() as directory:
                    fsyncs.append(_fsync_seconds(Path(directory)))
                    rounds[sessions].append(asyncio.run(arm(Path(directory) / "bench.db", sessions)))
    rows = [Row("fdatasync of 4 KiB", statistics.median(fsyncs) * 1000, "ms", "median, beside the arms")]
    for sessions in SESSIONS:
        rows.append(rate(sessions, "raw SQLite", raw[sessions]))
        rows += compare(sessions, "store", store[sessions], raw[sessions])
    return rows


def rate(sessions: int, arm: str, rounds: Sequence[Driven]) -> Row:
    """How fast an arm was."""
    p50 = statistics.median(each.latency for each in rounds) * 1000
    appends = statistics.median(each.rate for each in rounds)
    return Row(f"{arm}, {_who(sessions)}", appends, "appends/s", f"p50 {p50:.1f} ms")


def compare(sessions: int, arm: str, rounds: Sequence[Driven], raw: Sequence[Driven]) -> list[Row]:
    """How fast an arm was beside the bare driver. Processor time is the least of all: a busy machine adds to it."""
    ratio = statistics.median(ours.rate / theirs.rate for ours, theirs in zip(rounds, raw, strict=True))
    ours, theirs = [min(each.cpu for each in which) * 1e6 for which in (rounds, raw)]
    return [
        rate(sessions, arm, rounds),
        Row(f"{arm} beside raw, {_who(sessions)}", 100 * ratio, "%", "median of the rounds' ratios; aim: >= 80"),
        Row(f"{arm}, {_who(sessions)}", ours, "µs CPU", f"of this process for an append; raw {theirs:.1f}"),
    ]


def _who(sessions: int) -> str:
    return "1 session" if sessions == 1 else f"{sessions} sessions"


def _fsync_seconds(directory: Path) -> float:
    """What one small durable write costs just now."""
    descriptor = os.open(directory / "probe", os.O_WRONLY | os.O_CREAT)
    times: list[float] = []
    for number in range(5):
        start = time.perf_counter()
        os.pwrite(descriptor, b"x" * 4096, number * 4096)
        os.fdatasync(descriptor)
        times.append(time.perf_counter() - start)
    os.close(descriptor)
    return statistics.median(times)


async def drive(append: Appending, sessions: int, seconds_max: float = SECONDS) -> Driven:
    """Append for a while, with every session waiting for its own."""
    latencies: list[float] = []
    start, cpu = time.perf_counter(), time.process_time()

    async def one(number: int) -> None:
        while (begun := time.perf_counter()) - start < seconds_max:
            await append(number)
            latencies.append(time.perf_counter() - begun)

    await asyncio.gather(*(one(number) for number in range(sessions)))
    seconds, spent = time.perf_counter() - start, time.process_time() - cpu
    return Driven(len(latencies) / seconds, statistics.median(latencies), spent / len(latencies))


# ----------------------------------------------------------------------------------------------------- the store


def message() -> ev.AgentMessage:
    return ev.AgentMessage(id=new_id("sevt"), content=(TextBlock(text=TEXT),))


def say_something(session: Session, state: SessionState, now: datetime) -> Decision:
    return Decision((lifecycle.Append(message()),))


def session_of(number: int) -> Session:
    now = datetime.now(UTC)
    return Session(
        id=f"sesn_{number:026}",
        workspace_id="wrkspc_default",
        agent=SessionAgent(id="agent_1", version=1, name="Bench", model=ModelConfig(id="some-model"), system=TEXT),
        environment_id="env_1",
        created_at=now,
        updated_at=now,
    )


async def _store(path: Path, sessions: int) -> Driven:
    store = await open_store(path, NoReaders(), Clock())
    created = [session_of(number) for number in range(sessions)]
    for session in created:
        await store.log.create(session, SessionState(thread_id=new_id("sthr")), say_something)
        await store.log.claim(session.id)
    ids = [session.id for session in created]
    result = await drive(lambda number: store.log.transact(ids[number], say_something, epoch=EPOCH), sessions)
    await store.close()
    return result


# ----------------------------------------------------------------------------------------------------------- raw


class Append(NamedTuple):
    """What waits for the raw writer."""

    number: int
    epoch: int
    event: ev.AgentMessage
    future: asyncio.Future[None]


class RawLog:
    """What a raw writer knows of a session."""

    def __init__(self, seq: int) -> None:
        self.epoch = EPOCH
        self.state = SessionState(thread_id=new_id("sthr"), seq=seq)

    def advance(self, append: Append, now: datetime) -> tuple[int, bytes]:
        """Give the event its place: its seq and its body. Raises `StaleEpoch`."""
        if append.epoch != self.epoch:
            raise StaleEpoch(f"epoch {append.epoch} is over")
        self.state = msgspec.structs.replace(self.state, seq=self.state.seq + 1, last_at=now)
        return self.state.seq, encode(msgspec.structs.replace(append.event, processed_at=now))


class _RawWriter:
    """SQLite with group commit and nothing else."""

    def __init__(self, path: Path, sessions: int) -> None:
        self._connection = open_shared(path)
        self._loop = asyncio.get_running_loop()
        self._queue: SimpleQueue[Append | None] = SimpleQueue()
        self._logs = [RawLog(0) for _ in range(sessions)]
        self._os_thread = threading.Thread(target=self._work)
        self._os_thread.start()

    async def append(self, number: int) -> None:
        future: asyncio.Future[None] = self._loop.create_future()
        self._queue.put(Append(number, EPOCH, message(), future))
        await future

    def close(self) -> None:
        self._queue.put(None)
        self._os_thread.join()
        self._connection.close()

    def _work(self) -> None:
        while (append := self._queue.get()) is not None:
            appends = [append]
            try:
                while (more := self._queue.get_nowait()) is not None:
                    appends.append(more)
            except Empty:
                pass
            self._commit(appends)
            self._loop.call_soon_threadsafe(self._settle, [append.future for append in appends])

    def _commit(self, appends: Sequence[Append]) -> None:
        now = datetime.now(UTC)
        stamp = micros(now)
        rows: list[tuple[int, str, str, int, bytes]] = []
        states: list[tuple[int, bytes]] = []
        for append in appends:
            log = self._logs[append.number]
            seq, body = log.advance(append, now)
            rows.append(((append.number + 1) << SEQ_BITS | seq, append.event.id, "agent.message", stamp, body))
            states.append((append.number + 1, encode(log.state)))
        execute: Callable[..., sqlite3.Cursor] = self._connection.execute
        execute("BEGIN IMMEDIATE")
        self._connection.executemany(
            "INSERT INTO events (position, id, type, processed_at, body) VALUES (?, ?, ?, ?, ?)", rows
        )
        self._connection.executemany("INSERT OR REPLACE INTO session_states VALUES (?, ?)", states)
        execute("COMMIT")

    def _settle(self, futures: Sequence[asyncio.Future[None]]) -> None:
        for future in futures:
            future.set_result(None)


async def _raw(path: Path, sessions: int) -> Driven:
    writer = _RawWriter(path, sessions)
    result = await drive(writer.append, sessions)
    writer.close()
    return result


if __name__ == "__main__":
    for row in run():
        print(f"{row.label:32} {row.value:12,.1f} {row.unit:10} {row.note}")
