"""What an MCP tool returned, in the blocks that models take."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable

from mcp_types import (
    AudioContent,
    BlobResourceContents,
    CallToolResult,
    ContentBlock,
    EmbeddedResource,
    ImageContent,
    ResourceLink,
    TextContent,
    TextResourceContents,
)

from corral.domain.content import Base64Source, DocumentBlock, ImageBlock, ResultBlock, TextBlock

IMAGE_TYPES = ("image/png", "image/jpeg", "image/gif", "image/webp")
PDF = "application/pdf"


def blocks(result: CallToolResult, hidden: Callable[[str], str]) -> tuple[ResultBlock, ...]:
    """The result's content; its structured content as JSON when there is no other. `hidden` takes secrets out."""
    content = tuple(_block(block) for block in result.content)
    if not content and result.structured_content is not None:
        content = (TextBlock(text=json.dumps(result.structured_content, ensure_ascii=False)),)
    return tuple(TextBlock(text=hidden(each.text)) if isinstance(each, TextBlock) else each for each in content)


def text_of(content: Iterable[ResultBlock]) -> str:
    """All texts together."""
    return "\n".join(block.text for block in content if isinstance(block, TextBlock))


def _block(block: ContentBlock) -> ResultBlock:
    match block:
        case TextContent():
            return TextBlock(text=block.text)
        case ImageContent():
            return _media(block.data, block.mime_type, "An image")
        case AudioContent():
            return TextBlock(text=f"[Audio of type {block.mime_type}, which models cannot hear.]")
        case ResourceLink():
            about = f": {block.description}" if block.description else ""
            return TextBlock(text=f"[Resource {block.name} at {block.uri}{about}]")
        case EmbeddedResource(resource=TextResourceContents(uri=uri, text=text)):
            return TextBlock(text=f"[Resource {uri}]\n{text}")
        case EmbeddedResource(resource=BlobResourceContents(uri=uri, blob=data, mime_type=mime_type)):
            return _media(data, mime_type or "application/octet-stream", f"Resource {uri}")
        case _:
            return TextBlock(text="[Content of a kind that is not known here.]")


def _media(data: str, mime_type: str, what: str) -> ResultBlock:
    source = Base64Source(media_type=mime_type, data=data)
    if mime_type in IMAGE_TYPES:
        return ImageBlock(source=source)
    if mime_type == PDF:
        return DocumentBlock(source=source)
    return TextBlock(text=f"[{what} of type {mime_type}, which models cannot read.]")
