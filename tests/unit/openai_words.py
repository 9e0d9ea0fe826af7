"""The words of the two OpenAI wires, as their servers say them."""

from __future__ import annotations

import anyio

from corral.domain.inference import ModelChunk, ModelRequest, ModelResponse
from corral.providers.openai import OpenAIProvider
from tests.counterpart import REQUEST, Json, data


def chat_chunk(reason: str | None = None, **delta: object) -> Json:
    return {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}


def chat_call(index: int | None = None, call_id: str | None = None, **function: object) -> Json:
    call: Json = {"function": function}
    if index is not None:
        call["index"] = index
    if call_id is not None:
        call["id"] = call_id
    return chat_chunk(tool_calls=[call])


def chat(*chunks: Json, usage: Json | None = None, done: bool = True) -> str:
    """A whole stream of the Chat wire."""
    last: list[Json] = [] if usage is None else [{"object": "chat.completion.chunk", "choices": [], "usage": usage}]
    return "".join(map(data, [*chunks, *last])) + ("data: [DONE]\n\n" if done else "")


CHAT_HELLO = (chat_chunk(role="assistant", content=""), chat_chunk(content="Hel"), chat_chunk(content="lo"))


def event(kind: str, **fields: object) -> Json:
    return {"type": f"response.{kind}", **fields}


def added(index: int, **item: object) -> Json:
    return event("output_item.added", output_index=index, item=item)


def done(index: int, **item: object) -> Json:
    return event("output_item.done", output_index=index, item=item)


def text(index: int, words: str, part: int = 0) -> Json:
    return event("output_text.delta", output_index=index, content_index=part, delta=words)


def responses(*events: Json, **response: object) -> str:
    """A whole stream of the Responses wire."""
    created = event("created", response={"status": "in_progress"})
    return "".join(map(data, [created, *events, event("completed", response={"status": "completed", **response})]))


RESPONSES_HELLO = (added(0, type="message", id="msg_1"), text(0, "Hel"), text(0, "lo"))


async def chunks_of(provider: OpenAIProvider, request: ModelRequest = REQUEST) -> list[ModelChunk]:
    with anyio.fail_after(20):
        return [chunk async for chunk in provider.stream(request)]


async def response_of(provider: OpenAIProvider, request: ModelRequest = REQUEST) -> ModelResponse:
    last = (await chunks_of(provider, request))[-1]
    assert isinstance(last, ModelResponse)
    return last
