"""Sessions on models that break: a real store, the real loop and real providers, before a server of bytes."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import msgspec

from corral.config_sections import HarnessSettings, SandboxSettings
from corral.domain import event as ev
from corral.domain import intake
from corral.domain.agent import ModelConfig
from corral.domain.event import StoredEvent
from corral.domain.query import EventsQuery
from corral.domain.session import SessionState
from corral.engines.bus import LocalBus
from corral.engines.signals import LocalSignal
from corral.harness.attachments import Attachments
from corral.harness.parts import Parts
from corral.harness.worker import Harness
from corral.interfaces.event_log import Decision
from corral.interfaces.provider import Provider
from corral.interfaces.store import Store
from corral.sandboxes.process import ProcessSandboxes
from corral.storage.blobs import DiskBlobs
from corral.storage.sqlite import open_store
from tests.unit import builders as make


class Clock:
    def now(self) -> datetime:
        return datetime.now(UTC)


class StreamWorld(NamedTuple):
    """A store on disk, and a harness that advances its sessions."""

    store: Store
    harness: Harness
    parts: Parts

    async def create(self, session_id: str, model: str) -> None:
        """A session whose only tool is the client's."""
        agent = msgspec.structs.replace(make.agent(), model=ModelConfig(id=model), tools=(make.CUSTOM,))
        session = msgspec.structs.replace(make.session(), id=session_id, agent=agent)
        await self.store.log.create(session, make.state(), lambda session, state, now: Decision(()))

    async def send(self, session_id: str, event: ev.ClientEvent) -> None:
        """As the api would, and then advance the session until it rests."""
        await self.store.log.transact(
            session_id, lambda session, state, now: Decision(intake.accept(session, state, [event], now))
        )
        await self.harness.advance(session_id, LocalSignal(), inherited=False)

    async def state(self, session_id: str) -> SessionState:
        return (await self.store.log.snapshot(session_id)).state

    async def events(self, session_id: str) -> list[StoredEvent]:
        return [logged.event for logged in await self.store.log.events(session_id, EventsQuery(limit=1_000))]


def _no_price(model: str) -> None:
    return None


def _wide(model: str) -> int:
    return 200_000


@asynccontextmanager
async def world(directory: Path, provider: Provider, settings: HarnessSettings) -> AsyncGenerator[StreamWorld]:
    """Everything but the model."""

    async def spending_stopped() -> bool:
        return False

    bus = LocalBus(frames_max=100, bytes_max=1 << 20)
    store = await open_store(f"sqlite:///{directory}/corral.db", bus=bus, clock=Clock())
    blobs = DiskBlobs(directory / "blobs")
    sandboxes = ProcessSandboxes(SandboxSettings(directory=str(directory)), directory)
    parts = Parts(
        log=store.log,
        records=store.records,
        bus=bus,
        provider=provider,
        sandboxes=sandboxes,
        blobs=blobs,
        attachments=Attachments(store.records, blobs, Clock(), cached_bytes_max=0),
        tools={},
        web={},
        mcp=make.mcp_servers(store.records, Clock()),
        price=_no_price,
        window=_wide,
        spending_stopped=spending_stopped,
        clock=Clock(),
        settings=settings,
    )
    try:
        yield StreamWorld(store, Harness(parts), parts)
    finally:
        await provider.close()
        await sandboxes.close()
        await store.close()
        blobs.close()
