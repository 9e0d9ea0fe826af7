"""Who runs what, when: the engine that the settings name, and how the store's processes wake it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

from prometheus_client import CollectorRegistry

from corral.app.extras import needing
from corral.app.storage import OpenStore
from corral.config import Settings
from corral.domain.query import EventsQuery
from corral.engines.local import LocalEngine
from corral.interfaces.engine import Engine
from corral.interfaces.event_log import EventLog
from corral.sandboxes.hosts import Hosts

MakeEngine: TypeAlias = Callable[[OpenStore, Hosts], Engine]


async def engine_maker(settings: Settings, registry: CollectorRegistry) -> MakeEngine:
    """The engine that the settings name; Temporal's server is reached at once. Raises `MachineUnfit`."""
    running_max = settings.harness.sessions_running_max

    def local(opened: OpenStore, hosts: Hosts) -> Engine:
        engine = LocalEngine(sessions_running_max=running_max, registry=registry)
        if opened.wakes is not None:
            opened.wakes.on_wake = lambda session, interrupt: (engine.interrupt if interrupt else engine.wake)(session)
        return engine

    if settings.engine == "local":
        return local
    with needing("temporal"):
        from corral.engines.temporal import Around, TemporalEngine
        from corral.engines.temporal_server import connect
    client = await connect(settings.temporal)

    def temporal(opened: OpenStore, hosts: Hosts) -> Engine:
        assert opened.wakes is not None, "require_roles() comes first"
        log = opened.store.log
        around = Around(
            poke=partial(opened.wakes.wake, interrupt=True),
            interrupt_of=partial(_interrupt_of, log),
            unfinished=log.unfinished,
            host_of=hosts.of,
        )
        runs = running_max if hosts.here else 0
        engine = TemporalEngine(client, settings.temporal, around, host=hosts.here or None, runs=runs)
        opened.wakes.on_wake = lambda session, interrupt: engine.poked(session)
        return engine

    return temporal


async def _interrupt_of(log: EventLog, session_id: str) -> str | None:
    """The first interrupt that waits in the session's queue."""
    page = await log.events(session_id, EventsQuery(limit=1, beyond=(True, 0), types=("user.interrupt",)))
    return page[0].event.id if page else None
