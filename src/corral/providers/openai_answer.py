"""The answer of an OpenAI-style server as it grows; both of its wires are read into this.

`openai_chat_answer.py` and `openai_responses_answer.py` know the events. Here is what they share: blocks that open and
grow, tool calls with whatever ids and arguments the server came up with, and the finished `ModelResponse`. No I/O.
"""

from __future__ import annotations

from collections.abc import Generator, Hashable
from typing import Literal, TypeAlias, cast

import msgspec

from corral.domain.content import AssistantBlock, JsonObject, TextBlock, ThinkingBlock, ToolUseBlock
from corral.domain.inference import BlockStarted, ModelChunk, ModelResponse, ModelUsage, TextDelta

Kind: TypeAlias = Literal["text", "thinking", "tool_use"]
StopReason: TypeAlias = Literal["end_turn", "tool_use", "max_tokens", "refusal"]


class ServerFault(Exception):
    """The server says, inside its stream, that it failed; `body` is what it says."""

    def __init__(self, body: object) -> None:
        super().__init__("The model server failed.")
        self.body = body


class OpenBlock:
    """A block that grows."""

    def __init__(self, kind: Kind, position: int) -> None:
        self.kind: Kind = kind
        self.position = position
        self.pieces: list[str] = []
        self.sealed = ""
        """Reasoning as the server wants it back."""
        self.call_id = ""
        self.name = ""


class Answer:
    """One answer, growing piece by piece."""

    def __init__(self) -> None:
        self.complete = False
        """Everything but the usage has come."""
        self.usage = ModelUsage()
        self.stop_reason: Literal["max_tokens", "refusal"] | None = None
        """Only where it is one of these; the rest follows from the blocks."""
        self.refusal = ""
        self._blocks: list[OpenBlock] = []
        self._by_key: dict[Hashable, OpenBlock] = {}

    def read(self, event: object) -> Generator[ModelChunk]:
        """Take in one event and yield what it shows. Raises `ServerFault`; `ValueError` for a wrong shape."""
        raise NotImplementedError

    def block(self, kind: Kind, key: Hashable) -> OpenBlock | None:
        """The block that was opened under this key."""
        return self._by_key.get((kind, key))

    def opened(self, kind: Kind, key: Hashable) -> Generator[ModelChunk, None, OpenBlock]:
        """The block of this kind under this key; a new one if there is none."""
        block = self.block(kind, key)
        if block is None:
            block = self._by_key[kind, key] = OpenBlock(kind, len(self._blocks))
            self._blocks.append(block)
            yield BlockStarted(block.position, kind)
        return block

    def say(self, key: Hashable, text: str) -> Generator[ModelChunk]:
        """More text. A block that stays empty is no block."""
        if text:
            block = yield from self.opened("text", key)
            self.grow(block, text)
            yield TextDelta(block.position, text)

    def think(self, key: Hashable, text: str) -> Generator[ModelChunk]:
        """More thinking."""
        if text:
            self.grow((yield from self.opened("thinking", key)), text)

    def grow(self, block: OpenBlock, text: str) -> None:
        """Add to a block."""
        block.pieces.append(text)

    @property
    def empty(self) -> bool:
        """Whether no block has opened yet."""
        return not self._blocks

    def count(self, prompt: int | None, cached: int | None, output: int | None) -> None:
        """Note the usage. The wires count cached tokens among those of the prompt; we do not."""
        read = min(cached or 0, prompt or 0)
        self.usage = ModelUsage(
            input_tokens=(prompt or 0) - read, output_tokens=output or 0, cache_read_input_tokens=read
        )

    def response(self) -> ModelResponse:
        """The finished answer."""
        malformed: list[str] = []
        content = tuple([self._finished(block, malformed) for block in self._blocks])
        return ModelResponse(
            content=content,
            stop_reason=self._reason(),
            usage=self.usage,
            refusal_explanation=self.refusal or None,
            malformed_tool_inputs=tuple(malformed),
        )

    def _reason(self) -> StopReason:
        if self.refusal:
            return "refusal"
        if self.stop_reason is not None:
            return self.stop_reason
        return "tool_use" if any(block.kind == "tool_use" for block in self._blocks) else "end_turn"

    def _finished(self, block: OpenBlock, malformed: list[str]) -> AssistantBlock:
        text = "".join(block.pieces)
        match block.kind:
            case "text":
                return TextBlock(text=text)
            case "thinking":
                return ThinkingBlock(thinking=text, signature=block.sealed)
            case "tool_use":
                call_id = self._call_id(block)
                arguments = _arguments(text)
                # Cut off before its input began, a call looks like one that needs none.
                cut = block is self._blocks[-1] and self.stop_reason == "max_tokens" and not text.strip()
                if arguments is None or cut:
                    malformed.append(call_id)
                return ToolUseBlock(id=call_id, name=block.name, input=arguments or {})

    def _call_id(self, block: OpenBlock) -> str:
        """The server's id, made unique: one that numbers badly must not make two calls one."""
        taken = {other.call_id for other in self._blocks if other is not block}
        if block.call_id and block.call_id not in taken:
            return block.call_id
        return f"{block.call_id or 'call'}_{block.position}"


def argument_text(value: object) -> str:
    """Arguments as text. They should be; some servers send the object itself."""
    if value is None:
        return ""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _arguments(text: str) -> JsonObject | None:
    """The input of a tool call, or None when it is not a JSON object."""
    try:
        value: object = msgspec.json.decode(text) if text.strip() else {}
    except ValueError:
        return None
    return cast("JsonObject", value) if isinstance(value, dict) else None
