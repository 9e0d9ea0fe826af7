"""`/v1/agents`: agents and their versions.

The latest version is the record `agent`; every version, the latest included, is also a record `agent_version` that
never changes. Both are written in one transaction. What an update means is `domain/agent.py`'s business.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Annotated

import msgspec

from corral.api import pages, periods
from corral.api.call import Call
from corral.api.decoding import Positive
from corral.api.dependencies import Services
from corral.api.pages import Page
from corral.api.periods import Moment
from corral.domain import agent as rules
from corral.domain.agent import Agent, AgentCreate, AgentUpdate
from corral.domain.ids import new_id
from corral.domain.query import Record, RecordsQuery
from corral.errors import Conflict, NotFound

KIND = "agent"
VERSION_KIND = "agent_version"
ATTEMPTS_MAX = 100
"""How often an update is made anew because another one came in between; of those made at once, one gets through each
time."""


class RetrieveQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which version; None for the latest."""

    version: Positive | None = None


class ListQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename=periods.RENAMED):
    """A page of agents, newest first."""

    created_at_gte: Moment | None = None
    created_at_lte: Moment | None = None
    include_archived: bool = False
    limit: Annotated[int, msgspec.Meta(ge=1, le=100)] = 20
    page: str | None = None


class VersionsQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A page of an agent's versions, newest first."""

    limit: Annotated[int, msgspec.Meta(ge=1, le=100)] = 20
    page: str | None = None


async def create(call: Call) -> Agent:
    """`POST /v1/agents`."""
    body = await call.body(AgentCreate)
    agent = rules.create(body, agent_id=new_id("agent"), now=call.services.clock.now())
    await _put(call, agent, revision=1)
    return agent


async def retrieve(call: Call) -> Agent:
    """`GET /v1/agents/{agent_id}`."""
    query = call.query(RetrieveQuery)
    return await find(call.services, call.workspace_id, call.path["agent_id"], query.version)


async def update(call: Call) -> Agent:
    """`POST /v1/agents/{agent_id}`."""
    body = await call.body(AgentUpdate)

    def updated(agent: Agent, now: datetime) -> Agent:
        return rules.update(agent, body, now=now)

    return await _change(call, updated)


async def archive(call: Call) -> Agent:
    """`POST /v1/agents/{agent_id}/archive`. Idempotent."""
    await call.no_body()

    def archived(agent: Agent, now: datetime) -> Agent:
        if agent.archived_at is not None:
            return agent
        return msgspec.structs.replace(agent, archived_at=now, updated_at=now)

    return await _change(call, archived)


async def list_(call: Call) -> Page[Agent]:
    """`GET /v1/agents`."""
    query = call.query(ListQuery)
    binding = pages.binding_of(query)
    asked = RecordsQuery(
        kind=KIND,
        workspace_id=call.workspace_id,
        limit=query.limit,
        include_archived=query.include_archived,
        after=query.created_at_gte,
        after_inclusive=True,
        before=query.created_at_lte,
        before_inclusive=True,
    )
    return await pages.of_records(call.services.records, asked, _agent, page=query.page, binding=binding)


async def list_versions(call: Call) -> Page[Agent]:
    """`GET /v1/agents/{agent_id}/versions`."""
    query = call.query(VersionsQuery)
    latest = await find(call.services, call.workspace_id, call.path["agent_id"])
    asked = RecordsQuery(
        kind=VERSION_KIND,
        workspace_id=call.workspace_id,
        limit=query.limit,
        parent_id=latest.id,
    )
    return await pages.of_records(
        call.services.records, asked, lambda record: _version_of(latest, record), page=query.page, binding=latest.id
    )


async def find(services: Services, workspace_id: str, agent_id: str, version: int | None = None) -> Agent:
    """An agent's latest or given version. Raises `NotFound`."""
    latest = _agent(await _record(services, workspace_id, agent_id))
    if version is None or version == latest.version:
        return latest
    try:
        record = await services.records.get(VERSION_KIND, version_id(agent_id, version), workspace_id)
    except NotFound as error:
        raise NotFound(f"Agent {agent_id} has no version {version}.") from error
    return _version_of(latest, record)


async def _record(services: Services, workspace_id: str, agent_id: str) -> Record:
    try:
        return await services.records.get(KIND, agent_id, workspace_id)
    except NotFound as error:
        raise NotFound(f"Agent {agent_id} was not found.") from error


async def _put(call: Call, agent: Agent, *, revision: int, new_version: bool = True) -> None:
    """Store the agent, provided that nobody has changed it since `revision - 1`."""
    body = msgspec.json.encode(agent)
    head = Record(
        kind=KIND,
        id=agent.id,
        workspace_id=call.workspace_id,
        created_at=agent.created_at,
        body=body,
        archived_at=agent.archived_at,
        revision=revision,
    )
    if not new_version:
        await call.services.records.put(head, expect={agent.id: revision - 1})
        return
    version = Record(
        kind=VERSION_KIND,
        id=version_id(agent.id, agent.version),
        workspace_id=call.workspace_id,
        created_at=agent.updated_at,
        body=body,
        parent_id=agent.id,
    )
    await call.services.records.put(head, version, expect={agent.id: revision - 1, version.id: 0})


async def _change(call: Call, change: Callable[[Agent, datetime], Agent]) -> Agent:
    for _ in range(ATTEMPTS_MAX):
        record = await _record(call.services, call.workspace_id, call.path["agent_id"])
        agent = _agent(record)
        # Versions are listed by time; a clock that was set back must not mix them up.
        changed = change(agent, max(call.services.clock.now(), agent.updated_at))
        if changed is agent:
            return agent
        try:
            await _put(call, changed, revision=record.revision + 1, new_version=changed.version != agent.version)
        except Conflict:
            continue
        return changed
    raise Conflict


def _agent(record: Record) -> Agent:
    return msgspec.json.decode(record.body, type=Agent)


def _version_of(latest: Agent, record: Record) -> Agent:
    """A version as it was, except that an agent is archived with all its versions."""
    return msgspec.structs.replace(_agent(record), archived_at=latest.archived_at)


def version_id(agent_id: str, version: int) -> str:
    """The id of the record of a version."""
    return f"{agent_id}:{version:010d}"
