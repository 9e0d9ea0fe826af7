"""How long the server itself takes between a client's message and the model request that answers it.

A real server in this process, over HTTP; the model is a provider that notes when it was asked and answers at once.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import AsyncGenerator
from pathlib import Path

import anyio
from anthropic import AsyncAnthropic

from corral import config
from corral.app.server import open_corral
from corral.domain.content import TextBlock
from corral.domain.inference import ModelChunk, ModelRequest, ModelResponse, ModelUsage
from corral.serving import bind, serving
from tests.benchmarks.temporary import overrides

NAME = "From POST events to the model request"
TURNS = 100


class InstantModel:
    """Answers at once and notes when it was asked."""

    def __init__(self) -> None:
        self.asked_at = 0.0

    async def stream(self, request: ModelRequest) -> AsyncGenerator[ModelChunk]:
        self.asked_at = time.perf_counter()
        yield ModelResponse(content=(TextBlock(text="ok"),), stop_reason="end_turn", usage=ModelUsage())

    async def close(self) -> None:
        pass


def run() -> list[tuple[str, float, str, str]]:
    return anyio.run(_measure, backend_options={"use_uvloop": True})


async def _measure() -> list[tuple[str, float, str, str]]:
    with tempfile.TemporaryDirectory() as directory:
        settings = config.load(environ={}, overrides=overrides(directory))
        model = InstantModel()
        with bind("127.0.0.1", 0) as listener:
            async with open_corral(settings, provider=model) as corral, serving(corral, listener) as base_url:
                async with AsyncAnthropic(base_url=base_url, api_key=corral.api_key) as client:
                    asked, whole = await _turns(client, model)
        fsync = _fsync_milliseconds(Path(directory))
    return [
        (
            "POST sent → model asked, p50",
            statistics.median(asked),
            "ms",
            "aim: < 5; client in the same process",
        ),
        ("POST sent → model asked, p99", statistics.quantiles(asked, n=100)[98], "ms", ""),
        ("POST sent → idle on the stream, p50", statistics.median(whole), "ms", "a whole turn: three commits"),
        ("fdatasync of 4 KiB, p50", fsync, "ms", "this disk, same run: each commit waits for one"),
    ]


async def _turns(client: AsyncAnthropic, model: InstantModel) -> tuple[list[float], list[float]]:
    agent = await client.beta.agents.create(name="bench", model="instant")
    environment = await client.beta.environments.create(name="bench")
    session = await client.beta.sessions.create(agent=agent.id, environment_id=environment.id)
    asked: list[float] = []
    whole: list[float] = []
    async with await client.beta.sessions.events.stream(session.id) as stream:
        for _ in range(TURNS):
            start = time.perf_counter()
            await client.beta.sessions.events.send(
                session.id, events=[{"type": "user.message", "content": [{"type": "text", "text": "go"}]}]
            )
            async for event in stream:
                if event.type == "session.status_idle":
                    break
            whole.append((time.perf_counter() - start) * 1000)
            asked.append((model.asked_at - start) * 1000)
    return asked, whole


def _fsync_milliseconds(directory: Path) -> float:
    import os

    times: list[float] = []
    with (directory / "probe").open("wb", buffering=0) as file:
        for _ in range(50):
            file.write(bytes(4096))
            start = time.perf_counter()
            os.fdatasync(file.fileno())
            times.append((time.perf_counter() - start) * 1000)
    return statistics.median(times)
