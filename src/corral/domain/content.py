"""Content blocks: the language of messages and tool results, inside and on the wire.

They are the Messages API's blocks, so caching, thinking and tool blocks survive whole; a provider that speaks
another dialect translates at its own edge (`providers/`). This file holds data only: which block may stand where
is a type alias below, and limits on them are checked where they enter (`api/`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

import msgspec

JsonObject: TypeAlias = Mapping[str, object]
"""Arbitrary JSON that we pass through without looking inside: tool inputs, JSON schemas."""


class Block(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type"):
    """Base of all blocks and sources; `type` is the tag."""


class Base64Source(Block, frozen=True, kw_only=True, tag="base64"):
    """Bytes inline."""

    media_type: str
    data: str


class UrlSource(Block, frozen=True, kw_only=True, tag="url"):
    """A URL that the model's provider fetches; Corral does not."""

    url: str


class FileSource(Block, frozen=True, kw_only=True, tag="file"):
    """A file uploaded through the Files API."""

    file_id: str


class PlainTextSource(Block, frozen=True, kw_only=True, tag="text"):
    """A document given as text."""

    data: str
    media_type: Literal["text/plain"] = "text/plain"


class TextBlock(Block, frozen=True, kw_only=True, tag="text"):
    """Plain text."""

    text: str


class ImageBlock(Block, frozen=True, kw_only=True, tag="image"):
    """A picture."""

    source: Base64Source | UrlSource | FileSource


class DocumentBlock(Block, frozen=True, kw_only=True, tag="document"):
    """A PDF or text document."""

    source: Base64Source | PlainTextSource | UrlSource | FileSource
    context: str | None = None
    title: str | None = None


class SearchResultText(Block, frozen=True, kw_only=True, tag="text"):
    """A passage of a search result."""

    text: str


class SearchResultCitations(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whether the model should cite this result."""

    enabled: bool


class SearchResultBlock(Block, frozen=True, kw_only=True, tag="search_result"):
    """One result of a search that a client ran."""

    source: str
    title: str
    content: tuple[SearchResultText, ...]
    citations: SearchResultCitations


class RedactedBlock(Block, frozen=True, kw_only=True, tag="redacted"):
    """Content withheld by the server. Never accepted from a client."""


SEALED_BY_RESPONSES = "responses:"
"""Begins a signature that holds reasoning as a Responses server sealed it. Only such a server can open it."""


class ThinkingBlock(Block, frozen=True, kw_only=True, tag="thinking"):
    """A model's reasoning. Kept beside the log for replay, never shown on the wire."""

    thinking: str
    signature: str = ""


class RedactedThinkingBlock(Block, frozen=True, kw_only=True, tag="redacted_thinking"):
    """Encrypted reasoning, replayed verbatim."""

    data: str


class ToolUseBlock(Block, frozen=True, kw_only=True, tag="tool_use"):
    """The model calls a tool. In our messages `id` is the id of the `*.tool_use` event."""

    id: str
    name: str
    input: JsonObject


MessageBlock: TypeAlias = TextBlock | ImageBlock | DocumentBlock | RedactedBlock
"""What a user or agent message is made of."""

ResultBlock: TypeAlias = TextBlock | ImageBlock | DocumentBlock | SearchResultBlock
"""What a tool result is made of."""


class ToolResultBlock(Block, frozen=True, kw_only=True, tag="tool_result"):
    """The answer to a tool call, as the model sees it."""

    tool_use_id: str
    content: tuple[ResultBlock, ...]
    is_error: bool = False


AssistantBlock: TypeAlias = TextBlock | ThinkingBlock | RedactedThinkingBlock | ToolUseBlock
"""What a model answers."""

PromptBlock: TypeAlias = (
    TextBlock
    | ImageBlock
    | DocumentBlock
    | SearchResultBlock
    | ToolResultBlock
    | ThinkingBlock
    | RedactedThinkingBlock
    | ToolUseBlock
)
"""What a message to a model may hold."""
