"""How long the server itself takes between a client's message and the model request that answers it.

A real server in this process, over HTTP; the model is a provider that notes when it was asked and answers at once. The
client is the official SDK, twice: in a process of its own, as everywhere else, and in the server's, where its work and
the server's wait for each other. Moments of all processes of a machine are comparable (`time.monotonic`).

On a busy machine the milliseconds say how busy it is. The processor time of a turn says what the server does.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import NamedTuple

import anyio
import msgspec
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
        self.asked_at: list[float] = []

    async def stream(self, request: ModelRequest) -> AsyncGenerator[ModelChunk]:
        self.asked_at.append(time.monotonic())
        yield ModelResponse(content=(TextBlock(text="ok"),), stop_reason="end_turn", usage=ModelUsage())

    async def close(self) -> None:
        pass


class Turn(NamedTuple):
    """What the client saw of one: moments."""

    sent: float
    idle: float


def run() -> list[tuple[str, float, str, str]]:
    return anyio.run(_measure, backend_options={"use_uvloop": True})


async def _measure() -> list[tuple[str, float, str, str]]:
    with tempfile.TemporaryDirectory() as directory:
        settings = config.load(environ={}, overrides=overrides(directory))
        model = InstantModel()
        with bind("127.0.0.1", 0) as listener:
            async with open_corral(settings, provider=model) as corral, serving(corral, listener) as base_url:
                inside = _asked(model, await take_turns(base_url, corral.api_key))
                cpu = time.process_time()
                turns = await _from_outside(base_url, corral.api_key)
                cpu = (time.process_time() - cpu) * 1000 / TURNS
                outside = _asked(model, turns)
        fsync = _fsync_milliseconds(Path(directory))
    whole = [(turn.idle - turn.sent) * 1000 for turn in turns]
    return [
        ("POST sent → model asked, p50", statistics.median(outside), "ms", "aim: < 5; client in another process"),
        ("POST sent → model asked, p99", statistics.quantiles(outside, n=100)[98], "ms", ""),
        ("POST sent → idle on the stream, p50", statistics.median(whole), "ms", "a whole turn: three commits"),
        ("a whole turn", cpu, "ms CPU", "of the server"),
        ("POST sent → model asked, p50", statistics.median(inside), "ms", "client in the same process"),
        ("fdatasync of 4 KiB, p50", fsync, "ms", "this disk, same run: each commit waits for one"),
    ]


def _asked(model: InstantModel, turns: list[Turn]) -> list[float]:
    """Milliseconds until the model was asked, for the turns since the last look."""
    asked, model.asked_at = model.asked_at, []
    return [(at - turn.sent) * 1000 for at, turn in zip(asked, turns, strict=True)]


async def _from_outside(base_url: str, api_key: str) -> list[Turn]:
    """The same by a process of its own, this file as a program."""
    command = [sys.executable, "-m", "tests.benchmarks.turn_latency", base_url, api_key]
    done = await anyio.run_process(command, stderr=None)
    return msgspec.json.decode(done.stdout, type=list[Turn])


async def take_turns(base_url: str, api_key: str) -> list[Turn]:
    """Take turns in one new session, one after another."""
    turns: list[Turn] = []
    async with AsyncAnthropic(base_url=base_url, api_key=api_key) as client:
        agent = await client.beta.agents.create(name="bench", model="instant")
        environment = await client.beta.environments.create(name=f"bench {time.monotonic_ns()}")
        session = await client.beta.sessions.create(agent=agent.id, environment_id=environment.id)
        async with await client.beta.sessions.events.stream(session.id) as stream:
            for _ in range(TURNS):
                sent = time.monotonic()
                await client.beta.sessions.events.send(
                    session.id, events=[{"type": "user.message", "content": [{"type": "text", "text": "go"}]}]
                )
                async for event in stream:
                    if event.type == "session.status_idle":
                        break
                turns.append(Turn(sent, time.monotonic()))
    return turns


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


if __name__ == "__main__":
    taken = anyio.run(take_turns, sys.argv[1], sys.argv[2], backend_options={"use_uvloop": True})
    sys.stdout.buffer.write(msgspec.json.encode(taken))
