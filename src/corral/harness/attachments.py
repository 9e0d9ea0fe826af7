"""Files that messages refer to, put in their place before a model sees the conversation.

The log keeps references; the model gets the bytes, as base64 or as text. The same file gives the same bytes in every
request, so prompt caches hold. A file that is no longer there, or that would make the request larger than a model
accepts, becomes a sentence that says so. What may be referred to is checked where it enters, in `api/file_sources.py`.
"""

from __future__ import annotations

import base64
from collections import OrderedDict
from collections.abc import Iterable
from typing import TypeAlias

import msgspec

from corral.domain.content import (
    Base64Source,
    DocumentBlock,
    FileSource,
    ImageBlock,
    PlainTextSource,
    PromptBlock,
    ResultBlock,
    TextBlock,
    ToolResultBlock,
)
from corral.domain.file import DOCUMENT_BYTES_MAX, FILE_KIND, PDF_MIME_TYPE, File
from corral.domain.inference import PromptMessage
from corral.errors import NotFound
from corral.interfaces.blobs import Blobs
from corral.interfaces.clock import Clock
from corral.interfaces.records import Records

Attached: TypeAlias = ImageBlock | DocumentBlock
Source: TypeAlias = Base64Source | PlainTextSource


class Attachments:
    """Reads files for model requests, and keeps a bounded number of bytes of them at hand."""

    def __init__(self, records: Records, blobs: Blobs, clock: Clock, *, cached_bytes_max: int) -> None:
        self._records, self._blobs, self._clock = records, blobs, clock
        self._cached_bytes_max = cached_bytes_max
        self._cached: OrderedDict[tuple[str, str], Source] = OrderedDict()
        """By hash and media type; the one used least lately first."""
        self._cached_bytes = 0

    async def resolved(self, workspace_id: str, messages: Iterable[PromptMessage]) -> tuple[PromptMessage, ...]:
        """The messages with all references resolved; those without any are passed on as they are."""
        request = _Request(self, workspace_id)
        return tuple([await request.message(message) for message in messages])

    async def file(self, workspace_id: str, file_id: str) -> File | None:
        """The file, while it may be used."""
        try:
            record = await self._records.get(FILE_KIND, file_id, workspace_id)
        except NotFound:
            return None
        file = msgspec.json.decode(record.body, type=File)
        gone = record.archived_at is not None or file.has_expired(self._clock.now())
        return None if gone else file

    async def source(self, file: File) -> Source | None:
        """The file's content in the form that models take, or None when its bytes are gone."""
        key = (file.sha256, file.mime_type)
        source = self._cached.get(key)
        if source is not None:
            self._cached.move_to_end(key)
            return source
        try:
            data = b"".join([chunk async for chunk in self._blobs.open(file.sha256)])
        except NotFound:
            return None
        if file.mime_type == PDF_MIME_TYPE or file.mime_type.startswith("image/"):
            source = Base64Source(media_type=file.mime_type, data=base64.b64encode(data).decode())
        else:
            source = PlainTextSource(data=data.decode("utf-8", "replace"))
        self._keep(key, source)
        return source

    def _keep(self, key: tuple[str, str], source: Source) -> None:
        if key in self._cached:
            return  # two requests read the same file at once
        self._cached[key] = source
        self._cached_bytes += len(source.data)
        while self._cached_bytes > self._cached_bytes_max:
            _, dropped = self._cached.popitem(last=False)
            self._cached_bytes -= len(dropped.data)


class _Request:
    """One request's references, resolved in order until it is full."""

    def __init__(self, attachments: Attachments, workspace_id: str) -> None:
        self._attachments, self._workspace_id = attachments, workspace_id
        self._bytes_left = DOCUMENT_BYTES_MAX

    async def message(self, message: PromptMessage) -> PromptMessage:
        """The message, resolved."""
        if not any(map(_refers, message.content)):
            return message
        return PromptMessage(role=message.role, content=tuple([await self._prompt(block) for block in message.content]))

    async def _prompt(self, block: PromptBlock) -> PromptBlock:
        if not isinstance(block, ToolResultBlock):
            return await self._attached(block) if isinstance(block, ImageBlock | DocumentBlock) else block
        return msgspec.structs.replace(block, content=tuple([await self._result(inner) for inner in block.content]))

    async def _result(self, block: ResultBlock) -> ResultBlock:
        return await self._attached(block) if isinstance(block, ImageBlock | DocumentBlock) else block

    async def _attached(self, block: Attached) -> Attached | TextBlock:
        if not isinstance(block.source, FileSource):
            return block
        file_id = block.source.file_id
        file = await self._attachments.file(self._workspace_id, file_id)
        if file is not None and file.size_bytes > self._bytes_left:
            return TextBlock(
                text=f"[The file {file_id} ({file.filename}) is left out: the conversation holds too much.]"
            )
        source = None if file is None else await self._attachments.source(file)
        if file is None or source is None:
            return TextBlock(text=f"[The file {file_id} is no longer available.]")
        self._bytes_left -= file.size_bytes
        if isinstance(block, DocumentBlock):
            return msgspec.structs.replace(block, source=source)
        if isinstance(source, Base64Source):
            return ImageBlock(source=source)
        return TextBlock(text=f"[The file {file_id} is not an image.]")


def _refers(block: PromptBlock) -> bool:
    if isinstance(block, ToolResultBlock):
        return any(map(_refers, block.content))
    return isinstance(block, ImageBlock | DocumentBlock) and isinstance(block.source, FileSource)
