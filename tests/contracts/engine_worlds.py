"""Engines to hold against their contract: an engine that is woken, workers that advance, and a log of what they did.

What advances here does nothing but note that it does, and wait until the test lets it go: an engine decides who and
when, and the contract is about nothing else.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple

import anyio

from corral.config_sections import TemporalSettings
from corral.engines.local import LocalEngine
from corral.engines.temporal import Around, TemporalEngine
from corral.engines.temporal_server import connect
from corral.interfaces.engine import Engine, Signal
from tests import temporal_server

WAIT_SECONDS_MAX = 60
GRACE_SECONDS = 0.5


class Advance(NamedTuple):
    """One `advance` as its worker saw it."""

    session_id: str
    interrupted: Signal
    inherited: bool
    go: asyncio.Event
    """Set it, and the session rests."""


class Hands:
    """A `Worker` whose turns last until they are told to end."""

    def __init__(self) -> None:
        self.begun: asyncio.Queue[Advance] = asyncio.Queue()
        self.ended: asyncio.Queue[str] = asyncio.Queue()
        self.given_up: asyncio.Queue[str] = asyncio.Queue()
        self.running: dict[str, int] = {}
        self.most: dict[str, int] = {}
        """The most turns of a session that ran here at once."""
        self.known: list[Advance] = []
        self.cancelled: list[str] = []
        self.failures: list[Exception] = []
        """Raised by the next turns, one each, when they are let go."""
        self.refusals: list[Exception] = []
        """Raised when sessions are given up, one each."""

    async def advance(self, session_id: str, interrupted: Signal, *, inherited: bool) -> None:
        self.running[session_id] = self.running.get(session_id, 0) + 1
        self.most[session_id] = max(self.most.get(session_id, 0), self.running[session_id])
        turn = Advance(session_id, interrupted, inherited, asyncio.Event())
        self.known.append(turn)
        self.begun.put_nowait(turn)
        try:
            await turn.go.wait()
            if self.failures:
                raise self.failures.pop(0)
        except asyncio.CancelledError:
            self.cancelled.append(session_id)
            raise
        finally:
            self.running[session_id] -= 1
            self.ended.put_nowait(session_id)

    async def give_up(self, session_id: str) -> None:
        if self.refusals:
            raise self.refusals.pop(0)
        self.given_up.put_nowait(session_id)

    async def next(self) -> Advance:
        """The next turn that begins."""
        with anyio.fail_after(WAIT_SECONDS_MAX):
            return await self.begun.get()

    async def rest(self, turn: Advance) -> None:
        """Let a turn end, and wait until it has."""
        turn.go.set()
        with anyio.fail_after(WAIT_SECONDS_MAX):
            assert await self.ended.get() == turn.session_id


class World:
    """One backend's engines."""

    def __init__(self) -> None:
        self.hands = Hands()
        self.unfinished: list[str] = []
        """What the log would say."""
        self.engine: Engine

    async def start(self, sessions: Sequence[str] = ()) -> None:
        """Bring up the engine that is woken, and what advances."""
        raise NotImplementedError

    async def stop(self, grace_seconds: float = GRACE_SECONDS) -> None:
        """Stop what advances, and then what is woken."""
        raise NotImplementedError


class LocalWorld(World):
    """Everything in one process."""

    async def start(self, sessions: Sequence[str] = ()) -> None:
        self.engine = LocalEngine(sessions_running_max=100, retry_seconds=0.05)
        await self.engine.start(self.hands, sessions)

    async def stop(self, grace_seconds: float = GRACE_SECONDS) -> None:
        await self.engine.stop(grace_seconds)


class TemporalWorld(World):
    """A process that is woken and some that advance, as far as one process can stand for several."""

    def __init__(self, address: str) -> None:
        super().__init__()
        self.settings = TemporalSettings(
            address=address,
            task_queue=temporal_server.new_task_queue(),
            retry_seconds=0.05,
            drain_seconds=GRACE_SECONDS,
            interrupt_check_seconds=0.05,
        )
        self.hosts: dict[str, str] = {}
        """Where sessions have their sandboxes."""
        self.interrupts: dict[str, str] = {}
        """What waits in their logs."""
        self.workers: dict[str, TemporalEngine] = {}
        self.woken: Engine | None = None

    async def start(self, sessions: Sequence[str] = ()) -> None:
        self.engine = self.woken = await self.make(None)
        await self.engine.start(self.hands, sessions)
        await self.start_worker("a", self.hands)

    async def make(self, host: str | None, settings: TemporalSettings | None = None) -> TemporalEngine:
        """An engine by itself."""
        client = await connect(self.settings)  # one each: workers that share a client stop together
        around = Around(self._poke, self._interrupt_of, self._unfinished, self._host_of)
        return TemporalEngine(client, settings or self.settings, around, host=host, runs=100 if host else 0)

    async def start_worker(self, host: str, hands: Hands) -> TemporalEngine:
        """One more host."""
        engine = self.workers[host] = await self.make(host)
        await engine.start(hands, ())
        return engine

    async def _poke(self, session_id: str) -> None:
        for worker in self.workers.values():
            worker.poked(session_id)

    async def _interrupt_of(self, session_id: str) -> str | None:
        return self.interrupts.get(session_id)

    async def _unfinished(self) -> list[str]:
        return self.unfinished

    async def _host_of(self, session_id: str) -> str | None:
        return self.hosts.get(session_id)

    async def stop(self, grace_seconds: float = GRACE_SECONDS) -> None:
        assert self.woken is not None
        for engine in (*self.workers.values(), self.woken):
            await engine.stop(grace_seconds)


BACKENDS = ("local", "temporal")


@asynccontextmanager
async def world(backend: str) -> AsyncGenerator[World]:
    """A world of this backend, that starts when it is told to and is stopped at the end."""
    made = LocalWorld() if backend == "local" else TemporalWorld(temporal_server.shared())
    try:
        yield made
    finally:
        for turn in made.hands.known:
            turn.go.set()
        await made.stop()


def new_session_id() -> str:
    """For a session that nobody else has."""
    return f"sesn_{secrets.token_hex(8)}"
