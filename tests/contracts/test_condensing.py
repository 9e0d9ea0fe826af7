"""What a model is asked when a conversation is to be condensed, and what becomes of its answer; over real HTTP."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from corral.config_sections import HarnessSettings
from corral.domain.content import (
    Base64Source,
    ImageBlock,
    PromptBlock,
    TextBlock,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
)
from corral.domain.inference import PromptMessage
from corral.errors import ContextOverflow, ProviderError, ProviderRefused, ProviderUnreachable
from corral.harness.compaction import Compaction, compact
from corral.harness.context import Context
from corral.providers.anthropic import AnthropicProvider
from tests.contracts.raw_server import Play, RawServer, http, serving
from tests.crash.broken_streams import WIRES
from tests.crash.stream_world import StreamWorld, world
from tests.unit import builders as make

pytestmark = [pytest.mark.anyio, pytest.mark.requirement("F144")]

Json = dict[str, Any]
DONE = Play(http(WIRES["messages"].done))
PICTURE = ImageBlock(source=Base64Source(media_type="image/png", data="QUJD" * 5_000))
TASK = "Move /srv/app/config.toml to /etc/app.toml. Never touch customer 7f3a-99."


class Place(NamedTuple):
    """A world with a model server that answers as it is told."""

    world: StreamWorld
    server: RawServer

    async def condensed(self, messages: Sequence[PromptMessage], window: int = 20_000) -> Compaction | ProviderError:
        context = Context()
        context.messages = list(messages)

        def small(model: str) -> int:
            return window

        return await compact(self.world.parts._replace(window=small), make.session(), context)

    def asked(self) -> str:
        """The transcript of the newest request."""
        return self.server.bodies["scripted"][-1]["messages"][0]["content"][0]["text"]


@asynccontextmanager
async def placed(play: Callable[[str], Play], **settings: Any) -> AsyncGenerator[Place]:
    """`play` gets the transcript."""

    def answer(model: str, asked: Sequence[Json]) -> Play:
        return play(asked[-1]["messages"][0]["content"][0]["text"])

    with tempfile.TemporaryDirectory(prefix="corral-condensing-") as made:
        async with serving(answer) as server:
            provider = AnthropicProvider(api_key="sk-of-the-test", base_url=server.url)
            async with world(Path(made), provider, HarnessSettings(**settings)) as stream_world:
                yield Place(stream_world, server)


def said(role: str, *blocks: PromptBlock) -> PromptMessage:
    return msgspec.convert({"role": role, "content": msgspec.to_builtins(blocks)}, PromptMessage)


def tool_round(number: int, output: str) -> list[PromptMessage]:
    call = ToolUseBlock(id=f"sevt_{number}", name="bash", input={"command": f"cat part-{number}"})
    result = ToolResultBlock(tool_use_id=call.id, content=(TextBlock(text=output),))
    thinking = ThinkingBlock(thinking="secret thoughts", signature="s")
    return [said("assistant", thinking, TextBlock(text=f"I look at part {number}."), call), said("user", result)]


def talk(rounds: int, output: str) -> list[PromptMessage]:
    each = [message for number in range(rounds) for message in tool_round(number, output)]
    return [said("user", TextBlock(text=TASK), PICTURE), *each]


async def test_pictures_and_long_outputs_go_first_and_what_was_said_stays() -> None:
    async with placed(lambda text: DONE) as place:
        done = await place.condensed(talk(40, "x" * 9_000 + " the end"))
        assert isinstance(done, Compaction)
        asked = place.asked()
    assert "cache_control" not in str(place.server.bodies)
    assert TASK in asked and "(a picture)" in asked and "QUJD" not in asked
    assert "secret thoughts" not in asked and "characters left out" in asked
    for number in range(30):
        assert f"I look at part {number}." in asked and f"cat part-{number}" in asked
    assert len(asked) <= 20_000 * 3 // 2


async def test_the_newest_messages_stay_and_never_begin_with_a_result_without_its_call() -> None:
    messages = talk(20, "y" * 2_000)
    async with placed(lambda text: DONE) as place:
        done = await place.condensed(messages)
    assert isinstance(done, Compaction)
    kept = messages[len(messages) - done.condensed.kept :]
    assert 2 <= len(kept) < 20 and kept[0].role == "assistant"
    assert (done.condensed.summary, kept[-1]) == ("Done.", messages[-1])


async def test_a_transcript_that_is_too_long_for_the_model_is_halved_until_it_fits() -> None:
    body = msgspec.json.encode({"error": {"type": "invalid_request_error", "message": "prompt is too long"}})
    too_long = Play(http(body, status="400 Bad Request", kind="application/json"))
    async with placed(lambda text: too_long if len(text) > 10_000 else DONE) as place:
        done = await place.condensed(talk(60, "字" * 900))
        assert isinstance(done, Compaction)
        lengths = [len(each["messages"][0]["content"][0]["text"]) for each in place.server.bodies["scripted"]]
        assert lengths[-1] <= 10_000 and TASK in place.asked()
    async with placed(lambda text: too_long) as place:
        assert isinstance(await place.condensed(talk(60, "z")), ContextOverflow)
        assert len(place.server.bodies["scripted"]) == 4


@pytest.mark.parametrize(
    ("play", "error"),
    [
        (Play(http(b"event: message_start\ndata: {}\n\n"), "hang"), ProviderUnreachable),
        (Play(http(WIRES["messages"].done.replace(b"end_turn", b"refusal"))), ProviderRefused),
        (Play(http(WIRES["messages"].done.replace(b"Done.", b""))), ProviderUnreachable),
    ],
)
async def test_a_model_that_gives_no_summary_is_a_failed_request(play: Play, error: type[ProviderError]) -> None:
    async with placed(lambda text: play, model_idle_seconds_max=1.0) as place:
        assert type(await place.condensed(talk(10, "out"))) is error
