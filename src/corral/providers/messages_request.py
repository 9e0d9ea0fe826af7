"""A `ModelRequest` as the body of a Messages API request.

The same request always gives the same bytes, so that servers can cache prompts by prefix. What the API refuses is
left out here: empty text, messages without content, thinking that carries no signature or another wire's, or that ends
a message.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import msgspec

from corral.domain.content import SEALED_BY_RESPONSES, PromptBlock, TextBlock, ThinkingBlock, ToolResultBlock
from corral.domain.inference import ANSWER_BYTES_MAX, ModelRequest, PromptMessage
from corral.providers.messages_cache import last_marked, request_ends, with_breakpoint

THINKING = frozenset({"thinking", "redacted_thinking"})


class EncodedMessages:
    """The bytes of messages that are likely to be sent again, so that a request costs what is new in it.

    By identity: a message never changes, and a conversation keeps its own. Those used least lately go first.
    """

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._kept: OrderedDict[int, tuple[PromptMessage, bytes]] = OrderedDict()

    def of(self, message: PromptMessage) -> bytes:
        """The message as JSON; empty when nothing of it may be sent."""
        key = id(message)
        kept = self._kept.get(key)
        if kept is not None:
            self._kept.move_to_end(key)
            return kept[1]
        encoded = encode_message(message)
        self._kept[key] = message, encoded  # the message is kept too, so that nothing else can have its id
        self._bytes += len(encoded)
        while self._bytes > self._bytes_max:
            _, (_, dropped) = self._kept.popitem(last=False)
            self._bytes -= len(dropped)
        return encoded


def encode_message(message: PromptMessage) -> bytes:
    """One message as JSON; empty when nothing of it may be sent."""
    content = _content(message)
    return _encoded(message, content) if content else b""


class WireRequest(NamedTuple):
    """What to send: the body and the headers that belong to it; and how long the answer may be."""

    body: bytes
    headers: Mapping[str, str]
    answer_bytes_max: int = ANSWER_BYTES_MAX


def encode_request(
    request: ModelRequest,
    *,
    extras: Mapping[str, object] | None = None,
    cached: bool = False,
    encode: Callable[[PromptMessage], bytes] = encode_message,
) -> bytes:
    """The JSON body. `extras` are further top-level fields that one kind of server understands.

    `cached` asks the server to keep the prompt (`messages_cache.py`); servers that cache by themselves need no asking.
    `encode` may remember what it did.
    """
    sent = [(message, encoded) for message in request.messages if (encoded := encode(message))]
    messages = [encoded for _, encoded in sent]
    for position in request_ends([message.role for message, _ in sent]) if cached else ():
        message = sent[position][0]
        messages[position] = _encoded(message, last_marked(_content(message)))
    body: dict[str, object] = {
        "model": request.model,
        "max_tokens": request.output_tokens_max,
        "stream": True,
        "messages": msgspec.Raw(b"[" + b",".join(messages) + b"]"),
        **(extras or {}),
    }
    if request.system.strip():
        body["system"] = request.system
    if request.tools:
        body["tools"] = [msgspec.to_builtins(tool) for tool in request.tools]
    return msgspec.json.encode(with_breakpoint(body) if cached else body)


def _encoded(message: PromptMessage, content: list[dict[str, object]]) -> bytes:
    return msgspec.json.encode({"role": message.role, "content": content})


def _content(message: PromptMessage) -> list[dict[str, object]]:
    content = list(_blocks(message.content))
    while message.role == "assistant" and content and content[-1]["type"] in THINKING:
        content.pop()  # an answer that was cut off while the model thought
    return content


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
