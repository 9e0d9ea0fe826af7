"""The composition root: the only file that names concrete backends.

`open_corral` puts a whole server together from its settings and takes it apart again, in the order that lets nothing be
lost: what accepts work stops first, what stores it last. A new backend is its own file and one line in a registry here.
Nothing in this file decides anything about a session.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

import anyio.to_thread
from prometheus_client import CollectorRegistry
from starlette.types import ASGIApp

from corral.api.dependencies import Services
from corral.api.routes import create_app
from corral.catalogue import load_catalogue
from corral.config import Settings, require_roles
from corral.config_sections import ModelRoute
from corral.domain.model import Catalogue
from corral.engines.bus import LocalBus
from corral.engines.local import LocalEngine
from corral.errors import MachineUnfit, NotFound
from corral.harness.attachments import Attachments
from corral.harness.parts import Parts
from corral.harness.watching import Watch, WatchedProvider
from corral.harness.worker import Harness
from corral.interfaces import (
    Blobs,
    Bus,
    Clock,
    Credentials,
    Engine,
    EventLog,
    McpServers,
    Provider,
    Records,
    Sandboxes,
    Store,
    Upkeep,
    WebTool,
)
from corral.keys import KeyRing
from corral.mcp.servers import SessionServers
from corral.providers.anthropic import AnthropicProvider
from corral.providers.messages_clouds import Cloud
from corral.providers.openai import OpenAIProvider
from corral.providers.routing import RoutedProvider, default_routes, route_of
from corral.providers.scripted import ScriptedProvider
from corral.sandboxes.bases import Bases
from corral.sandboxes.bubblewrap import BubblewrapSandboxes, root_directory
from corral.sandboxes.docker import DockerSandboxes
from corral.sandboxes.egress.outlet import Egress
from corral.sandboxes.hosts import Hosts, host_name
from corral.sandboxes.process import ProcessSandboxes
from corral.storage import sqlite
from corral.storage.blobs import DiskBlobs
from corral.storage.named_sql import Migrated
from corral.storage.s3_blobs import open_s3_blobs
from corral.storage.series import StoreSeries
from corral.tools import TOOLS, WEB_TOOLS, SearchKeys, open_web_tools
from corral.tracing import open_tracer
from corral.vaults import master_key
from corral.vaults.credentials import VaultCredentials
from corral.vaults.sealing import LocalKeyWrapper, VaultSealing

STOP_GRACE_SECONDS = 5.0
BUILT_IN_TOOLS = frozenset((*TOOLS, *WEB_TOOLS))
"""Names of the tools that this server can run."""

SANDBOXES: Mapping[str, Callable[[Settings, Callable[[Path], Egress]], Sandboxes]] = {
    "bubblewrap": lambda settings, egress: BubblewrapSandboxes(
        settings.sandbox, settings.data_dir, egress, packages=settings.packages
    ),
    "docker": lambda settings, egress: DockerSandboxes(settings.sandbox, settings.data_dir, egress),
    "process": lambda settings, egress: ProcessSandboxes(settings.sandbox, settings.data_dir, egress),
}


class Stores(Protocol):
    """A backend that opens and prepares stores. Registered by URL scheme below."""

    async def open(
        self, url: str, bus: Bus, clock: Clock, *, exclusive: bool, series: StoreSeries | None = None
    ) -> OpenStore:
        """Open the store, and bring its schema up to date. Raises `MachineUnfit`."""
        ...

    async def migrate(self, url: str) -> Migrated:
        """Bring the schema up to date and nothing else. Raises `MachineUnfit`."""
        ...


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


class SqliteStores:
    """One file for one process."""

    async def open(
        self, url: str, bus: Bus, clock: Clock, *, exclusive: bool, series: StoreSeries | None = None
    ) -> OpenStore:
        """See `Stores`."""
        return OpenStore(await sqlite.open_store(url, bus, clock, exclusive=exclusive, series=series), bus)

    async def migrate(self, url: str) -> Migrated:
        """See `Stores`."""
        return await sqlite.migrate(url)


class PostgresStores:
    """A database for several processes. Its driver is imported when it is needed."""

    async def open(
        self, url: str, bus: Bus, clock: Clock, *, exclusive: bool, series: StoreSeries | None = None
    ) -> OpenStore:
        """See `Stores`."""
        with _driver("postgres"):
            from corral.storage import postgres
        store = await postgres.open_store(url, bus, clock, exclusive=exclusive, series=series)
        return OpenStore(store, store.notices.bus, store.notices)

    async def migrate(self, url: str) -> Migrated:
        """See `Stores`."""
        with _driver("postgres"):
            from corral.storage import postgres
        return await postgres.migrate(url)


@contextmanager
def _driver(extra: str) -> Generator[None]:
    try:
        yield
    except ImportError as error:
        raise MachineUnfit(f"{error.name} is not installed; install `corral[{extra}]`.") from error


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


class SystemClock:
    """The machine's clock."""

    def now(self) -> datetime:
        """The current moment in UTC."""
        return datetime.now(UTC)


class Corral(NamedTuple):
    """A server that runs."""

    app: ASGIApp
    api_key: str
    first_start: bool
    """True when `api_key` was made just now."""
    log: EventLog
    bus: LocalBus
    sandboxes: Sandboxes


@asynccontextmanager
async def open_corral(
    settings: Settings, *, provider: Provider | None = None, serves: bool = True, works: bool = True
) -> AsyncGenerator[Corral]:
    """Put a server together, resume what the last one left unfinished, and take it apart at the end.

    One that does not serve needs no API key, and one that does not work advances no sessions. `provider` takes the
    place of the one that the settings name: for a program that brings its own models.
    Raises `MachineUnfit` before anything is stored when this machine cannot run it.
    """
    require_roles(settings, serves=serves, works=works)
    clock = SystemClock()
    registry = CollectorRegistry()
    sandboxes = make_sandboxes(settings, registry)
    if works:
        await sandboxes.start()
    catalogue = load_catalogue(settings.prices, settings.models)
    provider = provider or make_provider(settings)
    bus = _bus(settings, registry)
    async with AsyncExitStack() as stack:
        tracer = await stack.enter_async_context(open_tracer(settings.otel))
        watch = Watch(registry, tracer, knows_model=lambda model: catalogue.price(model) is not None, tools=TOOLS)
        provider = WatchedProvider(provider, watch)
        stack.push_async_callback(provider.close)
        stack.push_async_callback(sandboxes.close)
        make_engine = await engine_maker(settings, registry)
        opened = await stores_of(settings.database).open(
            settings.database, bus, clock, exclusive=settings.engine == "local", series=StoreSeries(registry)
        )
        store = opened.store
        stack.push_async_callback(store.close)
        host = stack.enter_context(host_name(settings.data_dir)) if works and settings.engine != "local" else ""
        hosts = Hosts(store.records, clock, host)
        blobs = await stack.enter_async_context(_blobs(settings))
        keys = KeyRing(store.records, clock)
        api_key, first_start = "", False
        if serves:
            api_key, first_start = await keys.ensure_default(settings.data_dir, settings.secrets.api_key)
        sealing = VaultSealing(await key_wrapper(settings))
        credentials = VaultCredentials(store.records, sealing, clock, settings.vaults, settings.mcp)
        stack.push_async_callback(credentials.close)
        upkeep = Upkeep(store.records, blobs, clock, _owner(store.log), None if settings.engine == "local" else host)
        await stack.enter_async_context(sandboxes.attended(upkeep))
        reach = await stack.enter_async_context(_reach(settings, credentials))
        engine = make_engine(opened, hosts)
        parts = _parts(
            settings, store, catalogue, reach, blobs=blobs, bus=opened.bus, provider=provider, sandboxes=sandboxes
        )
        harness = Harness(parts._replace(watch=watch))
        harness.entrust(credentials)
        await engine.start(harness, await store.log.unfinished())
        stack.push_async_callback(engine.stop, STOP_GRACE_SECONDS)
        stack.callback(sandboxes.leave)
        services = Services(
            log=store.log,
            records=store.records,
            blobs=blobs,
            sandboxes=sandboxes,
            sealing=sealing,
            credentials=credentials,
            bus=opened.bus,
            engine=engine,
            clock=clock,
            settings=settings.server,
            authenticate=keys.authenticate,
            models=catalogue,
            registry=registry,
        )
        yield Corral(create_app(services, serves=serves), api_key, first_start, store.log, bus, sandboxes)


def _bus(settings: Settings, registry: CollectorRegistry) -> LocalBus:
    frames_max, bytes_max = settings.server.stream_buffer_frames_max, settings.server.stream_buffer_bytes_max
    return LocalBus(frames_max=frames_max, bytes_max=bytes_max, registry=registry)


class Reach(NamedTuple):
    """What agents reach from this server itself, and not from a sandbox."""

    web: Mapping[str, WebTool]
    mcp: McpServers


@asynccontextmanager
async def _reach(settings: Settings, credentials: Credentials) -> AsyncGenerator[Reach]:
    keys = SearchKeys(settings.secrets.brave_api_key, settings.secrets.tavily_api_key)
    web = open_web_tools(settings.web, keys, [settings.server.port] if settings.server.port else [])
    mcp = SessionServers(credentials, settings.mcp)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(mcp.close)
        for tool in web.values():
            stack.push_async_callback(tool.close)
        yield Reach(web, mcp)


async def engine_maker(settings: Settings, registry: CollectorRegistry) -> Callable[[OpenStore, Hosts], Engine]:
    """The engine that the settings name; Temporal's server is reached at once. Raises `MachineUnfit`."""
    running_max = settings.harness.sessions_running_max

    def local(opened: OpenStore, hosts: Hosts) -> Engine:
        engine = LocalEngine(sessions_running_max=running_max, registry=registry)
        if opened.wakes is not None:
            opened.wakes.on_wake = lambda session, interrupt: (engine.interrupt if interrupt else engine.wake)(session)
        return engine

    if settings.engine == "local":
        return local
    with _driver("temporal"):
        from corral.engines.temporal import Around, TemporalEngine
        from corral.engines.temporal_server import connect
    client = await connect(settings.temporal)

    def temporal(opened: OpenStore, hosts: Hosts) -> Engine:
        assert opened.wakes is not None, "require_roles() comes first"
        around = Around(partial(opened.wakes.wake, interrupt=True), opened.store.log.unfinished, hosts.of)
        runs = running_max if hosts.here else 0
        engine = TemporalEngine(client, settings.temporal, around, host=hosts.here or None, runs=runs)
        opened.wakes.on_wake = lambda session, interrupt: engine.poked(session)
        return engine

    return temporal


def _owner(log: EventLog) -> Callable[[str], Awaitable[str | None]]:
    async def owner(session_id: str) -> str | None:
        try:
            return (await log.snapshot(session_id)).session.workspace_id
        except NotFound:
            return None

    return owner


def _parts(
    settings: Settings,
    store: Store,
    catalogue: Catalogue,
    reach: Reach,
    *,
    blobs: Blobs,
    bus: Bus,
    provider: Provider,
    sandboxes: Sandboxes,
) -> Parts:
    clock, cached = SystemClock(), settings.harness.attachments_cached_bytes_max
    return Parts(
        log=store.log,
        records=store.records,
        bus=bus,
        provider=provider,
        sandboxes=sandboxes,
        blobs=blobs,
        attachments=Attachments(store.records, blobs, clock, cached_bytes_max=cached),
        tools=TOOLS,
        web=reach.web,
        mcp=reach.mcp,
        price=catalogue.price,
        window=_window(settings, catalogue),
        spending_stopped=_spending_stopped(settings, store.log),
        clock=clock,
        settings=settings.harness,
    )


@asynccontextmanager
async def open_records(settings: Settings) -> AsyncGenerator[Records]:
    """The records alone, for commands that work beside a running server."""
    bus = LocalBus(frames_max=1, bytes_max=1)
    opened = await stores_of(settings.database).open(settings.database, bus, SystemClock(), exclusive=False)
    try:
        yield opened.store.records
    finally:
        await opened.store.close()


@asynccontextmanager
async def open_storage(settings: Settings) -> AsyncGenerator[Store]:
    """The whole store, for commands that move things in or out. Raises `MachineUnfit` while a server has it."""
    bus = LocalBus(frames_max=1, bytes_max=1)
    opened = await stores_of(settings.database).open(settings.database, bus, SystemClock(), exclusive=True)
    try:
        yield opened.store
    finally:
        await opened.store.close()


async def key_wrapper(settings: Settings) -> LocalKeyWrapper:
    """Whoever holds the master key. Raises `MachineUnfit` when it cannot be had."""
    load = partial(master_key.load, settings.secrets.master_key, settings.master_key_file)
    return await anyio.to_thread.run_sync(LocalKeyWrapper, load)


def make_sandboxes(settings: Settings, registry: CollectorRegistry | None = None) -> Sandboxes:
    """The backend that the settings name. Raises `MachineUnfit` for one that is not built."""

    def egress(directory: Path) -> Egress:
        return Egress(settings.egress, directory, own_ports=[settings.server.port], registry=registry)

    factory = SANDBOXES.get(settings.sandbox.backend)
    if factory is None:
        raise MachineUnfit(
            f"The `{settings.sandbox.backend}` sandbox is not part of this release. It has: {', '.join(SANDBOXES)}."
        )
    return factory(settings, egress)


@asynccontextmanager
async def _blobs(settings: Settings) -> AsyncGenerator[Blobs]:
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


def open_bases(settings: Settings) -> Bases:
    """The root file systems that sandboxes may be given."""
    return Bases(root_directory(settings.sandbox, settings.data_dir))


def make_provider(settings: Settings) -> RoutedProvider:
    """Providers behind the routes of `corral.toml`, or behind the default ones."""
    secrets = settings.secrets
    factories: dict[str, Callable[[], Provider]] = {
        "anthropic": lambda: AnthropicProvider(
            api_key=secrets.anthropic_api_key,
            auth_token=secrets.anthropic_auth_token,
            base_url=settings.anthropic_base_url,
            cloud=_cloud(settings),
            idle_seconds=settings.harness.model_idle_seconds_max,
            encoded_bytes_max=settings.harness.messages_cached_bytes_max,
        ),
        "openai": lambda: OpenAIProvider(
            api_key=secrets.openai_api_key,
            base_url=settings.openai_base_url,
            wire=settings.openai.wire,
            system_role=settings.openai.system_messages,
            idle_seconds=settings.harness.model_idle_seconds_max,
        ),
        "local": lambda: _local_provider(settings),
        "litellm": lambda: _litellm_provider(settings),
        "scripted": ScriptedProvider,
    }
    catalogue = load_catalogue(settings.prices, settings.models)
    return RoutedProvider(model_routes(settings), factories, efforts=catalogue.efforts)


def _cloud(settings: Settings) -> Cloud | None:
    chosen = settings.anthropic
    if chosen.platform == "anthropic":
        return None
    token = settings.secrets.bedrock_token if chosen.platform == "bedrock" else None
    return Cloud(chosen.platform, chosen.region, chosen.project, chosen.platform_url, token)


def _litellm_provider(settings: Settings) -> Provider:
    from corral.providers.openai_litellm import LiteLLMProvider

    return LiteLLMProvider(idle_seconds=settings.harness.model_idle_seconds_max)


def _local_provider(settings: Settings) -> Provider:
    from corral.providers.local import LocalProvider

    return LocalProvider(settings.local_model, cache_dir=settings.cache_dir)


def model_routes(settings: Settings) -> tuple[ModelRoute, ...]:
    """Which provider serves which model id, with nothing said: Anthropic or OpenAI if there is a key, else `local`."""
    secrets = settings.secrets
    addressed = bool(settings.anthropic_base_url) or settings.anthropic.platform != "anthropic"
    has_anthropic = bool(secrets.anthropic_api_key or secrets.anthropic_auth_token or addressed)
    scripted = ModelRoute(pattern="scripted*", provider="scripted")
    has_openai = bool(secrets.openai_api_key or settings.openai_base_url)
    default = default_routes(anthropic=has_anthropic, openai=has_openai, openai_model=settings.openai.model)
    return (*settings.models, scripted, *default)


def _window(settings: Settings, catalogue: Catalogue) -> Callable[[str], int]:
    """What a model id can take in, by where it is routed: the local model answers to any name with its own window."""
    routes = model_routes(settings)

    def window(model: str) -> int:
        first, fallback = alone(model), None
        if (route := route_of(routes, model)) is not None:
            fallback = route.fallback
        # A conversation must fit into whichever model is asked.
        return first if fallback is None else min(first, alone(fallback))

    def alone(model: str) -> int:
        route = route_of(routes, model)
        if route is not None and route.provider == "local":
            return settings.local_model.context_tokens
        if route is not None and route.provider in ("openai", "litellm") and route.model is not None:
            # Another model answers to this id; what the id's own model can take in says nothing about it.
            return catalogue.window(route.model) or settings.harness.context_tokens
        sent = model if route is None or route.model is None else route.model
        return catalogue.window(sent) or catalogue.window(model) or settings.harness.context_tokens

    return window


def _spending_stopped(settings: Settings, log: EventLog) -> Callable[[], Awaitable[bool]]:
    limit = settings.budget.organization_usd_max

    async def stopped() -> bool:
        return limit is not None and await log.spent_microdollars() >= limit * 1_000_000

    return stopped
