"""`/v1/sessions`: runs of agents.

What a client gives a session is checked here against what else is stored (agent, environment, prices); what it means
is `domain/session.py`'s and `domain/turn.py`'s business. Every change is a decision that the log commits together with
its events. What changes a session that exists is in `session_changes.py`.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

import msgspec

from corral.api import agents, environments, file_sources, outputs, pages, periods, resources, vaults
from corral.api.call import Call
from corral.api.decoding import Positive
from corral.api.event_params import InitialEventParams, to_events
from corral.api.events import tell_engine, told_anyway
from corral.api.pages import Cursor
from corral.api.periods import Moment
from corral.api.session_changes import SessionUpdate, changed, check_agent, check_budget, check_title
from corral.domain import agent as agent_rules
from corral.domain import intake, turn
from corral.domain import metadata as metadata_rules
from corral.domain.agent import AgentReference, AgentWithOverrides, SessionAgent
from corral.domain.ids import new_id
from corral.domain.query import SessionsQuery
from corral.domain.resource import ResourceParams
from corral.domain.session import INITIAL_EVENTS_MAX, Session, SessionState, SessionView, Status, view
from corral.domain.usage import BudgetLimit
from corral.errors import CorralError, Invalid, NotFound, OutcomeUnknown
from corral.interfaces.event_log import Decision, Snapshot

KIND = "sessions"
ENVIRONMENT_ID_CHARACTERS_MAX = 128


class SessionCreate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of `POST /v1/sessions`."""

    agent: str | AgentReference | AgentWithOverrides
    environment_id: str
    budget: BudgetLimit | None = None
    initial_events: tuple[InitialEventParams, ...] = ()
    metadata: dict[str, str] = {}
    resources: tuple[ResourceParams, ...] = ()
    title: str | None = None
    vault_ids: tuple[str, ...] = ()


class ListQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename=periods.RENAMED):
    """A page of sessions."""

    agent_id: str | None = None
    agent_version: Positive | None = None
    created_at_gt: Moment | None = None
    created_at_gte: Moment | None = None
    created_at_lt: Moment | None = None
    created_at_lte: Moment | None = None
    deployment_id: str | None = None
    include_archived: bool = False
    limit: Annotated[int, msgspec.Meta(ge=1, le=100)] = 20
    memory_store_id: str | None = None
    order: Literal["asc", "desc"] = "desc"
    page: str | None = None
    statuses: tuple[Status, ...] = ()


class SessionsPage(msgspec.Struct, frozen=True, kw_only=True):
    """A page of sessions, with cursors both ways."""

    data: tuple[SessionView, ...]
    next_page: str | None
    prev_page: str | None


class SessionDeleted(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="session_deleted"):
    """The session is gone."""

    id: str


async def create(call: Call) -> SessionView:
    """`POST /v1/sessions`."""
    body = await call.body(SessionCreate)
    _refuse_unbuilt(body)
    events = to_events(body.initial_events, "initial_events")
    file_sources.check_initial(events)
    await file_sources.check(call.services, call.workspace_id, events, "initial_events")
    agent = await _agent(call, body.agent)
    now = call.services.clock.now()
    session_id = new_id("sesn")
    session = Session(
        id=session_id,
        workspace_id=call.workspace_id,
        agent=agent,
        environment_id=await _environment_id(call, body.environment_id),
        created_at=now,
        updated_at=now,
        title=check_title(body.title),
        metadata=metadata_rules.checked(body.metadata),
        budget=check_budget(call.services.models, agent, body.budget),
        vault_ids=await vaults.check(call.services, call.workspace_id, body.vault_ids),
        resources=await resources.copies(call, session_id, body.resources),
    )

    def decide(session: Session, state: SessionState, now: datetime) -> Decision:
        return Decision(intake.accept(session, state, events, now) if events else ())

    try:
        with told_anyway(call, session_id):
            committed = await call.services.log.create(session, SessionState(thread_id=new_id("sthr")), decide)
    except OutcomeUnknown:
        raise  # the session may be there, with the copies
    except CorralError:
        await resources.discard(call, session.resources)
        raise
    tell_engine(call, committed)
    return _view(call, Snapshot(committed.session, committed.state))


def _refuse_unbuilt(body: SessionCreate) -> None:
    if len(body.initial_events) > INITIAL_EVENTS_MAX:
        raise Invalid(
            f"initial_events: at most {INITIAL_EVENTS_MAX} events are allowed, got {len(body.initial_events)}"
        )


async def _agent(call: Call, params: str | AgentReference | AgentWithOverrides) -> SessionAgent:
    """The agent's snapshot. Raises `NotFound`, or `Invalid` for an agent that cannot run."""
    reference = AgentReference(id=params) if isinstance(params, str) else params
    try:
        agent = await agents.find(call.services, call.workspace_id, reference.id, reference.version)
    except NotFound as error:
        raise NotFound(f"agent: {error.message}") from error
    if agent.archived_at is not None:
        raise Invalid(f"agent: agent {agent.id} is archived")
    overrides = reference if isinstance(reference, AgentWithOverrides) else None
    try:
        return check_agent(agent_rules.snapshot(agent, overrides))
    except Invalid as error:
        message = error.message if error.message.startswith("agent") else f"agent.{error.message}"
        raise Invalid(message, error_code=error.error_code) from error


async def _environment_id(call: Call, environment_id: str) -> str:
    if not 1 <= len(environment_id) <= ENVIRONMENT_ID_CHARACTERS_MAX:
        raise Invalid(f"environment_id: must be 1 to {ENVIRONMENT_ID_CHARACTERS_MAX} characters")
    try:
        environment = await environments.find(call.services, call.workspace_id, environment_id)
    except NotFound as error:
        raise NotFound(f"environment_id: {error.message}", error_code=error.error_code) from error
    if environment.archived_at is not None:
        raise Invalid(f"environment_id: environment {environment_id} is archived", error_code="environment_archived")
    return environment.id


async def retrieve(call: Call) -> SessionView:
    """`GET /v1/sessions/{session_id}`."""
    return _view(call, await call.services.log.snapshot(call.path["session_id"], call.workspace_id))


async def update(call: Call) -> SessionView:
    """`POST /v1/sessions/{session_id}`."""
    body = await call.body(SessionUpdate)
    models = call.services.models

    def decide(session: Session, state: SessionState, now: datetime) -> Decision:
        return changed(session, state, body, models, now)

    session_id = call.path["session_id"]
    with told_anyway(call, session_id):
        committed = await call.services.log.transact(session_id, decide, workspace_id=call.workspace_id)
    if committed.rows:
        tell_engine(call, committed)
    return _view(call, Snapshot(committed.session, committed.state))


async def archive(call: Call) -> SessionView:
    """`POST /v1/sessions/{session_id}/archive`. Idempotent."""
    await call.no_body()

    def decide(session: Session, state: SessionState, now: datetime) -> Decision:
        if session.archived_at is not None:
            return Decision(())
        if state.status == "running":
            raise Invalid(f"session {session.id} is running and cannot be archived; interrupt it first")
        archived = msgspec.structs.replace(session, archived_at=now, updated_at=now)
        over = state.status == "terminated"
        return Decision(() if over else turn.terminate(session, state), session=archived)

    session_id = call.path["session_id"]
    with told_anyway(call, session_id):
        committed = await call.services.log.transact(session_id, decide, workspace_id=call.workspace_id)
    if committed.rows:
        call.services.engine.wake(committed.session.id)
    return _view(call, Snapshot(committed.session, committed.state))


async def delete(call: Call) -> SessionDeleted:
    """`DELETE /v1/sessions/{session_id}`. Closes its streams."""
    session_id = call.path["session_id"]

    def allow(session: Session, state: SessionState) -> None:
        if state.status in ("running", "rescheduling"):
            raise Invalid(f"session {session.id} is {state.status} and cannot be deleted; interrupt it first")

    with told_anyway(call, session_id):
        await call.services.log.delete(session_id, call.workspace_id, allow)
    await outputs.forget(call.services, call.workspace_id, session_id)
    # Whoever advances sessions finds this one gone, and lets go of what it had for it.
    call.services.engine.wake(session_id)
    return SessionDeleted(id=session_id)


async def list_(call: Call) -> SessionsPage:
    """`GET /v1/sessions`."""
    query = call.query(ListQuery)
    if query.agent_version is not None and query.agent_id is None:
        raise Invalid("agent_version: needs `agent_id`")
    binding = pages.binding_of(query)
    cursor = pages.decode(query.page, KIND, binding)
    if query.memory_store_id is not None:
        # No session has a memory store until this server has them.
        return SessionsPage(data=(), next_page=None, prev_page=None)
    found = await call.services.log.sessions(_sessions_query(call, query, cursor))
    backwards = cursor is not None and cursor.backwards
    more = len(found) > query.limit
    # The row too many is the one farthest from where the page starts.
    shown = found[-query.limit :] if backwards else found[: query.limit]
    has_next, has_prev = (True, more) if backwards else (more, cursor is not None)
    return SessionsPage(
        data=tuple(_view(call, snapshot) for snapshot in shown),
        next_page=_cursor(shown[-1], binding, backwards=False) if has_next and shown else None,
        prev_page=_cursor(shown[0], binding, backwards=True) if has_prev and shown else None,
    )


def _sessions_query(call: Call, query: ListQuery, cursor: Cursor | None) -> SessionsQuery:
    after = periods.after(query.created_at_gt, query.created_at_gte)
    before = periods.before(query.created_at_lt, query.created_at_lte)
    return SessionsQuery(
        workspace_id=call.workspace_id,
        limit=query.limit + 1,
        order=query.order,
        beyond=pages.beyond(cursor),
        backwards=cursor is not None and cursor.backwards,
        statuses=query.statuses,
        agent_id=query.agent_id,
        agent_version=query.agent_version,
        deployment_id=query.deployment_id,
        include_archived=query.include_archived,
        after=after.at,
        after_inclusive=after.inclusive,
        before=before.at,
        before_inclusive=before.inclusive,
    )


def _cursor(snapshot: Snapshot, binding: str, *, backwards: bool) -> str:
    session = snapshot.session
    return pages.encode(Cursor(kind=KIND, binding=binding, at=session.created_at, id=session.id, backwards=backwards))


def _view(call: Call, snapshot: Snapshot) -> SessionView:
    return view(snapshot.session, snapshot.state, call.services.clock.now())
