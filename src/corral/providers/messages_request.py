"""A `ModelRequest` as the body of a Messages API request.

The same request always gives the same bytes, so that servers can cache prompts by prefix. What the API refuses is
left out here: empty text, messages without content, thinking that carries no signature or another wire's, or that ends
a message.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec

from corral.domain.content import SEALED_BY_RESPONSES, PromptBlock, TextBlock, ThinkingBlock, ToolResultBlock
from corral.domain.inference import ANSWER_BYTES_MAX, ModelRequest, PromptMessage
from corral.providers.messages_cache import with_breakpoints

THINKING = frozenset({"thinking", "redacted_thinking"})


class WireRequest(NamedTuple):
    """What to send: the body and the headers that belong to it; and how long the answer may be."""

    body: bytes
    headers: Mapping[str, str]
    answer_bytes_max: int = ANSWER_BYTES_MAX


def encode_request(request: ModelRequest, *, extras: Mapping[str, object] | None = None, cached: bool = False) -> bytes:
    """The JSON body. `extras` are further top-level fields that one kind of server understands.

    `cached` asks the server to keep the prompt (`messages_cache.py`); servers that cache by themselves need no asking.
    """
    body: dict[str, object] = {
        "model": request.model,
        "max_tokens": request.output_tokens_max,
        "stream": True,
        "messages": [message for message in map(_message, request.messages) if message["content"]],
        **(extras or {}),
    }
    if request.system.strip():
        body["system"] = request.system
    if request.tools:
        body["tools"] = [msgspec.to_builtins(tool) for tool in request.tools]
    return msgspec.json.encode(with_breakpoints(body) if cached else body)


def _message(message: PromptMessage) -> dict[str, object]:
    content = list(_blocks(message.content))
    while message.role == "assistant" and content and content[-1]["type"] in THINKING:
        content.pop()  # an answer that was cut off while the model thought
    return {"role": message.role, "content": content}


def _blocks(content: Iterable[PromptBlock]) -> Iterable[dict[str, object]]:
    for block in content:
        if isinstance(block, TextBlock) and not block.text.strip():
            continue
        if isinstance(block, ThinkingBlock) and (
            not block.signature or block.signature.startswith(SEALED_BY_RESPONSES)
        ):
            continue
        yield _tool_result(block) if isinstance(block, ToolResultBlock) else _plain(block)


def _tool_result(block: ToolResultBlock) -> dict[str, object]:
    encoded: dict[str, object] = {"type": "tool_result", "tool_use_id": block.tool_use_id}
    if content := list(_blocks(block.content)):
        encoded["content"] = content
    if block.is_error:
        encoded["is_error"] = True
    return encoded


def _plain(block: PromptBlock) -> dict[str, object]:
    encoded: dict[str, object] = msgspec.to_builtins(block)
    return {name: value for name, value in encoded.items() if value is not None}
