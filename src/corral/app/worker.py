"""What advances sessions: a harness with its provider and tools, and the engine that runs it.

A process that only serves has one too, whose engine hands all work to others.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import NamedTuple

from corral.app.engines import MakeEngine
from corral.app.foundation import Foundation
from corral.app.providers import window_of
from corral.config import Settings
from corral.domain.model import Catalogue
from corral.harness.attachments import Attachments
from corral.harness.entrusting import Entrusting
from corral.harness.parts import Parts
from corral.harness.watching import Watch, WatchedProvider
from corral.harness.worker import Harness
from corral.interfaces.engine import Engine
from corral.interfaces.event_log import EventLog
from corral.interfaces.mcp import McpServers
from corral.interfaces.provider import Provider
from corral.interfaces.tool import WebTool
from corral.interfaces.vault import Credentials
from corral.mcp.servers import SessionServers
from corral.tools import TOOLS, WEB_TOOLS, SearchAccess, open_web_tools
from corral.tracing import open_tracer

STOP_GRACE_SECONDS = 5.0
BUILT_IN_TOOLS = frozenset((*TOOLS, *WEB_TOOLS))
"""Names of the tools that this program can run."""


class Reach(NamedTuple):
    """What agents reach from this server itself, and not from a sandbox."""

    web: Mapping[str, WebTool]
    mcp: McpServers


@asynccontextmanager
async def open_worker(
    settings: Settings, on: Foundation, provider: Provider, catalogue: Catalogue, make_engine: MakeEngine
) -> AsyncGenerator[Engine]:
    """Resume what was left unfinished, and advance sessions until the end."""
    async with AsyncExitStack() as stack:
        tracer = await stack.enter_async_context(open_tracer(settings.otel))
        watch = Watch(on.registry, tracer, knows_model=lambda model: catalogue.price(model) is not None, tools=TOOLS)
        reach = await stack.enter_async_context(_open_reach(settings, on.credentials))
        engine = make_engine(on.opened, on.hosts)
        parts = _parts(settings, on, catalogue, reach, WatchedProvider(provider, watch), watch=watch)
        await engine.start(Harness(parts), await on.store.log.unfinished())
        stack.push_async_callback(engine.stop, STOP_GRACE_SECONDS)
        stack.callback(on.sandboxes.leave)
        yield engine


@asynccontextmanager
async def _open_reach(settings: Settings, credentials: Credentials) -> AsyncGenerator[Reach]:
    web = open_web_tools(settings.web, _search_access(settings), [settings.server.port] if settings.server.port else [])
    mcp = SessionServers(credentials, settings.mcp)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(mcp.close)
        for tool in web.values():
            stack.push_async_callback(tool.close)
        yield Reach(web, mcp)


def _search_access(settings: Settings) -> SearchAccess:
    secrets = settings.secrets
    return SearchAccess(
        brave=secrets.brave_api_key,
        tavily=secrets.tavily_api_key,
        anthropic=secrets.anthropic_api_key,
        anthropic_token=secrets.anthropic_auth_token,
        anthropic_url=settings.anthropic_base_url,
        openai=secrets.openai_api_key,
        openai_url=settings.openai_base_url,
    )


def _parts(
    settings: Settings, on: Foundation, catalogue: Catalogue, reach: Reach, provider: Provider, *, watch: Watch
) -> Parts:
    store, cached = on.store, settings.harness.attachments_cached_bytes_max
    return Parts(
        log=store.log,
        records=store.records,
        bus=on.opened.bus,
        provider=provider,
        sandboxes=on.sandboxes,
        blobs=on.blobs,
        attachments=Attachments(store.records, on.blobs, on.clock, cached_bytes_max=cached),
        tools=TOOLS,
        web=reach.web,
        mcp=reach.mcp,
        price=catalogue.price,
        window=window_of(settings, catalogue),
        spending_stopped=_spending_stopped(settings, store.log),
        clock=on.clock,
        settings=settings.harness,
        watch=watch,
        entrusting=Entrusting(on.credentials),
    )


def _spending_stopped(settings: Settings, log: EventLog) -> Callable[[], Awaitable[bool]]:
    limit = settings.budget.organization_usd_max

    async def stopped() -> bool:
        return limit is not None and await log.spent_microdollars() >= limit * 1_000_000

    return stopped
