"""The answer of a Chat Completions server, put together from the chunks of its stream.

Made to survive servers that are only nearly right: usage may come with any chunk or not at all, tool calls may lack an
index or an id or all have the same index, arguments come in any number of pieces or as an object.
"""

from __future__ import annotations

from collections.abc import Generator

import msgspec

from corral.domain.inference import ModelChunk
from corral.providers.openai_answer import Answer, OpenBlock, ServerFault, argument_text


class ChatFunction(msgspec.Struct, frozen=True):
    """A piece of a tool call."""

    name: str | None = None
    arguments: object = None


class ChatCall(msgspec.Struct, frozen=True):
    """A piece of a tool call, and which call it belongs to."""

    index: int | None = None
    id: str | None = None
    function: ChatFunction | None = None


class ChatDelta(msgspec.Struct, frozen=True):
    """What a chunk adds. Thinking goes by either of two names."""

    content: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: tuple[ChatCall, ...] | None = None


class ChatChoice(msgspec.Struct, frozen=True):
    """One of the answers; only one is ever asked for."""

    index: int = 0
    delta: ChatDelta | None = None
    finish_reason: str | None = None


class ChatCached(msgspec.Struct, frozen=True):
    """How many tokens of the prompt came from the server's cache."""

    cached_tokens: int | None = None


class ChatUsage(msgspec.Struct, frozen=True):
    """Tokens so far."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: ChatCached | None = None


class ChatChunk(msgspec.Struct, frozen=True):
    """One event."""

    object: str | None = None
    choices: tuple[ChatChoice, ...] | None = None
    usage: ChatUsage | None = None


class ChatAnswer(Answer):
    """One answer, growing chunk by chunk."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: list[tuple[int | None, OpenBlock]] = []
        """With the index that the server gave each, in the order in which they came."""

    def read(self, event: object) -> Generator[ModelChunk]:
        """Take in one chunk; see `Answer.read`."""
        chunk = msgspec.convert(event, ChatChunk)
        if chunk.object == "error":
            raise ServerFault(event)
        if chunk.usage is not None:
            details = chunk.usage.prompt_tokens_details or ChatCached()
            self.count(chunk.usage.prompt_tokens, details.cached_tokens, chunk.usage.completion_tokens)
        for choice in chunk.choices or ():
            if choice.index == 0 and not self.complete:
                yield from self._grow(choice.delta or ChatDelta())
                self._end(choice.finish_reason)

    def _grow(self, delta: ChatDelta) -> Generator[ModelChunk]:
        yield from self.think(0, delta.reasoning_content or delta.reasoning or "")
        yield from self.say(0, delta.content or "")
        self.refusal += delta.refusal or ""
        for piece in delta.tool_calls or ():
            yield from self._call(piece, piece.function or ChatFunction())

    def _call(self, piece: ChatCall, function: ChatFunction) -> Generator[ModelChunk]:
        block = self._continued(piece, function)
        if block is None:
            block = yield from self.opened("tool_use", len(self._calls))
            block.call_id = piece.id or ""
            self._calls.append((piece.index, block))
        if function.name and function.name != block.name:
            block.name += function.name
        self.grow(block, argument_text(function.arguments))

    def _continued(self, piece: ChatCall, function: ChatFunction) -> OpenBlock | None:
        """The call that this piece goes on with, None if it begins another."""
        for index, block in reversed(self._calls):
            if index == piece.index:
                other_id = piece.id and block.call_id and piece.id != block.call_id
                unnumbered = piece.index is None and not piece.id
                begins = function.name and (other_id or unnumbered)
                return None if begins else block
        return None

    def _end(self, reason: str | None) -> None:
        if reason:
            self.complete = True
            if reason == "length":
                self.stop_reason = "max_tokens"
            elif reason == "content_filter":
                self.stop_reason = "refusal"
