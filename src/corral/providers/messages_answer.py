"""The answer of a Messages API server, put together from the events of its stream.

Made to survive servers that are only nearly right: fields may be missing, unknown events and blocks are skipped,
tool input comes in any number of pieces. It reads events and does no I/O; `messages_wire.py` feeds it.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Literal, TypeAlias, cast, get_args

import msgspec

from corral.domain.content import (
    AssistantBlock,
    JsonObject,
    RedactedThinkingBlock,
    TextBlock,
    ThinkingBlock,
    ToolUseBlock,
)
from corral.domain.inference import BlockStarted, ModelChunk, ModelResponse, ModelUsage, TextDelta

StopReason: TypeAlias = Literal["end_turn", "tool_use", "max_tokens", "stop_sequence", "pause_turn", "refusal"]
BlockKind: TypeAlias = Literal["text", "thinking", "redacted_thinking", "tool_use"]


class WireCacheCreation(msgspec.Struct, frozen=True):
    """Tokens written to the cache, by how long they stay."""

    ephemeral_5m_input_tokens: int | None = None
    ephemeral_1h_input_tokens: int | None = None


class WireUsage(msgspec.Struct, frozen=True):
    """Tokens so far. Every field may be missing, or missing from some events only."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    cache_creation: WireCacheCreation | None = None


class WireBlock(msgspec.Struct, frozen=True):
    """A block as it starts."""

    type: str = ""
    text: str = ""
    thinking: str = ""
    signature: str = ""
    data: str = ""
    id: str | None = None
    name: str | None = None
    input: object = None


class WireStopDetails(msgspec.Struct, frozen=True):
    """Why the model refused."""

    category: str | None = None
    explanation: str | None = None


class WireDelta(msgspec.Struct, frozen=True):
    """What a delta of either kind may hold."""

    type: str = ""
    text: str = ""
    thinking: str = ""
    signature: str = ""
    partial_json: str = ""
    stop_reason: str | None = None
    stop_details: WireStopDetails | None = None


class WireMessage(msgspec.Struct, frozen=True):
    """The message as it starts."""

    usage: WireUsage | None = None


class WireEvent(msgspec.Struct, frozen=True):
    """An event that matters to us."""

    index: int = 0
    message: WireMessage | None = None
    content_block: WireBlock | None = None
    delta: WireDelta | None = None
    usage: WireUsage | None = None


class _OpenBlock:
    """A block that grows. `position` is its place in the finished answer, None until it has one."""

    def __init__(self, kind: BlockKind, start: WireBlock) -> None:
        self.kind: BlockKind = kind
        self.start = start
        self.position: int | None = None
        self.pieces: list[str] = []
        self.signature = start.signature


class Answer:
    """One answer, growing event by event."""

    def __init__(self) -> None:
        self.complete = False
        self._by_index: dict[int, _OpenBlock | None] = {}
        self._blocks: list[_OpenBlock] = []
        self._usage: dict[str, int] = {}
        self._stop_reason: str | None = None
        self._stop_details = WireStopDetails()

    def read(self, kind: str, data: str) -> Generator[ModelChunk]:
        """Take in one event and yield what it shows. Raises `ValueError` when a known event has the wrong shape."""
        match kind:
            case "message_start":
                event = _decode(data)
                self._count((event.message or WireMessage()).usage)
            case "content_block_start":
                event = _decode(data)
                yield from self._open(event.index, event.content_block or WireBlock())
            case "content_block_delta":
                event = _decode(data)
                yield from self._grow(event.index, event.delta or WireDelta())
            case "message_delta":
                event = _decode(data)
                self._end(event.delta or WireDelta())
                self._count(event.usage)
            case "message_stop":
                self.complete = True
            case _:
                pass

    def response(self) -> ModelResponse:
        """The finished answer."""
        malformed: list[str] = []
        content = [self._finish(block, malformed) for block in self._blocks]
        return ModelResponse(
            content=tuple(content),
            stop_reason=self._reason(),
            usage=ModelUsage(**self._usage),
            refusal_category=self._stop_details.category,
            refusal_explanation=self._stop_details.explanation,
            malformed_tool_inputs=tuple(malformed),
        )

    def _open(self, index: int, start: WireBlock) -> Generator[ModelChunk]:
        if start.type not in get_args(BlockKind):
            self._by_index[index] = None
            return
        block = _OpenBlock(cast("BlockKind", start.type), start)
        self._by_index[index] = block
        if block.kind == "text":
            yield from self._say(block, start.text)
            return
        block.pieces.append(start.thinking)
        yield from self._place(block)

    def _grow(self, index: int, delta: WireDelta) -> Generator[ModelChunk]:
        block = self._by_index.get(index)
        if block is None:
            return
        if delta.type == "text_delta":
            yield from self._say(block, delta.text)
        elif delta.type == "thinking_delta":
            block.pieces.append(delta.thinking)
        elif delta.type == "signature_delta":
            block.signature += delta.signature
        elif delta.type == "input_json_delta":
            block.pieces.append(delta.partial_json)

    def _say(self, block: _OpenBlock, text: str) -> Generator[ModelChunk]:
        if not text:
            return
        # A text block that stays empty is no block: the API refuses it when it is sent back.
        yield from self._place(block)
        block.pieces.append(text)
        if block.position is not None:
            yield TextDelta(block.position, text)

    def _place(self, block: _OpenBlock) -> Generator[ModelChunk]:
        if block.position is not None:
            return
        block.position = len(self._blocks)
        self._blocks.append(block)
        yield BlockStarted(block.position, "thinking" if block.kind == "redacted_thinking" else block.kind)

    def _end(self, delta: WireDelta) -> None:
        self._stop_reason = delta.stop_reason or self._stop_reason
        self._stop_details = delta.stop_details or self._stop_details

    def _count(self, usage: WireUsage | None) -> None:
        if usage is None:
            return
        created = usage.cache_creation or WireCacheCreation()
        hour = created.ephemeral_1h_input_tokens or 0
        minutes = created.ephemeral_5m_input_tokens or (usage.cache_creation_input_tokens or 0) - hour
        counted = {
            "input_tokens": usage.input_tokens,
            "output_tokens": usage.output_tokens,
            "cache_read_input_tokens": usage.cache_read_input_tokens,
            "cache_creation_5m_input_tokens": minutes,
            "cache_creation_1h_input_tokens": hour,
        }
        for name, tokens in counted.items():
            # The counts are cumulative; a later event may lack one or say 0.
            self._usage[name] = max(self._usage.get(name, 0), tokens or 0)

    def _reason(self) -> StopReason:
        if self._stop_reason == "model_context_window_exceeded":
            return "max_tokens"
        calls = any(block.kind == "tool_use" for block in self._blocks)
        if self._stop_reason not in get_args(StopReason) or (self._stop_reason == "end_turn" and calls):
            return "tool_use" if calls else "end_turn"
        return cast("StopReason", self._stop_reason)

    def _finish(self, block: _OpenBlock, malformed: list[str]) -> AssistantBlock:
        text = "".join(block.pieces)
        match block.kind:
            case "text":
                return TextBlock(text=text)
            case "thinking":
                return ThinkingBlock(thinking=text, signature=block.signature)
            case "redacted_thinking":
                return RedactedThinkingBlock(data=block.start.data)
            case "tool_use":
                call_id = self._call_id(block)
                arguments = _arguments(text, block.start.input)
                if arguments is None or self._cut(block, text):
                    malformed.append(call_id)
                return ToolUseBlock(id=call_id, name=block.start.name or "", input=arguments or {})

    def _cut(self, block: _OpenBlock, text: str) -> bool:
        """Whether the answer ended before the call's input began, which looks like a call that needs none."""
        last = block.position == len(self._blocks) - 1
        return last and self._reason() == "max_tokens" and not text.strip() and not block.start.input

    def _call_id(self, block: _OpenBlock) -> str:
        """The model's id, made unique: a server that numbers badly must not make two calls one."""
        taken = {other.start.id for other in self._blocks if other.position != block.position}
        if block.start.id and block.start.id not in taken:
            return block.start.id
        return f"{block.start.id or 'toolu'}_{block.position}"


def _decode(data: str) -> WireEvent:
    return msgspec.json.decode(data, type=WireEvent)


def _arguments(text: str, given: object) -> JsonObject | None:
    """The input of a tool call: what was streamed, else what its start held; None when it is not a JSON object."""
    try:
        value = msgspec.json.decode(text) if text.strip() else given
    except ValueError:
        return None
    if value is None:
        return {}
    return cast("JsonObject", value) if isinstance(value, dict) else None
