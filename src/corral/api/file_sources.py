"""Files that events refer to: whether they are there, and whether a model can take them as what they are sent for.

Checked once, when the event comes in; the bytes are read when a model is asked (`harness/attachments.py`), and a file
that is deleted in between is that session's loss alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from corral.api import file_records
from corral.api.dependencies import Services
from corral.domain import event as ev
from corral.domain.content import DocumentBlock, FileSource, ImageBlock
from corral.domain.file import (
    DOCUMENT_BYTES_MAX,
    IMAGE_BYTES_MAX,
    IMAGE_MIME_TYPES,
    PDF_MIME_TYPE,
    File,
)
from corral.errors import Invalid, NotFound

INITIAL_DOCUMENTS_MAX = 100


class Reference(NamedTuple):
    """A block that refers to a file, and where it stands in the request."""

    path: str
    file_id: str
    is_image: bool


async def check(services: Services, workspace_id: str, events: Sequence[ev.ClientEvent], path: str) -> None:
    """Raises `Invalid` with the path of the first reference that cannot be followed."""
    found: dict[str, File] = {}
    for reference in _references(events, path):
        if reference.file_id not in found:
            found[reference.file_id] = await _file(services, workspace_id, reference)
        _check_kind(found[reference.file_id], reference)


def check_initial(events: Sequence[ev.ClientEvent]) -> None:
    """The limit on documents that a session starts with. Raises `Invalid`."""
    documents = sum(not reference.is_image for reference in _references(events, "initial_events"))
    if documents > INITIAL_DOCUMENTS_MAX:
        raise Invalid(
            f"initial_events: at most {INITIAL_DOCUMENTS_MAX} document blocks may refer to files, got {documents}"
        )


def _references(events: Sequence[ev.ClientEvent], path: str) -> Iterator[Reference]:
    for number, event in enumerate(events):
        if not isinstance(event, ev.UserMessage | ev.UserCustomToolResult):
            continue
        for index, block in enumerate(event.content):
            if isinstance(block, ImageBlock | DocumentBlock) and isinstance(block.source, FileSource):
                where = f"{path}.{number}.content.{index}.source.file_id"
                yield Reference(where, block.source.file_id, isinstance(block, ImageBlock))


async def _file(services: Services, workspace_id: str, reference: Reference) -> File:
    try:
        return await file_records.find_usable(services, workspace_id, reference.file_id)
    except NotFound as error:
        raise Invalid(f"{reference.path}: {error.message}", error_code=error.error_code) from error


def _check_kind(file: File, reference: Reference) -> None:
    if reference.is_image:
        fits, wanted, limit = file.mime_type in IMAGE_MIME_TYPES, ", ".join(IMAGE_MIME_TYPES), IMAGE_BYTES_MAX
    else:
        fits = file.mime_type == PDF_MIME_TYPE or file.mime_type.startswith("text/")
        wanted, limit = f"{PDF_MIME_TYPE} or text", DOCUMENT_BYTES_MAX
    if not fits:
        raise Invalid(f"{reference.path}: file {file.id} is {file.mime_type}; it must be {wanted}")
    if not 1 <= file.size_bytes <= limit:
        raise Invalid(f"{reference.path}: file {file.id} has {file.size_bytes} bytes; it must have 1 to {limit}")
