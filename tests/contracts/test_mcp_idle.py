"""Connections to MCP servers: kept while they are used, dropped when they are not, and made again."""

from __future__ import annotations

from collections.abc import Iterator

import anyio
import msgspec
import pytest

from corral.config_sections import McpSettings
from corral.domain.agent import McpServer
from corral.domain.content import TextBlock
from corral.domain.session import Session
from corral.engines.bus import LocalBus
from corral.mcp.servers import SessionServers
from corral.storage.ephemeral import EphemeralStore
from tests.contracts.storage_fixtures import Clock
from tests.e2e.mcp_host import McpHost, mcp_host
from tests.unit import builders as make

pytestmark = [pytest.mark.anyio, pytest.mark.requirement("F030")]
SECONDS_MAX = 60


@pytest.fixture
def host() -> Iterator[McpHost]:
    with mcp_host() as running:
        yield running


def servers(idle_seconds_max: float) -> SessionServers:
    store = EphemeralStore(LocalBus(frames_max=1, bytes_max=1), Clock())
    return SessionServers(make.credentials(store.records, Clock()), McpSettings(idle_seconds_max=idle_seconds_max))


def session_on(url: str) -> Session:
    agent = msgspec.structs.replace(make.agent(), mcp_servers=(McpServer(name="tests", url=url),))
    return msgspec.structs.replace(make.session(), agent=agent)


async def add(tools: SessionServers, session: Session) -> str:
    (block,) = (await tools.call(session, "tests", "add", {"a": 1, "b": 2})).content
    assert isinstance(block, TextBlock)
    return block.text


async def test_a_connection_that_is_not_used_is_dropped_and_made_again(host: McpHost) -> None:
    tools, session = servers(idle_seconds_max=0.01), session_on(host.url)
    with anyio.fail_after(SECONDS_MAX):
        assert await add(tools, session) == "3"
        requests, pauses = 1, 0
        while requests == 1:
            # A loaded machine may take its time to drop it; one request more than the call itself is a new connection.
            await anyio.sleep(0.02 * (pauses := pauses + 1))
            before = len(host.seen)
            assert await add(tools, session) == "3"
            requests = len(host.seen) - before
        await tools.close()


async def test_a_connection_that_is_used_is_kept(host: McpHost) -> None:
    tools, session = servers(idle_seconds_max=SECONDS_MAX), session_on(host.url)
    with anyio.fail_after(SECONDS_MAX):
        assert await add(tools, session) == "3"
        before = len(host.seen)
        assert await add(tools, session) == "3"
        assert len(host.seen) == before + 1
        await tools.forget(session.id)
        before = len(host.seen)
        assert await add(tools, session) == "3"
        assert len(host.seen) > before + 1
        await tools.close()
