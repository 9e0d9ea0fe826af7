"""Where things last: the store that a database URL names, and the blobs.

A server opens both for as long as it runs; commands open what they need for a while.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

from prometheus_client import CollectorRegistry

from corral.app.clock import SystemClock
from corral.app.extras import needing
from corral.config import Settings
from corral.engines.bus import LocalBus
from corral.errors import MachineUnfit
from corral.interfaces.blobs import Blobs
from corral.interfaces.bus import Bus
from corral.interfaces.clock import Clock
from corral.interfaces.records import Records
from corral.interfaces.store import Store
from corral.storage import sqlite
from corral.storage.blobs import DiskBlobs
from corral.storage.named_sql import Migrated
from corral.storage.s3_blobs import open_s3_blobs
from corral.storage.series import StoreSeries


class Wakes(Protocol):
    """How processes of one store tell one another which sessions have work."""

    on_wake: Callable[[str, bool], None]
    """Told which sessions have work, and whether an interrupt waits."""

    async def wake(self, session_id: str, *, interrupt: bool = False) -> None:
        """Tell all. Raises `Unavailable`."""
        ...


class OpenStore(NamedTuple):
    """A store, and what comes with it."""

    store: Store
    bus: Bus
    """For whoever streams: what other processes commit is on it, too."""
    wakes: Wakes | None = None
    """How processes tell one another of work; None for a store of one process."""


class Stores(Protocol):
    """A backend that opens and prepares stores. Registered by URL scheme below."""

    async def open(
        self, settings: Settings, bus: Bus, clock: Clock, *, exclusive: bool, series: StoreSeries | None = None
    ) -> OpenStore:
        """Open the store that `settings` name, and bring its schema up to date. Raises `MachineUnfit`."""
        ...

    async def migrate(self, url: str) -> Migrated:
        """Bring the schema up to date and nothing else. Raises `MachineUnfit`."""
        ...


class SqliteStores:
    """One file for one process."""

    async def open(
        self, settings: Settings, bus: Bus, clock: Clock, *, exclusive: bool, series: StoreSeries | None = None
    ) -> OpenStore:
        """See `Stores`."""
        store = await sqlite.open_store(settings.database, bus, clock, exclusive=exclusive, series=series)
        return OpenStore(store, bus)

    async def migrate(self, url: str) -> Migrated:
        """See `Stores`."""
        return await sqlite.migrate(url)


class PostgresStores:
    """A database for several processes. Its driver is imported when it is needed."""

    async def open(
        self, settings: Settings, bus: Bus, clock: Clock, *, exclusive: bool, series: StoreSeries | None = None
    ) -> OpenStore:
        """See `Stores`."""
        with needing("postgres"):
            from corral.storage import postgres
        url, doubt = settings.database, settings.server.doubt_seconds_max
        store = await postgres.open_store(url, bus, clock, exclusive=exclusive, doubt_seconds_max=doubt, series=series)
        return OpenStore(store, store.notices.bus, store.notices)

    async def migrate(self, url: str) -> Migrated:
        """See `Stores`."""
        with needing("postgres"):
            from corral.storage import postgres
        return await postgres.migrate(url)


STORES: Mapping[str, Stores] = {
    "sqlite": SqliteStores(),
    "postgresql": PostgresStores(),
    "postgres": PostgresStores(),
}


def stores_of(url: str) -> Stores:
    """The backend that a database URL names. Raises `MachineUnfit`, which does not repeat the URL."""
    scheme, found, _ = url.partition("://")
    stores = STORES.get(scheme if found else "")
    if stores is None:
        raise MachineUnfit("The database URL names no store of this release. It has: sqlite:///path, postgresql://….")
    return stores


@asynccontextmanager
async def open_store(
    settings: Settings, bus: Bus, clock: Clock, registry: CollectorRegistry
) -> AsyncGenerator[OpenStore]:
    """A server's store. One for one process is locked against others. Raises `MachineUnfit`."""
    exclusive = settings.engine == "local"
    stores = stores_of(settings.database)
    opened = await stores.open(settings, bus, clock, exclusive=exclusive, series=StoreSeries(registry))
    try:
        yield opened
    finally:
        await opened.store.close()


@asynccontextmanager
async def open_records(settings: Settings) -> AsyncGenerator[Records]:
    """The records alone, for commands that work beside a running server."""
    async with _alone(settings, exclusive=False) as store:
        yield store.records


@asynccontextmanager
async def open_storage(settings: Settings) -> AsyncGenerator[Store]:
    """The whole store, for commands that move things in or out. Raises `MachineUnfit` while a server has it."""
    async with _alone(settings, exclusive=True) as store:
        yield store


@asynccontextmanager
async def _alone(settings: Settings, *, exclusive: bool) -> AsyncGenerator[Store]:
    bus = LocalBus(frames_max=1, bytes_max=1)
    opened = await stores_of(settings.database).open(settings, bus, SystemClock(), exclusive=exclusive)
    try:
        yield opened.store
    finally:
        await opened.store.close()


@asynccontextmanager
async def blobs_of(settings: Settings) -> AsyncGenerator[Blobs]:
    """The bytes of files, where the settings say. Raises `MachineUnfit`."""
    directory = settings.data_dir / "blobs"
    if settings.blobs.backend == "s3":
        async with open_s3_blobs(settings.blobs, directory) as blobs:
            yield blobs
    else:
        with open_blobs(directory) as blobs:
            yield blobs


@contextmanager
def open_blobs(directory: Path) -> Generator[Blobs]:
    """Bytes of files in a directory, for a command that needs some for a while."""
    blobs = DiskBlobs(directory)
    try:
        yield blobs
    finally:
        blobs.close()
