"""`/v1/environments`: recipes of sandboxes.

An environment is one record. Its name is the record's unique key while it is active, so two requests cannot make the
same name; an archived environment gives its name back.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Annotated

import msgspec

from corral.api import pages
from corral.api.call import Call
from corral.api.dependencies import Services
from corral.api.pages import Page
from corral.domain import environment as rules
from corral.domain.environment import ENVIRONMENT_KIND, Environment, EnvironmentCreate, EnvironmentUpdate
from corral.domain.ids import new_id
from corral.domain.query import Record, RecordsQuery
from corral.errors import Conflict, NotFound

ATTEMPTS_MAX = 100


class ListQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A page of environments, newest first."""

    include_archived: bool = False
    limit: Annotated[int, msgspec.Meta(ge=1, le=100)] = 20
    page: str | None = None


class EnvironmentDeleted(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="environment_deleted"):
    """The environment is gone."""

    id: str


async def create(call: Call) -> Environment:
    """`POST /v1/environments`."""
    body = await call.body(EnvironmentCreate)
    environment = rules.create(body, environment_id=new_id("env"), now=call.services.clock.now())
    try:
        await _put(call, environment, revision=1)
    except Conflict as error:
        raise _name_taken(environment) from error
    return environment


async def retrieve(call: Call) -> Environment:
    """`GET /v1/environments/{environment_id}`."""
    return await find(call.services, call.workspace_id, call.path["environment_id"])


async def update(call: Call) -> Environment:
    """`POST /v1/environments/{environment_id}`. Holds for sandboxes made from now on."""
    body = await call.body(EnvironmentUpdate)

    def updated(environment: Environment, now: datetime) -> Environment:
        return rules.update(environment, body, now=now)

    return await _change(call, updated)


async def archive(call: Call) -> Environment:
    """`POST /v1/environments/{environment_id}/archive`. Idempotent."""
    await call.no_body()

    def archived(environment: Environment, now: datetime) -> Environment:
        if environment.archived_at is not None:
            return environment
        return msgspec.structs.replace(environment, archived_at=now, updated_at=now)

    return await _change(call, archived)


async def delete(call: Call) -> EnvironmentDeleted:
    """`DELETE /v1/environments/{environment_id}`."""
    environment = await find(call.services, call.workspace_id, call.path["environment_id"])
    await call.services.records.delete(ENVIRONMENT_KIND, environment.id, call.workspace_id)
    return EnvironmentDeleted(id=environment.id)


async def list_(call: Call) -> Page[Environment]:
    """`GET /v1/environments`."""
    query = call.query(ListQuery)
    binding = pages.binding_of(query)
    asked = RecordsQuery(
        kind=ENVIRONMENT_KIND,
        workspace_id=call.workspace_id,
        limit=query.limit,
        include_archived=query.include_archived,
    )
    return await pages.of_records(call.services.records, asked, _environment, page=query.page, binding=binding)


async def find(services: Services, workspace_id: str, environment_id: str) -> Environment:
    """An environment. Raises `NotFound`."""
    return _environment(await _record(services, workspace_id, environment_id))


async def _record(services: Services, workspace_id: str, environment_id: str) -> Record:
    try:
        return await services.records.get(ENVIRONMENT_KIND, environment_id, workspace_id)
    except NotFound as error:
        raise NotFound(f"Environment {environment_id} was not found.", error_code="environment_not_found") from error


async def _put(call: Call, environment: Environment, *, revision: int) -> None:
    record = Record(
        kind=ENVIRONMENT_KIND,
        id=environment.id,
        workspace_id=call.workspace_id,
        created_at=environment.created_at,
        body=msgspec.json.encode(environment),
        archived_at=environment.archived_at,
        unique_key=environment.name if environment.archived_at is None else None,
        revision=revision,
    )
    await call.services.records.put(record, expect={environment.id: revision - 1})


async def _change(call: Call, change: Callable[[Environment, datetime], Environment]) -> Environment:
    seen = 0
    for _ in range(ATTEMPTS_MAX):
        record = await _record(call.services, call.workspace_id, call.path["environment_id"])
        environment = _environment(record)
        changed = change(environment, max(call.services.clock.now(), environment.updated_at))
        if changed is environment:
            return environment
        if record.revision == seen:
            # Nobody else changed it, and yet it could not be stored: another environment has the name.
            raise _name_taken(changed)
        seen = record.revision
        try:
            await _put(call, changed, revision=record.revision + 1)
        except Conflict:
            continue
        return changed
    raise Conflict


def _name_taken(environment: Environment) -> Conflict:
    return Conflict(f"name: an environment with the name `{environment.name}` exists already")


def _environment(record: Record) -> Environment:
    return msgspec.json.decode(record.body, type=Environment)
