"""A whole server: put together from its settings, and taken apart so that nothing is lost.

What accepts work stops first, what stores it last. Each part is built by a file of its own beside this one.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import NamedTuple

from prometheus_client import CollectorRegistry
from starlette.types import ASGIApp

from corral.api import outputs
from corral.api.dependencies import Services
from corral.api.routes import create_app
from corral.app.engines import engine_maker
from corral.app.foundation import Foundation, open_foundation
from corral.app.providers import make_provider
from corral.app.sandboxes import make_sandboxes
from corral.app.worker import open_worker
from corral.catalogue import load_catalogue
from corral.config import Settings, require_roles
from corral.domain.model import Catalogue
from corral.engines.bus import LocalBus
from corral.interfaces.engine import Engine
from corral.interfaces.event_log import EventLog
from corral.interfaces.provider import Provider
from corral.interfaces.sandbox import Sandboxes
from corral.keys import KeyRing


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
    registry = CollectorRegistry()
    sandboxes = make_sandboxes(settings, registry)
    if works:
        await sandboxes.start()
    catalogue = load_catalogue(settings.prices, settings.models)
    provider = provider or make_provider(settings)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(provider.close)
        stack.push_async_callback(sandboxes.close)
        make_engine = await engine_maker(settings, registry)
        on = await stack.enter_async_context(open_foundation(settings, registry, sandboxes, works=works))
        keys = KeyRing(on.store.records, on.clock)
        api_key, first_start = "", False
        if serves:
            api_key, first_start = await keys.ensure_default(settings.data_dir, settings.secrets.api_key)
        engine = await stack.enter_async_context(open_worker(settings, on, provider, catalogue, make_engine))
        services = _services(settings, on, keys, catalogue, engine)
        engine.collects(partial(outputs.collect_here, services))
        app = create_app(services, serves=serves)
        yield Corral(app, api_key, first_start, on.store.log, on.local_bus, sandboxes)


def _services(settings: Settings, on: Foundation, keys: KeyRing, catalogue: Catalogue, engine: Engine) -> Services:
    return Services(
        log=on.store.log,
        records=on.store.records,
        blobs=on.blobs,
        sandboxes=on.sandboxes,
        sealing=on.sealing,
        credentials=on.credentials,
        bus=on.opened.bus,
        engine=engine,
        clock=on.clock,
        settings=settings.server,
        authenticate=keys.authenticate,
        models=catalogue,
        registry=on.registry,
    )
