"""What the rest of a server stands on: where things last, what seals secrets, and where tools run.

Opened first and closed last. The same for a process that serves and for one that only advances sessions.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import NamedTuple

from prometheus_client import CollectorRegistry

from corral.app.clock import SystemClock
from corral.app.storage import OpenStore, blobs_of, open_store
from corral.app.vaults import key_wrapper
from corral.config import Settings
from corral.engines.bus import LocalBus
from corral.errors import NotFound
from corral.interfaces.blobs import Blobs
from corral.interfaces.clock import Clock
from corral.interfaces.event_log import EventLog
from corral.interfaces.sandbox import Sandboxes, Upkeep
from corral.interfaces.store import Store
from corral.sandboxes.hosts import Hosts, host_name
from corral.vaults.credentials import VaultCredentials
from corral.vaults.sealing import VaultSealing


class Foundation(NamedTuple):
    """What is open for as long as a server runs."""

    clock: Clock
    registry: CollectorRegistry
    local_bus: LocalBus
    """This process's own; what streams follow is `opened.bus`, which other processes are on, too."""
    opened: OpenStore
    blobs: Blobs
    hosts: Hosts
    sealing: VaultSealing
    credentials: VaultCredentials
    sandboxes: Sandboxes

    @property
    def store(self) -> Store:
        """Where everything but blobs lasts."""
        return self.opened.store


@asynccontextmanager
async def open_foundation(
    settings: Settings, registry: CollectorRegistry, sandboxes: Sandboxes, *, works: bool
) -> AsyncGenerator[Foundation]:
    """Open it all, around sandboxes that have been started if this process works. Raises `MachineUnfit`."""
    clock, shared = SystemClock(), settings.engine != "local"
    frames_max, bytes_max = settings.server.stream_buffer_frames_max, settings.server.stream_buffer_bytes_max
    bus = LocalBus(frames_max=frames_max, bytes_max=bytes_max, registry=registry)
    async with AsyncExitStack() as stack:
        opened = await stack.enter_async_context(open_store(settings, bus, clock, registry))
        store = opened.store
        host = stack.enter_context(host_name(settings.data_dir)) if works and shared else ""
        blobs = await stack.enter_async_context(blobs_of(settings))
        sealing = VaultSealing(await key_wrapper(settings))
        credentials = VaultCredentials(store.records, sealing, clock, settings.vaults, settings.mcp)
        stack.push_async_callback(credentials.close)
        upkeep = Upkeep(store.records, blobs, clock, _owner(store.log), host if shared else None)
        await stack.enter_async_context(sandboxes.attended(upkeep))
        hosts = Hosts(store.records, clock, host)
        yield Foundation(clock, registry, bus, opened, blobs, hosts, sealing, credentials, sandboxes)


def _owner(log: EventLog) -> Callable[[str], Awaitable[str | None]]:
    async def owner(session_id: str) -> str | None:
        try:
            return (await log.snapshot(session_id)).session.workspace_id
        except NotFound:
            return None

    return owner
