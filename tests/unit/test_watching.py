"""What a harness counts, and what its log lines carry."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path

import anyio
import pytest
import structlog
from prometheus_client import CollectorRegistry

from corral.config_sections import HarnessSettings
from corral.domain.content import TextBlock
from corral.domain.inference import AnswerRestarted, ModelChunk, ModelRequest, ModelResponse, ModelUsage, TextDelta
from corral.errors import ProviderOverloaded
from corral.harness.watching import Watch, WatchedProvider
from tests.crash.stream_world import world
from tests.unit import builders as make

pytestmark = pytest.mark.anyio


class Shaky:
    """A provider whose first model gives up at once, and whose second answers."""

    async def stream(self, request: ModelRequest) -> AsyncGenerator[ModelChunk]:
        yield AnswerRestarted("second", "It was overloaded.")
        yield TextDelta(0, "Here.")
        yield ModelResponse(
            content=(TextBlock(text="Here."),), stop_reason="end_turn", usage=ModelUsage(output_tokens=3)
        )

    async def close(self) -> None:
        """Nothing to close."""


class Broken(Shaky):
    """A provider that fails."""

    async def stream(self, request: ModelRequest) -> AsyncGenerator[ModelChunk]:
        raise ProviderOverloaded
        yield  # makes it a generator


class Silent(Shaky):
    """A provider that never answers."""

    async def stream(self, request: ModelRequest) -> AsyncGenerator[ModelChunk]:
        await anyio.sleep_forever()
        yield TextDelta(0, "")


REQUEST = ModelRequest(model="known", system="", messages=(), tools=(), output_tokens_max=1)


def watch() -> tuple[Watch, CollectorRegistry]:
    registry = CollectorRegistry()
    return Watch(registry, knows_model=lambda model: model == "known", tools=("bash",)), registry


async def test_what_a_harness_logs_names_the_session(tmp_path: Path) -> None:
    processors = [structlog.contextvars.merge_contextvars]
    async with world(tmp_path, Shaky(), HarnessSettings()) as shaky:
        await shaky.create("sesn_watched", "known")
        with structlog.testing.capture_logs(processors) as lines:
            await shaky.send("sesn_watched", make.message("Hello"))
    assert [(line["event"], line["session_id"]) for line in lines] == [("model_fallback", "sesn_watched")]
    assert "session_id" not in structlog.contextvars.get_contextvars()


async def test_a_model_that_the_catalogue_does_not_know_has_no_series_of_its_own() -> None:
    seen, registry = watch()
    unknown = ModelRequest(model="made-up-by-a-client", system="", messages=(), tools=(), output_tokens_max=1)
    async for _ in WatchedProvider(Shaky(), seen).stream(unknown):
        pass
    assert registry.get_sample_value("corral_model_requests_total", {"model": "other", "outcome": "ok"}) == 1
    assert registry.get_sample_value("corral_model_tokens_total", {"model": "other", "kind": "output"}) == 3


async def test_a_request_that_fails_or_is_cut_is_counted_as_that() -> None:
    seen, registry = watch()
    with pytest.raises(ProviderOverloaded):
        async for _ in WatchedProvider(Broken(), seen).stream(REQUEST):
            pass
    with anyio.move_on_after(0):
        async for _ in WatchedProvider(Silent(), seen).stream(REQUEST):
            pass
    outcomes = ("ProviderOverloaded", "cancelled")
    counted = [
        registry.get_sample_value("corral_model_requests_total", {"model": "known", "outcome": outcome})
        for outcome in outcomes
    ]
    assert counted == [1, 1]
    assert registry.get_sample_value("corral_model_first_chunk_seconds_count", {"model": "known"}) is None


async def test_tools_of_mcp_servers_share_one_series() -> None:
    seen, registry = watch()
    for name, server in (("bash", None), ("anything", "docs"), ("bash", "docs")):
        with seen.tool_call("call", name, {}, server=server):
            pass
    labels = [
        sample.labels["tool"] for family in registry.collect() for sample in family.samples if "tool" in sample.labels
    ]
    assert set(labels) == {"bash", "mcp"}
