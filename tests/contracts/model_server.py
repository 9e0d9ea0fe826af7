"""A model server that speaks three wires and plays scripts: the scripted model, behind real HTTP.

`/v1/messages`, `/v1/chat/completions` and `/v1/responses` are read back into a `ModelRequest`, so a provider that loses
or misplaces something on the way out is seen to; the answer goes out in the words of the same wire, piece by piece.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from typing import Any, NamedTuple

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from corral.domain.content import PromptBlock, TextBlock, ThinkingBlock, ToolResultBlock, ToolUseBlock
from corral.domain.inference import BlockStarted, ModelChunk, ModelRequest, ModelResponse, PromptMessage, TextDelta
from corral.errors import (
    ContextOverflow,
    ProviderBilling,
    ProviderError,
    ProviderOverloaded,
    ProviderRateLimited,
    ProviderRefused,
    ProviderUnreachable,
)
from corral.providers.scripted import ScriptedProvider
from tests.counterpart import ServerThread, data

Json = dict[str, Any]

ERRORS: Mapping[type[ProviderError], tuple[int, str, str]] = {
    ProviderOverloaded: (503, "overloaded_error", "overloaded"),
    ProviderRateLimited: (429, "rate_limit_error", "rate_limit_exceeded"),
    ProviderBilling: (402, "billing_error", "insufficient_quota"),
    ProviderRefused: (400, "invalid_request_error", "invalid_prompt"),
    ContextOverflow: (400, "invalid_request_error", "context_length_exceeded"),
    ProviderUnreachable: (500, "api_error", "server_error"),
}
"""Status, and what the error is called on Anthropic's wire (`type`) and on OpenAI's (`code`)."""
BROKEN = '{"broken": '


class Wire(NamedTuple):
    """How one wire is read and written."""

    read: Callable[[Json], ModelRequest]
    write: Callable[[ModelChunk], Generator[Json]]
    ends_with: str = ""


class ModelServer(ServerThread):
    """The server, in a thread."""

    def __init__(self) -> None:
        self.requests: list[ModelRequest] = []
        self.gone = threading.Event()
        """Set when a stream is over, in whatever way."""
        super().__init__(*(Route(path, self._answer, methods=["POST"]) for path in WIRES))

    async def _answer(self, request: Request) -> Response:
        wire = WIRES[request.url.path]
        asked = wire.read(await request.json())
        self.requests.append(asked)
        self.gone.clear()
        chunks = ScriptedProvider().stream(asked)
        try:
            first = await anext(chunks)
        except ProviderError as error:
            status, _, _ = ERRORS[type(error)]
            return JSONResponse(error_body(error), status, {"retry-after": str(error.retry_after_seconds or 0)})
        return StreamingResponse(self._events(wire, first, chunks), media_type="text/event-stream")

    async def _events(self, wire: Wire, first: ModelChunk, rest: AsyncGenerator[ModelChunk]) -> AsyncGenerator[str]:
        try:
            for event in wire.write(first):
                yield data(event)
            async for chunk in rest:
                for event in wire.write(chunk):
                    yield data(event)
            yield wire.ends_with
        except ProviderError as error:
            yield data(error_body(error))
        finally:
            self.gone.set()


def error_body(error: ProviderError) -> Json:
    """An error that both families of wires understand."""
    _, kind, code = ERRORS[type(error)]
    message = "prompt is too long" if isinstance(error, ContextOverflow) else error.message
    return {"type": "error", "error": {"type": kind, "code": code, "message": message}}


# ------------------------------------------------------------------------------------------------- reading


def _request(body: Json, system: str, messages: list[PromptMessage]) -> ModelRequest:
    return ModelRequest(model=body["model"], system=system, messages=tuple(messages), tools=(), output_tokens_max=1)


def _read_messages(body: Json) -> ModelRequest:
    system = "".join(block.text for block in _text(body.get("system", "")))
    messages: list[PromptMessage] = []
    for message in body["messages"]:
        blocks = [{name: block[name] for name in block if name != "cache_control"} for block in message["content"]]
        for block in blocks:
            if block["type"] == "tool_result":
                block.setdefault("content", [])
        messages.append(msgspec.convert({"role": message["role"], "content": blocks}, PromptMessage))
    return _request(body, system, messages)


class _Conversation:
    """Messages put together from single things said, as the OpenAI wires have them."""

    def __init__(self) -> None:
        self.messages: list[PromptMessage] = []

    def add(self, role: str, *blocks: PromptBlock) -> None:
        if self.messages and self.messages[-1].role == role:
            blocks = (*self.messages.pop().content, *blocks)
        self.messages.append(msgspec.convert({"role": role, "content": msgspec.to_builtins(blocks)}, PromptMessage))


def _text(content: Any) -> tuple[TextBlock, ...]:
    if isinstance(content, str):
        return (TextBlock(text=content),)
    return tuple([TextBlock(text=part["text"]) for part in content or () if "text" in part])


def _called(call_id: str, name: str, arguments: str) -> ToolUseBlock:
    return ToolUseBlock(id=call_id, name=name, input=msgspec.json.decode(arguments))


def _result(call_id: str, output: Any) -> ToolResultBlock:
    return ToolResultBlock(tool_use_id=call_id, content=_text(output))


def _read_chat(body: Json) -> ModelRequest:
    talk, system = _Conversation(), ""
    for message in body["messages"]:
        match message["role"]:
            case "system":
                system = message["content"]
            case "tool":
                talk.add("user", _result(message["tool_call_id"], message["content"]))
            case role:
                calls = [
                    _called(call["id"], call["function"]["name"], call["function"]["arguments"])
                    for call in message.get("tool_calls", ())
                ]
                talk.add(role, *_text(message["content"]), *calls)
    return _request(body, system, talk.messages)


def _read_responses(body: Json) -> ModelRequest:
    talk = _Conversation()
    for item in body["input"]:
        match item["type"]:
            case "function_call":
                talk.add("assistant", _called(item["call_id"], item["name"], item["arguments"]))
            case "function_call_output":
                talk.add("user", _result(item["call_id"], item["output"]))
            case _:
                talk.add(item["role"], *_text(item["content"]))
    return _request(body, body.get("instructions", ""), talk.messages)


# ------------------------------------------------------------------------------------------------- writing


def _arguments(block: ToolUseBlock, response: ModelResponse) -> list[str]:
    whole = msgspec.json.encode(block.input).decode() if block.id not in response.malformed_tool_inputs else BROKEN
    return [whole[start : start + 3] for start in range(0, len(whole), 3)]


def _prompt_tokens(response: ModelResponse) -> int:
    return response.usage.input_tokens + response.usage.cache_read_input_tokens


def _write_messages(chunk: ModelChunk) -> Generator[Json]:
    match chunk:
        case BlockStarted(index, "text"):
            yield {"type": "content_block_start", "index": index, "content_block": {"type": "text", "text": ""}}
        case TextDelta(index, text):
            yield {"type": "content_block_delta", "index": index, "delta": {"type": "text_delta", "text": text}}
        case ModelResponse():
            for index, block in enumerate(chunk.content):
                yield from _write_block(index, block, chunk)
            delta = {"stop_reason": chunk.stop_reason}
            usage = {name: value for name, value in msgspec.to_builtins(chunk.usage).items() if "creation" not in name}
            yield {"type": "message_delta", "delta": delta, "usage": usage}
            yield {"type": "message_stop"}
        case _:
            pass


def _write_block(index: int, block: object, response: ModelResponse) -> Generator[Json]:
    if isinstance(block, ThinkingBlock):
        shown: Json = {"type": "thinking", "thinking": block.thinking, "signature": block.signature}
        yield {"type": "content_block_start", "index": index, "content_block": shown}
    elif isinstance(block, ToolUseBlock):
        shown = {"type": "tool_use", "id": block.id, "name": block.name, "input": {}}
        yield {"type": "content_block_start", "index": index, "content_block": shown}
        for piece in _arguments(block, response):
            delta = {"type": "input_json_delta", "partial_json": piece}
            yield {"type": "content_block_delta", "index": index, "delta": delta}


def _write_chat(chunk: ModelChunk) -> Generator[Json]:
    match chunk:
        case BlockStarted(_, "text"):
            yield _choice({"role": "assistant", "content": ""})
        case TextDelta(_, text):
            yield _choice({"content": text})
        case ModelResponse():
            calls = [block for block in chunk.content if isinstance(block, ToolUseBlock)]
            for index, call in enumerate(calls):
                function = {"name": call.name, "arguments": ""}
                yield _choice({"tool_calls": [{"index": index, "id": call.id, "function": function}]})
                for piece in _arguments(call, chunk):
                    yield _choice({"tool_calls": [{"index": index, "function": {"arguments": piece}}]})
            reasons = {"tool_use": "tool_calls", "max_tokens": "length", "refusal": "content_filter"}
            yield _choice({}, reasons.get(chunk.stop_reason, "stop"))
            usage = {
                "prompt_tokens": _prompt_tokens(chunk),
                "completion_tokens": chunk.usage.output_tokens,
                "prompt_tokens_details": {"cached_tokens": chunk.usage.cache_read_input_tokens},
            }
            yield {"choices": [], "usage": usage}
        case _:
            pass


def _choice(delta: Json, reason: str | None = None) -> Json:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}


def _write_responses(chunk: ModelChunk) -> Generator[Json]:
    match chunk:
        case BlockStarted(index, "text"):
            item: Json = {"type": "message", "id": f"msg_{index}", "content": []}
            yield {"type": "response.output_item.added", "output_index": index, "item": item}
        case TextDelta(index, text):
            yield {"type": "response.output_text.delta", "output_index": index, "content_index": 0, "delta": text}
        case ModelResponse():
            for index, block in enumerate(chunk.content):
                if isinstance(block, ToolUseBlock):
                    yield from _write_call(index, block, chunk)
            yield _response(chunk)
        case _:
            pass


def _write_call(index: int, block: ToolUseBlock, response: ModelResponse) -> Generator[Json]:
    item = {"type": "function_call", "id": f"fc_{index}", "call_id": block.id, "name": block.name, "arguments": ""}
    yield {"type": "response.output_item.added", "output_index": index, "item": item}
    for piece in _arguments(block, response):
        yield {"type": "response.function_call_arguments.delta", "output_index": index, "delta": piece}


def _response(response: ModelResponse) -> Json:
    usage = {
        "input_tokens": _prompt_tokens(response),
        "output_tokens": response.usage.output_tokens,
        "input_tokens_details": {"cached_tokens": response.usage.cache_read_input_tokens},
    }
    reasons = {"max_tokens": "max_output_tokens", "refusal": "content_filter"}
    reason = reasons.get(response.stop_reason)
    if reason is None:
        return {"type": "response.completed", "response": {"usage": usage}}
    return {"type": "response.incomplete", "response": {"usage": usage, "incomplete_details": {"reason": reason}}}


WIRES: Mapping[str, Wire] = {
    "/v1/messages": Wire(_read_messages, _write_messages),
    "/v1/chat/completions": Wire(_read_chat, _write_chat, "data: [DONE]\n\n"),
    "/v1/responses": Wire(_read_responses, _write_responses),
}
