"""`/v1/sessions/{id}/resources`: files that a session finds among its uploads.

A resource stands in the session's record, so it changes by a decision of the log like everything else of a session; the
copy of the file is made before and removed after. The harness sees the record and has the sandbox follow it before the
next tool call.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from typing import Annotated, assert_never

import anyio
import msgspec

from corral.api import file_records, pages
from corral.api.call import Call
from corral.api.pages import Cursor, Page
from corral.domain.file import FILES_PER_SESSION_MAX, mount_path
from corral.domain.ids import new_id
from corral.domain.resource import (
    FileResource,
    FileResourceParams,
    MemoryStoreParams,
    MountedFile,
    RepositoryParams,
    ResourceParams,
    check_mounts,
)
from corral.domain.session import Session, SessionState
from corral.errors import CorralError, Invalid, NotFound, OutcomeUnknown
from corral.interfaces.event_log import Decision

KIND = "resources"


class ListQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A page of resources, in the order in which they were added; all of them without `limit`."""

    limit: Annotated[int, msgspec.Meta(ge=1, le=1_000)] = 1_000
    page: str | None = None


class ResourceUpdate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of `POST /v1/sessions/{session_id}/resources/{resource_id}`."""

    authorization_token: str


class ResourceDeleted(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="session_resource_deleted"):
    """The resource is gone."""

    id: str


async def add(call: Call) -> FileResource:
    """`POST /v1/sessions/{session_id}/resources`. The file is there at the session's next tool call."""
    body = await call.body(FileResourceParams)
    session_id = call.path["session_id"]
    await call.services.log.snapshot(session_id, call.workspace_id)
    (mounted,) = await copies(call, session_id, (body,), path=None)

    def decide(session: Session, state: SessionState, now: datetime) -> Decision:
        _check_open(session, state)
        check_mounts((*session.resources, mounted))
        return Decision((), session=_with(session, (*session.resources, mounted), now))

    try:
        await call.services.log.transact(session_id, decide, workspace_id=call.workspace_id)
    except OutcomeUnknown:
        raise  # the session may have the copy
    except CorralError:  # anything else leaves open whether the session has the copy
        await discard(call, (mounted,))
        raise
    return mounted.resource


async def retrieve(call: Call) -> FileResource:
    """`GET /v1/sessions/{session_id}/resources/{resource_id}`."""
    session = (await call.services.log.snapshot(call.path["session_id"], call.workspace_id)).session
    return _find(session, call.path["resource_id"]).resource


async def update(call: Call) -> FileResource:
    """`POST /v1/sessions/{session_id}/resources/{resource_id}`. Only what has a token can be updated: no file."""
    await call.body(ResourceUpdate)
    resource = await retrieve(call)
    raise Invalid(f"authorization_token: resource {resource.id} is a file and has no token")


async def delete(call: Call) -> ResourceDeleted:
    """`DELETE /v1/sessions/{session_id}/resources/{resource_id}`. The session's copy goes with it."""
    resource_id = call.path["resource_id"]
    removed: list[MountedFile] = []

    def decide(session: Session, state: SessionState, now: datetime) -> Decision:
        _check_open(session, state)
        removed[:] = [_find(session, resource_id)]
        left = tuple(each for each in session.resources if each.resource.id != resource_id)
        return Decision((), session=_with(session, left, now))

    await call.services.log.transact(call.path["session_id"], decide, workspace_id=call.workspace_id)
    await discard(call, removed)
    return ResourceDeleted(id=resource_id)


async def list_(call: Call) -> Page[FileResource]:
    """`GET /v1/sessions/{session_id}/resources`."""
    query = call.query(ListQuery)
    session = (await call.services.log.snapshot(call.path["session_id"], call.workspace_id)).session
    cursor = pages.decode(query.page, KIND, session.id)
    found = [each.resource for each in session.resources]
    start = 0 if cursor is None else _behind(found, cursor)
    shown = tuple(found[start : start + query.limit])
    next_page = None
    if start + query.limit < len(found):
        next_page = pages.encode(Cursor(kind=KIND, binding=session.id, id=shown[-1].id, seq=start + query.limit))
    return Page(data=shown, next_page=next_page)


def _behind(found: Sequence[FileResource], cursor: Cursor) -> int:
    """Where to go on; if the last one shown was removed, what followed it has moved up."""
    ids = [each.id for each in found]
    return ids.index(cursor.id) + 1 if cursor.id in ids else max(0, cursor.seq - 1)


# ------------------------------------------------------------------------------------------------------- copies


async def copies(
    call: Call, session_id: str, params: Sequence[ResourceParams], *, path: str | None = "resources"
) -> tuple[MountedFile, ...]:
    """Copies of files for a session. Raises `Invalid` or `NotFound` with the path of the first that fails, and then
    there are none."""
    if len(params) > FILES_PER_SESSION_MAX:
        raise Invalid(f"resources: at most {FILES_PER_SESSION_MAX} are allowed")
    made: list[MountedFile] = []
    try:
        for index, each in enumerate(params):
            prefix = f"{path}.{index}" if path else ""
            made.append(await _copy(call, session_id, each, prefix))
        check_mounts(made)
    except BaseException:
        await discard(call, made)
        raise
    return tuple(made)


async def discard(call: Call, mounted: Sequence[MountedFile]) -> None:
    """Remove copies."""
    with anyio.CancelScope(shield=True):
        for each in mounted:
            with suppress(NotFound):  # its owner deleted it
                file = await file_records.find(call.services, call.workspace_id, each.resource.file_id)
                await file_records.remove(call.services, call.workspace_id, file)


async def _copy(call: Call, session_id: str, params: ResourceParams, prefix: str) -> MountedFile:
    match params:
        case RepositoryParams():
            raise Invalid(f"{prefix}: this server does not support github_repository resources yet")
        case MemoryStoreParams():
            raise Invalid(f"{prefix}: this server does not support memory_store resources yet")
        case FileResourceParams():
            return await _copy_file(call, session_id, params, f"{prefix}." if prefix else "")
        case _:
            assert_never(params)


async def _copy_file(call: Call, session_id: str, params: FileResourceParams, prefix: str) -> MountedFile:
    try:
        where = mount_path(params.mount_path, params.file_id)
    except Invalid as error:
        raise Invalid(f"{prefix}{error.message}") from error
    try:
        original = await file_records.find_usable(call.services, call.workspace_id, params.file_id)
        now = call.services.clock.now()
        copy = msgspec.structs.replace(
            original,
            id=new_id("file"),
            session_id=session_id,
            created_at=now,
            downloadable=True,
            expires_at=None,
            output_path=None,
            output_stamp=None,
        )
        async with call.services.blobs.hold(original.sha256):
            await file_records.put(call.services, call.workspace_id, copy)
    except NotFound as error:
        raise NotFound(f"{prefix}file_id: {error.message}", error_code=error.error_code) from error
    resource = FileResource(id=new_id("sesrsc"), file_id=copy.id, mount_path=where, created_at=now, updated_at=now)
    return MountedFile(resource=resource, sha256=copy.sha256)


def _check_open(session: Session, state: SessionState) -> None:
    if state.status == "terminated" or session.archived_at is not None:
        raise Invalid(f"session {session.id} is terminated and cannot be changed")


def _with(session: Session, mounted: tuple[MountedFile, ...], now: datetime) -> Session:
    return msgspec.structs.replace(session, resources=mounted, updated_at=now)


def _find(session: Session, resource_id: str) -> MountedFile:
    for each in session.resources:
        if each.resource.id == resource_id:
            return each
    raise NotFound(f"Resource {resource_id} was not found.")
