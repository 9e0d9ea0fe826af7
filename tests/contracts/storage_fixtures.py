"""Stores to test, and what they are filled with: a bus that remembers, a clock that is moved by hand, small sessions.

Run as a program (`python -m tests.contracts.storage_fixtures DATABASE`), this file is the process that
`test_storage_sqlite.py` kills: it appends without end and says which appends were acknowledged.
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncGenerator, Collection, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

import anyio
import pytest

from corral.domain import event as ev
from corral.domain.agent import ModelConfig, SessionAgent
from corral.domain.content import TextBlock
from corral.domain.ids import new_id
from corral.domain.lifecycle import Append, Change
from corral.domain.query import Record
from corral.domain.session import Session, SessionState
from corral.interfaces.bus import Frame, Subscription
from corral.interfaces.event_log import Decide, Decision, EventLog
from corral.interfaces.records import Records
from corral.interfaces.store import Archive
from corral.storage import postgres
from corral.storage.ephemeral import EphemeralStore
from corral.storage.sqlite import open_store
from tests import postgres_server

ROOT = Path(__file__).resolve().parents[2]
START = datetime(2026, 1, 1, tzinfo=UTC)
SECOND = timedelta(seconds=1)

Backend: TypeAlias = Literal["ephemeral", "sqlite", "postgresql"]
BACKENDS: tuple[Backend, ...] = ("ephemeral", "sqlite", "postgresql")


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.time = START

    def now(self) -> datetime:
        return self.time

    def move(self, by: timedelta = SECOND) -> None:
        self.time += by


class Bus:
    """Remembers what was published."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []

    def publish(self, frames: Sequence[Frame]) -> None:
        self.frames += frames

    def subscribe(self, session_id: str, *, previews: Collection[str] = ()) -> Subscription:
        raise NotImplementedError

    def opened_at(self, session_id: str, seq: int) -> None:
        raise NotImplementedError

    def wants_previews(self, session_id: str) -> bool:
        return False

    def of(self, session_id: str) -> list[Frame]:
        return [frame for frame in self.frames if frame.session_id == session_id]


class Stage(NamedTuple):
    """A store and what surrounds it."""

    log: EventLog
    records: Records
    bus: Bus
    clock: Clock
    archive: Archive


@asynccontextmanager
async def staged(backend: Backend, directory: Path) -> AsyncGenerator[Stage]:
    """An open store. In one directory SQLite has the same file every time; PostgreSQL is always empty."""
    bus, clock = Bus(), Clock()
    if backend == "ephemeral":
        memory = EphemeralStore(bus, clock)
        yield Stage(memory.log, memory.records, bus, clock, memory.archive)
        await memory.close()
        return
    if backend == "postgresql":
        if why := postgres_server.unavailable():
            pytest.skip(why)
        async with postgres_server.swept() as url, on_postgres(url) as stage:
            yield stage
        return
    store = await open_store(directory / "corral.db", bus, clock)
    try:
        yield Stage(store.log, store.records, bus, clock, store.archive)
    finally:
        await store.close()


@asynccontextmanager
async def on_postgres(url: str, *, exclusive: bool = True, bus: Bus | None = None) -> AsyncGenerator[Stage]:
    """A store over the database at `url`."""
    bus, clock = bus or Bus(), Clock()
    store = await postgres.open_store(url, bus, clock, exclusive=exclusive)
    try:
        yield Stage(store.log, store.records, bus, clock, store.archive)
    finally:
        await store.close()


# -------------------------------------------------------------------------------------------------- contents


def session(
    session_id: str = "sesn_a",
    *,
    workspace_id: str = "wrkspc_1",
    created_at: datetime = START,
    agent_id: str = "agent_1",
    deployment_id: str | None = None,
    archived_at: datetime | None = None,
) -> Session:
    return Session(
        id=session_id,
        workspace_id=workspace_id,
        agent=SessionAgent(id=agent_id, version=1, name="Ada", model=ModelConfig(id="some-model")),
        environment_id="env_1",
        created_at=created_at,
        updated_at=created_at,
        deployment_id=deployment_id,
        archived_at=archived_at,
    )


def fresh() -> SessionState:
    return SessionState(thread_id="sthr_1")


def text(words: str) -> tuple[TextBlock]:
    return (TextBlock(text=words),)


def said(words: str = "hello") -> Append:
    return Append(ev.AgentMessage(id=new_id("sevt"), content=text(words)))


def asked(words: str = "hello") -> Append:
    return Append(ev.UserMessage(id=new_id("sevt"), content=text(words)), queued=True)


def deciding(*changes: Change) -> Decide:
    """A decision function that always wants the same."""
    return lambda session, state, now: Decision(changes)


def words_of(events: Iterable[ev.StoredEvent]) -> list[str]:
    return [
        block.text
        for event in events
        if isinstance(event, ev.AgentMessage | ev.UserMessage)
        for block in event.content
        if isinstance(block, TextBlock)
    ]


def record(
    record_id: str,
    *,
    kind: str = "agent",
    workspace_id: str = "wrkspc_1",
    created_at: datetime = START,
    body: bytes = b"{}",
    unique_key: str | None = None,
    parent_id: str | None = None,
    archived_at: datetime | None = None,
    revision: int = 1,
) -> Record:
    return Record(
        kind=kind,
        id=record_id,
        workspace_id=workspace_id,
        created_at=created_at,
        body=body,
        unique_key=unique_key,
        parent_id=parent_id,
        archived_at=archived_at,
        revision=revision,
    )


# ---------------------------------------------------------------------------------- the process that is killed

CHILD_SESSIONS = 20


async def append_for_ever(directory: Path) -> None:
    """Append from many sessions at once, and name each event after its append has returned."""
    async with staged("sqlite", directory) as stage, anyio.create_task_group() as tasks:

        async def work(session_id: str) -> None:
            await stage.log.create(session(session_id), fresh(), deciding())
            while True:
                change = said()
                await stage.log.transact(session_id, deciding(change))
                os.write(1, f"{session_id} {change.event.id}\n".encode())

        for number in range(CHILD_SESSIONS):
            tasks.start_soon(work, f"sesn_{number}")


if __name__ == "__main__":
    anyio.run(append_for_ever, Path(sys.argv[1]))
