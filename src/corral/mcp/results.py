"""What an MCP tool returned, in the blocks that models take."""

from __future__ import annotations

import base64
import binascii
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
from corral.domain.file import DOCUMENT_BYTES_MAX, IMAGE_BYTES_MAX
from corral.domain.media import IMAGES, PDF, media_type_of


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
    if mime_type not in (*IMAGES, PDF):
        return TextBlock(text=f"[{what} of type {mime_type}, which models cannot read.]")
    try:
        raw = base64.b64decode("".join(data.split()), validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    found = media_type_of(raw)
    if found is None or (found == PDF) != (mime_type == PDF):
        return TextBlock(text=f"[{what} that is said to be of type {mime_type}, and is not.]")
    if len(raw) > (DOCUMENT_BYTES_MAX if found == PDF else IMAGE_BYTES_MAX):
        return TextBlock(text=f"[{what} of {len(raw):,} bytes, which is more than models take.]")
    source = Base64Source(media_type=found, data=base64.b64encode(raw).decode("ascii"))
    return DocumentBlock(source=source) if found == PDF else ImageBlock(source=source)
