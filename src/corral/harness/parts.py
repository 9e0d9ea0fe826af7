"""What a harness works with: the seams, handed over by `app/worker.py`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple

from corral.config_sections import HarnessSettings
from corral.domain.model import ListPrice
from corral.harness.attachments import Attachments
from corral.harness.entrusting import NOTHING, Entrusting
from corral.harness.watching import UNWATCHED, Watch
from corral.interfaces.blobs import Blobs
from corral.interfaces.bus import Bus
from corral.interfaces.clock import Clock
from corral.interfaces.event_log import EventLog
from corral.interfaces.mcp import McpServers
from corral.interfaces.provider import Provider
from corral.interfaces.records import Records
from corral.interfaces.sandbox import Sandboxes
from corral.interfaces.tool import Tool, WebTool


class Parts(NamedTuple):
    """The seams and limits of one harness."""

    log: EventLog
    records: Records
    bus: Bus
    provider: Provider
    sandboxes: Sandboxes
    blobs: Blobs
    attachments: Attachments
    tools: Mapping[str, Tool]
    web: Mapping[str, WebTool]
    mcp: McpServers
    price: Callable[[str], ListPrice | None]
    """List price of a model id."""
    window: Callable[[str], int]
    """Tokens that a model id can take in."""
    spending_stopped: Callable[[], Awaitable[bool]]
    """Whether the organisation's spend limit is reached."""
    clock: Clock
    settings: HarnessSettings
    watch: Watch = UNWATCHED
    entrusting: Entrusting = NOTHING
    """What of the vaults is for sandboxes."""
