"""The answer of a Responses server, put together from the events of its stream.

Made to survive servers that are only nearly right: items are told apart by their place, else by their id; what came in
no pieces is taken from the finished item, and from the finished response when there were no items. Unknown events and
items are skipped.
"""

from __future__ import annotations

from collections.abc import Generator, Hashable

import msgspec

from corral.domain.content import SEALED_BY_RESPONSES
from corral.domain.inference import ModelChunk
from corral.providers.openai_answer import Answer, OpenBlock, ServerFault, argument_text


class WirePart(msgspec.Struct, frozen=True):
    """A part of a message."""

    type: str = ""
    text: str | None = None
    refusal: str | None = None


class WireItem(msgspec.Struct, frozen=True):
    """A message, a call of a function, or reasoning."""

    type: str = ""
    id: str | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: object = None
    content: tuple[WirePart, ...] | None = None
    summary: tuple[WirePart, ...] | None = None
    encrypted_content: str | None = None


class WireCached(msgspec.Struct, frozen=True):
    """How many tokens of the prompt came from the server's cache."""

    cached_tokens: int | None = None


class WireUsage(msgspec.Struct, frozen=True):
    """Tokens of the whole response."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    input_tokens_details: WireCached | None = None


class WireIncomplete(msgspec.Struct, frozen=True):
    """Why the response is not whole."""

    reason: str | None = None


class WireResponse(msgspec.Struct, frozen=True):
    """The response as it ends."""

    error: object = None
    incomplete_details: WireIncomplete | None = None
    usage: WireUsage | None = None
    output: tuple[WireItem, ...] | None = None


class WireEvent(msgspec.Struct, frozen=True):
    """An event that matters to us."""

    output_index: int | None = None
    item_id: str | None = None
    content_index: int = 0
    item: WireItem | None = None
    delta: str | None = None
    arguments: object = None
    response: WireResponse | None = None


class _EventType(msgspec.Struct, frozen=True):
    type: str = ""


class ResponsesAnswer(Answer):
    """One answer, growing event by event."""

    def read(self, event: object) -> Generator[ModelChunk]:
        """Take in one event; see `Answer.read`."""
        kind = msgspec.convert(event, _EventType).type
        match kind:
            case "response.output_item.added":
                wire = _event(event)
                yield from self._item(_key(wire), wire.item or WireItem())
            case "response.output_item.done":
                wire = _event(event)
                yield from self._settle(_key(wire), wire.item or WireItem())
            case "response.completed" | "response.incomplete":
                yield from self._end(_event(event).response or WireResponse())
            case "response.failed":
                response = _event(event).response or WireResponse()
                raise ServerFault(response.error)
            case "error":
                raise ServerFault(event)
            case _ if kind.endswith((".delta", ".done")):
                yield from self._piece(kind, event)
            case _:
                pass

    def _piece(self, kind: str, event: object) -> Generator[ModelChunk]:
        match kind:
            case "response.output_text.delta":
                wire = _event(event)
                yield from self.say((_key(wire), wire.content_index), wire.delta or "")
            case "response.refusal.delta":
                self.refusal += _event(event).delta or ""
            case "response.reasoning_text.delta" | "response.reasoning_summary_text.delta":
                wire = _event(event)
                yield from self.think(_key(wire), wire.delta or "")
            case "response.function_call_arguments.delta":
                wire = _event(event)
                self.grow((yield from self.opened("tool_use", _key(wire))), wire.delta or "")
            case "response.function_call_arguments.done":
                wire = _event(event)
                self._complete((yield from self.opened("tool_use", _key(wire))), wire.arguments)
            case _:
                pass

    def _item(self, key: Hashable, item: WireItem) -> Generator[ModelChunk]:
        """An item begins; messages open with their first text."""
        if item.type == "function_call":
            block = yield from self.opened("tool_use", key)
            block.call_id = block.call_id or item.call_id or item.id or ""
            block.name = block.name or item.name or ""
        elif item.type == "reasoning":
            yield from self.opened("thinking", key)

    def _settle(self, key: Hashable, item: WireItem) -> Generator[ModelChunk]:
        """An item is finished: whatever did not come in pieces is in it."""
        yield from self._item(key, item)
        if item.type == "function_call":
            self._complete((yield from self.opened("tool_use", key)), item.arguments)
        elif item.type == "reasoning":
            self._reasoned((yield from self.opened("thinking", key)), item)
        elif item.type == "message":
            for position, part in enumerate(item.content or ()):
                self.refusal = self.refusal or part.refusal or ""
                if self.block("text", (key, position)) is None:
                    yield from self.say((key, position), part.text or "")

    def _reasoned(self, block: OpenBlock, item: WireItem) -> None:
        if not any(block.pieces):
            self.grow(
                block, "\n\n".join(part.text for part in (*(item.summary or ()), *(item.content or ())) if part.text)
            )
        if item.encrypted_content:
            block.sealed = SEALED_BY_RESPONSES + item.encrypted_content

    def _complete(self, block: OpenBlock, arguments: object) -> None:
        if not any(block.pieces):
            self.grow(block, argument_text(arguments))

    def _end(self, response: WireResponse) -> Generator[ModelChunk]:
        if self.complete:
            return
        if self.empty:
            for place, item in enumerate(response.output or ()):
                yield from self._settle(place, item)
        usage = response.usage or WireUsage()
        details = usage.input_tokens_details or WireCached()
        self.count(usage.input_tokens, details.cached_tokens, usage.output_tokens)
        if response.incomplete_details is not None:
            filtered = response.incomplete_details.reason == "content_filter"
            self.stop_reason = "refusal" if filtered else "max_tokens"
        self.complete = True


def _event(event: object) -> WireEvent:
    return msgspec.convert(event, WireEvent)


def _key(event: WireEvent) -> Hashable:
    """Which item an event is about: by its place, else by its id, which some servers give as the id of the call."""
    if event.output_index is not None:
        return event.output_index
    item = event.item or WireItem()
    return event.item_id or item.id or item.call_id
