"""`/v1/files`: what clients upload, and what sessions leave for them.

An upload goes from the socket to the blob store piece by piece; the record is written when the bytes are safe. Uploads
cannot be downloaded again, as the contract has it; what belongs to a session can. Asking for a session's files looks at
its outputs first (`outputs.py`), so that a file is listed as soon as it is written.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from datetime import datetime, timedelta
from typing import Annotated
from urllib.parse import quote

import msgspec
from starlette.types import Receive, Scope, Send

from corral.api import file_records, outputs, pages
from corral.api.call import Call
from corral.api.file_records import KIND, PAGE_RECORDS
from corral.api.multipart import FRAMING_BYTES_MAX, Upload
from corral.api.pages import Cursor
from corral.domain import file as rules
from corral.domain.file import File, FileMetadata
from corral.domain.ids import new_id
from corral.domain.query import Record, RecordsQuery
from corral.errors import Invalid, NotFound

IDS_MAX = 100
LIMIT = 20
PAGE_PREFIX = "page_"


class ListQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A page of files, newest first. Older clients page with `after_id` and `before_id`."""

    after_id: str | None = None
    before_id: str | None = None
    ids: tuple[str, ...] = ()
    limit: Annotated[int, msgspec.Meta(ge=1, le=1_000)] | None = None
    page: str | None = None
    scope_id: str | None = None


class FileUpload(msgspec.Struct, frozen=True, kw_only=True):
    """Body of `POST /v1/files`, as multipart/form-data."""

    file: Annotated[str, msgspec.Meta(extra_json_schema={"format": "binary"})]
    expires_in_seconds: int | None = None


class FilesPage(msgspec.Struct, frozen=True, kw_only=True):
    """A page of files, in the form of newer clients and of older ones."""

    data: tuple[FileMetadata, ...]
    next_page: str | None
    has_more: bool
    first_id: str | None
    last_id: str | None


class FileDeleted(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="file_deleted"):
    """The file is gone."""

    id: str


async def upload(call: Call) -> FileMetadata:
    """`POST /v1/files`."""
    try:
        return rules.view(await _store(call))
    except Invalid:
        await call.drain()
        raise


async def _store(call: Call) -> File:
    limit = call.services.settings.file_bytes_max
    content_type = call.headers.get("content-type", "")
    sent = Upload(content_type, fields=frozenset({"expires_in_seconds"}), file_bytes_max=limit)
    async with (
        aclosing(call.stream(limit + FRAMING_BYTES_MAX)) as body,
        aclosing(sent.chunks(body)) as chunks,
        call.services.blobs.put(chunks) as blob,
    ):
        now = call.services.clock.now()
        mime_type = rules.mime_type_of(sent.content_type, sent.filename)
        file = File(
            id=new_id("file"),
            filename=rules.checked_filename(sent.filename, mime_type),
            mime_type=mime_type,
            size_bytes=blob.size_bytes,
            sha256=blob.sha256,
            created_at=now,
            expires_at=_expiry(sent.fields.get("expires_in_seconds"), now),
        )
        await file_records.put(call.services, call.workspace_id, file)
    return file


def _expiry(given: str | None, now: datetime) -> datetime | None:
    if given is None:
        return None
    if not re.fullmatch(r"[0-9]{1,9}", given):
        raise Invalid("expires_in_seconds: must be a whole number")
    return now + timedelta(seconds=rules.check_expiry(int(given)))


async def retrieve(call: Call) -> FileMetadata:
    """`GET /v1/files/{file_id}`."""
    return rules.view(await file_records.find(call.services, call.workspace_id, call.path["file_id"]))


async def delete(call: Call) -> FileDeleted:
    """`DELETE /v1/files/{file_id}`. Sessions keep the copies that they were given."""
    file = await file_records.find(call.services, call.workspace_id, call.path["file_id"])
    if file.output_path is None:
        await file_records.remove(call.services, call.workspace_id, file)
    else:
        await file_records.hide(call.services, call.workspace_id, file)
    return FileDeleted(id=file.id)


async def content(call: Call) -> Content:
    """`GET /v1/files/{file_id}/content`."""
    file = await file_records.find_usable(call.services, call.workspace_id, call.path["file_id"])
    if not file.downloadable:
        raise Invalid(
            f"File {file.id} is not downloadable: only what belongs to a session is.",
            error_code="file_not_downloadable",
        )
    chunks = call.services.blobs.open(file.sha256)
    return Content(file, chunks, await anext(chunks, b""))  # what cannot be read is refused before an answer begins


class Content:
    """A file as a response, sent as fast as the client takes it."""

    def __init__(self, file: File, chunks: AsyncGenerator[bytes], first: bytes) -> None:
        self._file, self._chunks, self._first = file, chunks, first

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        name = quote(self._file.filename, safe="")
        headers = [
            (b"content-type", self._file.mime_type.encode()),
            (b"content-length", str(self._file.size_bytes).encode()),
            (b"content-disposition", f"attachment; filename*=UTF-8''{name}".encode()),
            (b"x-content-type-options", b"nosniff"),
        ]
        async with aclosing(self._chunks) as chunks:
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": self._first, "more_body": True})
            async for chunk in chunks:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b""})


async def list_(call: Call) -> FilesPage:
    """`GET /v1/files`."""
    query = call.query(ListQuery)
    if query.ids:
        return await _named(call, query)
    limit = query.limit or LIMIT
    binding = pages.binding_of(msgspec.structs.replace(query, after_id=None, before_id=None))
    if sum(each is not None for each in (query.page, query.after_id, query.before_id)) > 1:
        raise Invalid("page: give only one of page, after_id and before_id")
    asked = RecordsQuery(
        kind=KIND,
        workspace_id=call.workspace_id,
        limit=limit + 1,
        parent_id=query.scope_id,
        include_archived=False,
        beyond=pages.beyond(pages.decode(_cursor(query.page), KIND, binding)),
    )
    if query.scope_id is not None:
        await outputs.collect(call.services, call.workspace_id, query.scope_id)
    if query.before_id is not None:
        return await _before(call, asked, query.before_id, limit, binding)
    if query.after_id is not None:
        last = await file_records.find(call.services, call.workspace_id, query.after_id)
        asked = msgspec.structs.replace(asked, beyond=(last.created_at, last.id))
    found = await call.services.records.page(asked)
    return _page(found[:limit], binding, has_more=len(found) > limit)


async def _named(call: Call, query: ListQuery) -> FilesPage:
    """The files with these ids, as far as there are such."""
    if query.limit is not None or any((query.page, query.after_id, query.before_id)):
        raise Invalid("ids: cannot be combined with page or limit")
    ids = dict.fromkeys(query.ids)
    if len(ids) > IDS_MAX:
        raise Invalid(f"ids: at most {IDS_MAX} are allowed")
    found: list[File] = []
    for file_id in ids:
        with suppress(NotFound):
            found.append(await file_records.find(call.services, call.workspace_id, file_id))
    wanted = [file for file in found if query.scope_id in (None, file.session_id)]
    wanted.sort(key=lambda file: (file.created_at, file.id), reverse=True)
    return _answer(tuple(map(rules.view, wanted)), None, has_more=False)


async def _before(call: Call, asked: RecordsQuery, before_id: str, limit: int, binding: str) -> FilesPage:
    """The `limit` files that stand right before one in the list; found by walking there from the start."""
    until = await file_records.find(call.services, call.workspace_id, before_id)
    asked = msgspec.structs.replace(asked, limit=PAGE_RECORDS)
    near: deque[Record] = deque(maxlen=limit + 1)
    while True:
        page = await call.services.records.page(asked)
        ahead = [record for record in page if (record.created_at, record.id) > (until.created_at, until.id)]
        near.extend(ahead)
        if len(ahead) < PAGE_RECORDS:
            break
        asked = msgspec.structs.replace(asked, beyond=(page[-1].created_at, page[-1].id))
    return _page(list(near)[-limit:], binding, has_more=len(near) > limit, forward=False)


def _page(found: Sequence[Record], binding: str, *, has_more: bool, forward: bool = True) -> FilesPage:
    data = tuple(rules.view(file_records.file_of(record)) for record in found)
    next_page = None
    if has_more and forward:
        last = found[-1]
        next_page = PAGE_PREFIX + pages.encode(Cursor(kind=KIND, binding=binding, at=last.created_at, id=last.id))
    return _answer(data, next_page, has_more=has_more)


def _answer(data: tuple[FileMetadata, ...], next_page: str | None, *, has_more: bool) -> FilesPage:
    first_id, last_id = (data[0].id, data[-1].id) if data else (None, None)
    return FilesPage(data=data, next_page=next_page, has_more=has_more, first_id=first_id, last_id=last_id)


def _cursor(page: str | None) -> str | None:
    if not page:
        return None
    if not page.startswith(PAGE_PREFIX):
        raise Invalid("page: not a cursor of this list")
    return page.removeprefix(PAGE_PREFIX)
