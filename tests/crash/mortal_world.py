"""A store, an engine and the real loop, whose process can be made to die right before or right after any durable write.

`Disk` counts the writes of everybody: the loop's and the client's. `MortalLog` stands between them and a real store.
Dying cancels nothing and cleans nothing up, as `kill -9` does not. Sandboxes are real and outlive the worker.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, TypeVar

import anyio
import msgspec

from corral.config_sections import HarnessSettings, SandboxSettings
from corral.domain import event as ev
from corral.domain import intake
from corral.domain.model import ListPrice
from corral.domain.query import EventsQuery, LoggedEvent, Record, SessionsQuery
from corral.domain.session import Session, SessionState
from corral.engines.bus import LocalBus
from corral.engines.local import LocalEngine
from corral.harness.attachments import Attachments
from corral.harness.parts import Parts
from corral.harness.worker import Harness
from corral.interfaces.clock import Clock
from corral.interfaces.event_log import Claim, Committed, Decide, Decision, EventLog, Snapshot, nothing
from corral.interfaces.store import Store
from corral.mcp.servers import SessionServers
from corral.providers.scripted import ScriptedProvider
from corral.sandboxes.process import ProcessSandboxes
from corral.storage.blobs import DiskBlobs
from corral.tools import TOOLS
from tests.unit import builders as make

LIFE_SECONDS_MAX = 60

T = TypeVar("T")
Moment: TypeAlias = Literal["before", "after"]
"""Where a process dies: the write has not happened, or it has and nobody was told."""


class Died(BaseException):
    """What a process does at a write when it is killed there."""


class SystemClock:
    """The machine's."""

    def now(self) -> datetime:
        """Now."""
        return datetime.now(UTC)


class Disk:
    """Counts durable writes; at the fatal one, and after it, nobody gets any further."""

    def __init__(self) -> None:
        self.writes_left: int | None = None
        self.moment: Moment = "before"
        self.on_death: Callable[[], None] = lambda: None
        self.died = anyio.Event()

    async def write(self, action: Callable[[], Awaitable[T]]) -> T:
        """One durable write."""
        if self.writes_left is None:
            return await action()
        self.writes_left -= 1
        if self.writes_left >= 0:
            return await action()
        if self.writes_left == -1 and self.moment == "after":
            await action()
        self.on_death()
        self.died.set()
        raise Died


class MortalLog:
    """An `EventLog` whose writes may be the last thing that its process does."""

    def __init__(self, log: EventLog, disk: Disk) -> None:
        self._log, self._disk = log, disk

    async def create(self, session: Session, state: SessionState, decide: Decide) -> Committed:
        """See `EventLog`."""
        return await self._disk.write(lambda: self._log.create(session, state, decide))

    async def snapshot(self, session_id: str, workspace_id: str | None = None) -> Snapshot:
        """See `EventLog`."""
        return await self._log.snapshot(session_id, workspace_id)

    async def transact(
        self, session_id: str, decide: Decide, *, workspace_id: str | None = None, epoch: int | None = None
    ) -> Committed:
        """See `EventLog`."""
        log = self._log
        return await self._disk.write(lambda: log.transact(session_id, decide, workspace_id=workspace_id, epoch=epoch))

    async def claim(self, session_id: str, decide: Decide = nothing) -> Claim:
        """See `EventLog`."""
        return await self._disk.write(lambda: self._log.claim(session_id, decide))

    async def events(self, session_id: str, query: EventsQuery) -> list[LoggedEvent]:
        """See `EventLog`."""
        return await self._log.events(session_id, query)

    async def sessions(self, query: SessionsQuery) -> list[Snapshot]:
        """See `EventLog`."""
        return await self._log.sessions(query)

    async def unfinished(self) -> list[str]:
        """See `EventLog`."""
        return await self._log.unfinished()

    async def spent_microdollars(self) -> int:
        """See `EventLog`."""
        return await self._log.spent_microdollars()

    async def delete(self, session_id: str, workspace_id: str, allow: Callable[[Session, SessionState], None]) -> None:
        """See `EventLog`."""
        await self._disk.write(lambda: self._log.delete(session_id, workspace_id, allow))


def no_price(model: str) -> ListPrice | None:
    """Nothing has a list price."""
    return None


def wide(model: str) -> int:
    """A window that nothing fills."""
    return 200_000


async def never_stopped() -> bool:
    """Nobody has a spend limit."""
    return False


Sends: TypeAlias = Callable[[Session, SessionState], Sequence[ev.ClientEvent]]
"""What a client sends, seeing the session."""


def nothing_sent(session: Session, state: SessionState) -> Sequence[ev.ClientEvent]:
    """The client sends nothing."""
    return ()


class Act(NamedTuple):
    """What the client does next."""

    events: Sends = nothing_sent
    once_seen: str | None = None
    """Do it while the session works, when an event of this type is in the log; None waits until the session rests."""
    update: Decide | None = None
    """Change the session instead; to be decided twice without harm."""


class World:
    """One session on a store that outlasts its workers."""

    def __init__(
        self,
        directory: Path,
        store: Store,
        bus: LocalBus,
        session: Session,
        *,
        environment: Record | None = None,
        clock: Clock | None = None,
        price: Callable[[str], ListPrice | None] = no_price,
        settings: HarnessSettings | None = None,
    ) -> None:
        self.disk, self.bus, self.store = Disk(), bus, store
        self.log = MortalLog(store.log, self.disk)
        self.directory, self.session = directory, session
        self.blobs = DiskBlobs(directory / "blobs")
        self.clock: Clock = clock or SystemClock()
        self.accepted: list[str] = []
        """Ids of the client's events that were taken."""
        self._sent: tuple[str, ...] = ()
        self._environment = environment or make.environment(session)
        self._price, self._settings = price, settings or HarnessSettings(backoff_seconds=0.001)

    async def create(self) -> None:
        """Store the session; nothing dies here."""
        await self.store.records.put(self._environment)
        await self.store.log.create(self.session, make.state(), lambda session, state, now: Decision(()))

    async def play(self, acts: Sequence[Act], *, dies_at_write: int | None, moment: Moment = "before") -> bool:
        """The whole session, with one death on the way; True if there was one."""
        self.disk.writes_left, self.disk.moment = dies_at_write, moment
        left = list(acts)
        died = await self._live(left)
        self.disk.writes_left = None
        if died:
            assert not await self._live(left), "one death is all there is"
        return died

    async def state(self) -> SessionState:
        """As the store has it."""
        return (await self.store.log.snapshot(self.session.id)).state

    async def events(self) -> list[Mapping[str, Any]]:
        """The log, as the wire has it."""
        logged = await self.store.log.events(self.session.id, EventsQuery(limit=10_000))
        return [msgspec.json.decode(each.body) for each in logged]

    async def close(self) -> None:
        """Remove the sandbox."""
        sandboxes = self._sandboxes()
        await sandboxes.destroy(self.session.id)
        await sandboxes.close()
        self.blobs.close()

    # ------------------------------------------------------------------------------------------- one life

    async def _live(self, acts: list[Act]) -> bool:
        """One process: it works off what it finds and what the client does. True if it died."""
        self.disk.died = anyio.Event()
        with anyio.fail_after(LIFE_SECONDS_MAX):
            async with self._running() as engine, anyio.create_task_group() as tasks:

                async def client() -> None:
                    try:
                        await self._act(engine, acts)
                    except Died:
                        return
                    tasks.cancel_scope.cancel()

                tasks.start_soon(client)
                await self.disk.died.wait()
                tasks.cancel_scope.cancel()
        return self.disk.died.is_set()

    @asynccontextmanager
    async def _running(self) -> AsyncGenerator[LocalEngine]:
        sandboxes = self._sandboxes()
        # A process that is killed cancels nothing on its way out.
        self.disk.on_death = sandboxes.leave
        servers = make.mcp_servers(self.store.records, self.clock)
        engine = LocalEngine(sessions_running_max=4)
        try:
            await engine.start(self.harness(sandboxes, servers), await self.log.unfinished())
            yield engine
        finally:
            sandboxes.leave()
            await engine.stop(0)
            await servers.close()
            await sandboxes.close()

    async def _act(self, engine: LocalEngine, acts: list[Act]) -> None:
        """The client: after a death it looks at what has become of its last request before it sends it again."""
        while acts:
            if not await self._was_taken():
                await self._until(acts[0].once_seen)
                await self._do(engine, acts[0])
            self._sent = ()
            acts.pop(0)
        await self._until(None)

    async def _do(self, engine: LocalEngine, act: Act) -> None:
        if act.update is not None:
            await self.log.transact(self.session.id, act.update)
            return engine.wake(self.session.id)
        events = act.events(*await self.store.log.snapshot(self.session.id))
        self._sent = tuple(event.id for event in events)
        await self.log.transact(
            self.session.id, lambda session, state, now: Decision(intake.accept(session, state, events, now))
        )
        self.accepted += self._sent
        if any(isinstance(event, ev.UserInterrupt) for event in events):
            engine.interrupt(self.session.id)
        else:
            engine.wake(self.session.id)

    async def _was_taken(self) -> bool:
        """Whether the process that died had accepted the request that it never answered."""
        if not self._sent or self._sent[0] not in {event["id"] for event in await self.events()}:
            return False
        self.accepted += self._sent
        return True

    async def _until(self, seen: str | None) -> None:
        """Until the session rests, or has such an event."""
        frames = self.bus.subscribe(self.session.id)
        try:
            if await self._is_there(seen):
                return
            async for frame in frames:
                if frame.type == (seen or "session.status_idle"):
                    return
        finally:
            frames.close()

    async def _is_there(self, seen: str | None) -> bool:
        if seen is None:
            return (await self.state()).status == "idle"
        return any(event["type"] == seen for event in await self.events())

    def _sandboxes(self) -> ProcessSandboxes:
        return ProcessSandboxes(SandboxSettings(directory=str(self.directory)), self.directory)

    def harness(self, sandboxes: ProcessSandboxes, servers: SessionServers) -> Harness:
        """A worker."""
        records = self.store.records
        return Harness(
            Parts(
                log=self.log,
                records=records,
                bus=self.bus,
                provider=ScriptedProvider(),
                sandboxes=sandboxes,
                blobs=self.blobs,
                attachments=Attachments(records, self.blobs, self.clock, cached_bytes_max=0),
                tools=TOOLS,
                web={},
                mcp=servers,
                price=self._price,
                window=wide,
                spending_stopped=never_stopped,
                clock=self.clock,
                settings=self._settings,
            )
        )


def quiet_deaths() -> None:
    """Tasks that "died" are never awaited, as nobody awaits a killed process; asyncio would print each of them."""
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
