"""Servers that do not keep to their wire, the same checks on every wire: an answer as it was meant, or none at all.

Each wire's one good answer is written by hand, and then cut, stuffed, mislabelled or held back. What a whole session
makes of broken streams is tested in `tests/crash`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from typing import NamedTuple

import anyio
import anyio.to_thread
import msgspec
import pytest
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from corral.domain.content import TextBlock, ToolUseBlock
from corral.domain.inference import ModelChunk, ModelResponse
from corral.errors import ProviderOverloaded, ProviderUnreachable
from corral.interfaces.provider import Provider
from corral.providers.anthropic import AnthropicProvider
from corral.providers.messages_clouds import Cloud
from corral.providers.openai import OpenAIProvider
from tests.counterpart import KEY, REQUEST, Counterpart, Hanging, Json, data
from tests.unit.openai_words import CHAT_HELLO, RESPONSES_HELLO, added, chat_call, chat_chunk, event
from tests.unit.test_clouds import AMAZON, ANSWER, chunk

pytestmark = pytest.mark.anyio

SSE = "text/event-stream"
IDLE_SECONDS = 1.0
CUTS = 12


class Wire(NamedTuple):
    """How a wire says "Hello", calls a tool twice with one id, and ends."""

    provider: Callable[[str], Provider]
    pieces: tuple[bytes, ...]
    """One for each event, the end not among them."""
    end: tuple[bytes, ...]
    strange: bytes
    """An event that nobody knows."""
    kind: str = SSE


def encoded(*events: Json) -> tuple[bytes, ...]:
    return tuple(data(each).encode() for each in events)


def through_messages(url: str) -> Provider:
    return AnthropicProvider(api_key=KEY, base_url=url, idle_seconds=IDLE_SECONDS)


def through_chat(url: str) -> Provider:
    return OpenAIProvider(api_key=KEY, base_url=f"{url}/v1", wire="chat", idle_seconds=IDLE_SECONDS)


def through_responses(url: str) -> Provider:
    return OpenAIProvider(api_key=KEY, base_url=f"{url}/v1", wire="responses", idle_seconds=IDLE_SECONDS)


def through_bedrock(url: str) -> Provider:
    cloud = Cloud("bedrock", "eu-north-1", url=url, token=KEY)
    return AnthropicProvider(cloud=cloud, idle_seconds=IDLE_SECONDS)


def second_call(index: int) -> tuple[Json, ...]:
    shown: Json = {"type": "tool_use", "id": "t1", "name": "bash", "input": {"b": 2}}
    return ({"type": "content_block_start", "index": index, "content_block": shown},)


ARGUMENTS = [event("function_call_arguments.delta", output_index=1, delta=piece) for piece in ("{", '"a"', ": 1", "}")]
STRANGE: Json = {"type": "telepathy", "delta": 5, "item": "?", "output_index": "?"}

WIRES: Mapping[str, Wire] = {
    "messages": Wire(
        through_messages,
        encoded(*ANSWER[:-2], *second_call(2)),
        encoded(*ANSWER[-2:]),
        data(STRANGE).encode(),
    ),
    "bedrock": Wire(
        through_bedrock,
        tuple(map(chunk, (*ANSWER[:-2], *second_call(2)))),
        tuple(map(chunk, ANSWER[-2:])),
        chunk(STRANGE),
        AMAZON,
    ),
    "chat": Wire(
        through_chat,
        encoded(
            *CHAT_HELLO,
            chat_call(0, "t1", name="bash", arguments='{"a"'),
            chat_call(0, arguments=": "),
            chat_call(0, arguments="1}"),
            chat_call(1, "t1", name="bash", arguments='{"b": 2}'),
        ),
        (data(chat_chunk("tool_calls")).encode(), b"data: [DONE]\n\n"),
        b'data: {"object": "telepathy", "choices": null, "delta": 5}\n\n',
    ),
    "responses": Wire(
        through_responses,
        encoded(
            *RESPONSES_HELLO,
            added(1, type="function_call", call_id="t1", name="bash"),
            *ARGUMENTS,
            added(2, type="function_call", call_id="t1", name="bash"),
            event("function_call_arguments.delta", output_index=2, delta='{"b": 2}'),
        ),
        (data(event("completed", response={"status": "completed"})).encode(),),
        data(STRANGE).encode(),
    ),
}


@pytest.fixture(params=list(WIRES))
def wire(request: pytest.FixtureRequest) -> Wire:
    return WIRES[str(request.param)]


@pytest.fixture
async def provider(counterpart: Counterpart, wire: Wire) -> AsyncIterator[Provider]:
    provider = wire.provider(counterpart.url)
    yield provider
    await provider.close()


async def chunks_of(provider: Provider) -> list[ModelChunk]:
    with anyio.fail_after(60):
        return [each async for each in provider.stream(REQUEST)]


async def check(provider: Provider) -> None:
    """The answer is whole, and its calls can be told apart."""
    last = (await chunks_of(provider))[-1]
    assert isinstance(last, ModelResponse)
    text, first, second = last.content
    assert text == TextBlock(text="Hello")
    assert isinstance(first, ToolUseBlock) and isinstance(second, ToolUseBlock)
    assert (first.input, second.input) == ({"a": 1}, {"b": 2})
    assert first.id != second.id
    assert (last.stop_reason, last.malformed_tool_inputs) == ("tool_use", ())


async def test_the_pieces_may_be_cut_anywhere(counterpart: Counterpart, wire: Wire, provider: Provider) -> None:
    whole = b"".join((*wire.pieces, *wire.end))

    async def handler(_: Request) -> Response:
        async def body() -> AsyncIterator[bytes]:
            for place in range(0, len(whole), 7):
                yield whole[place : place + 7]

        return StreamingResponse(body(), media_type=wire.kind)

    counterpart.handler = handler
    await check(provider)


async def test_events_that_nobody_knows_are_skipped(counterpart: Counterpart, wire: Wire, provider: Provider) -> None:
    counterpart.answers(b"".join(each + wire.strange for each in wire.pieces) + b"".join(wire.end), kind=wire.kind)
    await check(provider)


async def test_an_answer_that_breaks_off_is_none(counterpart: Counterpart, wire: Wire, provider: Provider) -> None:
    begun = b"".join(wire.pieces)
    for cut in range(CUTS + 1):
        counterpart.answers(begun[: len(begun) * cut // CUTS], kind=wire.kind)
        with pytest.raises(ProviderUnreachable):
            await chunks_of(provider)


@pytest.mark.parametrize("kind", ["text/html", "application/json", "application/octet-stream", ""])
async def test_another_content_type_is_no_answer(
    counterpart: Counterpart, wire: Wire, provider: Provider, kind: str
) -> None:
    counterpart.answers(b"".join((*wire.pieces, *wire.end)), kind=kind)
    with pytest.raises(ProviderUnreachable, match="instead of an event stream"):
        await chunks_of(provider)


async def test_a_success_that_holds_an_error_is_that_error(
    counterpart: Counterpart, wire: Wire, provider: Provider
) -> None:
    error = {"type": "error", "error": {"type": "overloaded_error", "message": "come back later"}}
    counterpart.answers(msgspec.json.encode(error), kind="application/json")
    with pytest.raises(ProviderOverloaded, match="come back later"):
        await chunks_of(provider)


async def test_a_server_that_falls_silent_is_left(counterpart: Counterpart, wire: Wire, provider: Provider) -> None:
    counterpart.handler = hanging = Hanging(b"".join(wire.pieces), kind=wire.kind)
    with pytest.raises(ProviderUnreachable):
        await chunks_of(provider)
    assert await anyio.to_thread.run_sync(hanging.gone.wait, 30)


@pytest.mark.parametrize("junk", [b"data: {not json}\n\n", b"data: \xff\xfe\n\n", b'data: [1, "x"]\n\n', b"\x00" * 40])
async def test_junk_in_the_middle_is_no_answer(
    counterpart: Counterpart, wire: Wire, provider: Provider, junk: bytes
) -> None:
    counterpart.answers(b"".join(wire.pieces[:3]) + junk, kind=wire.kind)
    with pytest.raises(ProviderUnreachable):
        await chunks_of(provider)
    counterpart.answers(b"".join((*wire.pieces, *wire.end)), kind=wire.kind)
    await check(provider)
