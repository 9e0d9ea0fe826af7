"""What the API works with: the seams, handed over by `app/server.py`.

The API knows no backend. It appends to the log and wakes the engine; everything that happens then comes back through
the log and the bus.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from weakref import WeakValueDictionary

import anyio
from prometheus_client import CollectorRegistry

from corral.config_sections import ServerSettings
from corral.domain.api_key import ApiKey
from corral.domain.model import Catalogue
from corral.interfaces.blobs import Blobs
from corral.interfaces.bus import Bus
from corral.interfaces.clock import Clock
from corral.interfaces.engine import Engine
from corral.interfaces.event_log import EventLog
from corral.interfaces.records import Records
from corral.interfaces.sandbox import Sandboxes
from corral.interfaces.vault import Credentials, Sealing


@dataclass(frozen=True, kw_only=True)
class Services:
    """The seams and limits of one API."""

    log: EventLog
    records: Records
    blobs: Blobs
    sandboxes: Sandboxes
    sealing: Sealing
    credentials: Credentials
    bus: Bus
    engine: Engine
    clock: Clock
    settings: ServerSettings
    models: Catalogue
    authenticate: Callable[[str], Awaitable[ApiKey]]
    """The key that a secret belongs to. Raises `Unauthenticated`."""
    output_locks: WeakValueDictionary[str, anyio.Lock] = field(default_factory=WeakValueDictionary[str, anyio.Lock])
    """By session: one at a time takes in its outputs."""
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    """Where `/metrics` reads; other parts may register theirs."""
