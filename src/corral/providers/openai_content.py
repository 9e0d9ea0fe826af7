"""What a message to an OpenAI-style server may hold, the same for both of its wires.

`openai_chat.py` and `openai_responses.py` write these parts down in their own words. Thinking is left out: it belongs
to the model that thought it. What no wire has a place for becomes a sentence, so that the model knows it is missing.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from typing import NamedTuple, TypeAlias

from corral.config_sections import SystemRole
from corral.domain.content import (
    Base64Source,
    DocumentBlock,
    FileSource,
    ImageBlock,
    PlainTextSource,
    PromptBlock,
    SearchResultBlock,
    TextBlock,
    ToolResultBlock,
    UrlSource,
)
from corral.domain.inference import PromptMessage

ERROR_PREFIX = "Error: "
"""These wires have no flag for a tool that failed."""
NO_OUTPUT = "(no output)"
INSTRUCTION = "<system>\n{text}\n</system>"
PDF = "application/pdf"


class TextPart(NamedTuple):
    """Words."""

    text: str


class ImagePart(NamedTuple):
    """A picture, at an address or in a `data:` URL."""

    url: str


class FilePart(NamedTuple):
    """A document: a `data:` URL, or an address to fetch it from."""

    name: str
    url: str


Part: TypeAlias = TextPart | ImagePart | FilePart


def in_roles(messages: Sequence[PromptMessage], later_system: SystemRole) -> Sequence[PromptMessage]:
    """Where templates take no system message in mid-conversation, it becomes part of the user's, marked as what it is.

    Neighbours become one message, since the same templates want user and assistant to take turns."""
    if later_system != "user":
        return messages
    turned: list[PromptMessage] = []
    for message in messages:
        said = message
        if message.role == "system":
            text = TextBlock(text=INSTRUCTION.format(text=text_of(message.content)))
            said = PromptMessage(role="user", content=(text,))
        if turned and turned[-1].role == said.role == "user":
            said = PromptMessage(role="user", content=(*turned.pop().content, *said.content))
        turned.append(said)
    return turned


def parts_of(blocks: Iterable[PromptBlock]) -> Generator[Part]:
    """The parts of a message or a result, in order. Tool calls and tool results have places of their own."""
    for block in blocks:
        match block:
            case TextBlock(text=text) if text.strip():
                yield TextPart(text)
            case ImageBlock(source=source):
                url = _url(source)
                yield TextPart("[An image that is not available.]") if url is None else ImagePart(url)
            case DocumentBlock():
                yield from _document(block)
            case SearchResultBlock(title=title, source=source, content=content):
                yield TextPart("\n".join([title, source, *(passage.text for passage in content)]))
            case _:
                pass


def text_of(blocks: Iterable[PromptBlock]) -> str:
    """The words alone."""
    return joined(parts_of(blocks))


def joined(parts: Iterable[Part]) -> str:
    """The words of the parts, a blank line between two of them."""
    return "\n\n".join(part.text for part in parts if isinstance(part, TextPart))


def result_text(result: ToolResultBlock) -> str:
    """What a tool result says, and that it is an error if it is one."""
    return f"{ERROR_PREFIX if result.is_error else ''}{text_of(result.content) or NO_OUTPUT}"


def _document(block: DocumentBlock) -> Generator[Part]:
    title = block.title or "document.pdf"
    match block.source:
        case PlainTextSource(data=data):
            yield TextPart("\n".join(filter(None, [block.title, block.context, data])))
        case Base64Source(media_type=kind) if kind != PDF:
            yield TextPart(f"[A document of type {kind}, which cannot be shown.]")
        case source:
            url = _url(source)
            if block.context:
                yield TextPart(block.context)
            yield TextPart("[A document that is not available.]") if url is None else FilePart(title, url)


def _url(source: Base64Source | UrlSource | FileSource | PlainTextSource) -> str | None:
    match source:
        case Base64Source(media_type=kind, data=data):
            return f"data:{kind};base64,{data}"
        case UrlSource(url=url):
            return url
        case _:
            return None
