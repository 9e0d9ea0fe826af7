"""How much of a long session's prompts is read from the model server's cache, beside the most that could be.

A real server in this process works for many turns with tools; its model is a server of its own that counts like the
real one (`tests/contracts/cache_server.py`), so the figures are the same on every machine. Half-way it is restarted.
"""

from __future__ import annotations

import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import NamedTuple

import anyio
from anthropic import AsyncAnthropic

from corral import config
from corral.app.server import open_corral
from corral.providers.anthropic import AnthropicProvider
from corral.serving import bind, serving
from tests.benchmarks.temporary import overrides
from tests.contracts.cache_server import CacheServer, Counted

NAME = "Prompt cache in a session with tools"
TURNS = 100
KEY = "sk-ant-of-the-cache-share"


class Share(NamedTuple):
    """Tokens of all prompts of a session."""

    counted: tuple[Counted, ...]
    problems: tuple[str, ...]
    reported_read: int
    """What the session's usage says."""
    condensed: int
    """How often the conversation was."""

    @property
    def whole(self) -> int:
        return sum(each.whole for each in self.counted)

    @property
    def read(self) -> int:
        return sum(each.read for each in self.counted)

    @property
    def ideal(self) -> int:
        return sum(each.ideal for each in self.counted)


def run() -> list[tuple[str, float, str, str]]:
    share = anyio.run(measure, TURNS, backend_options={"use_uvloop": True})
    if share.problems:
        raise RuntimeError(share.problems[0])
    return [
        ("input tokens read from the cache", share.read / share.whole * 100, "%", f"{TURNS} turns, one restart"),
        ("the most that could be", share.ideal / share.whole * 100, "%", "all that the request before had in common"),
        ("share of the ideal", share.read / share.ideal * 100, "%", "aim: >= 97"),
        ("requests", len(share.counted), "", f"{share.whole:,} tokens of prompts"),
    ]


async def measure(turns: int, *, window: int = 200_000) -> Share:
    """Let an agent work for some turns, the second half of them after a restart. `window` is the model's, in tokens."""
    server = CacheServer()
    try:
        with tempfile.TemporaryDirectory() as directory:
            async with _client(directory, server, window) as client:
                agent = await client.beta.agents.create(
                    name="bench",
                    model="claude-of-the-bench",
                    system="You work carefully. " * 20,
                    tools=[{"type": "agent_toolset_20260401"}],
                )
                environment = await client.beta.environments.create(name="bench")
                session = await client.beta.sessions.create(agent=agent.id, environment_id=environment.id)
                await _turns(client, session.id, 0, turns // 2)
            async with _client(directory, server, window) as client:
                await _turns(client, session.id, turns // 2, turns)
                usage = (await client.beta.sessions.retrieve(session.id)).usage
                await client.beta.sessions.delete(session.id)
    finally:
        await anyio.to_thread.run_sync(server.stop)
    assert usage is not None
    return Share(tuple(server.counted), tuple(server.problems), usage.cache_read_input_tokens or 0, server.condensed)


@asynccontextmanager
async def _client(directory: str, server: CacheServer, window: int) -> AsyncGenerator[AsyncAnthropic]:
    """A whole server over the directory, and a client of it."""
    # A model elsewhere, of which no more is known than what is set here.
    routes = [{"pattern": "*", "provider": "anthropic"}]
    settings = config.load(
        environ={}, overrides={**overrides(directory), "models": routes, "harness.context_tokens": window}
    )
    provider = AnthropicProvider(api_key=KEY, base_url=server.url)
    with bind("127.0.0.1", 0) as listener:
        async with open_corral(settings, provider=provider) as corral, serving(corral, listener) as url:
            async with AsyncAnthropic(base_url=url, api_key=corral.api_key) as client:
                yield client


async def _turns(client: AsyncAnthropic, session_id: str, first: int, last: int) -> None:
    async with await client.beta.sessions.events.stream(session_id) as stream:
        for number in range(first, last):
            text = f"Go on with part {number}. " * 10
            await client.beta.sessions.events.send(
                session_id, events=[{"type": "user.message", "content": [{"type": "text", "text": text}]}]
            )
            async for event in stream:
                if event.type == "session.status_idle":
                    break
