"""What an update does to a session, and what a session may be given at all.

`changed` is a decision for the log: pure, run on the session as it is now. It says `session.updated` with only what
changed, and sets a session that rested at its budget running again when there is money left.

Source: the API's public documentation.
"""

from __future__ import annotations

import re
from datetime import datetime

import msgspec
from msgspec import UNSET, UnsetType

from corral.domain import agent as agent_rules
from corral.domain import event as ev
from corral.domain import metadata as metadata_rules
from corral.domain import turn
from corral.domain.agent import McpServer, SessionAgent
from corral.domain.ids import new_id
from corral.domain.lifecycle import Append, Change
from corral.domain.model import Catalogue
from corral.domain.session import TITLE_CHARACTERS_MAX, Session, SessionState
from corral.domain.toolset import ToolParams
from corral.domain.usage import BudgetLimit, list_cost_microdollars
from corral.errors import Invalid
from corral.interfaces.event_log import Decision

AMOUNT = re.compile("[1-9][0-9]{0,14}")
MICRODOLLARS_OF_CENT = 10_000


class SessionAgentUpdate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What of a session's agent may be replaced. An omitted field keeps its value."""

    mcp_servers: tuple[McpServer, ...] | UnsetType = UNSET
    tools: tuple[ToolParams, ...] | UnsetType = UNSET


class SessionUpdate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of `POST /v1/sessions/{session_id}`."""

    agent: SessionAgentUpdate | UnsetType = UNSET
    budget: BudgetLimit | UnsetType | None = UNSET
    metadata: dict[str, str | None] | UnsetType | None = UNSET
    title: str | UnsetType | None = UNSET
    vault_ids: tuple[str, ...] | UnsetType | None = UNSET


def changed(session: Session, state: SessionState, body: SessionUpdate, models: Catalogue, now: datetime) -> Decision:
    """The session after the update. Raises `Invalid`, and then nothing changes."""
    if body.vault_ids is not UNSET:
        raise Invalid("vault_ids: cannot be changed after a session was created")
    if state.status == "terminated" or session.archived_at is not None:
        raise Invalid(f"session {session.id} is terminated and cannot be changed")
    updated = msgspec.structs.replace(
        session,
        title=session.title if body.title is UNSET else check_title(body.title),
        metadata=(
            session.metadata if body.metadata is UNSET else metadata_rules.patched(session.metadata, body.metadata)
        ),
        agent=session.agent if body.agent is UNSET else _agent(session, state, body.agent),
        budget=session.budget if body.budget is UNSET else _budget(session, state, body.budget, models, now),
    )
    if updated == session:
        return Decision(())
    updated = msgspec.structs.replace(updated, updated_at=now)
    changes: list[Change] = [Append(_event(session, updated))]
    if updated.budget != session.budget and isinstance(state.stop_reason, ev.BudgetReached):
        changes += turn.running(updated, state)
    return Decision(changes, session=updated)


def _event(session: Session, updated: Session) -> ev.SessionUpdated:
    """Only what changed; metadata that became empty is left out, as the contract has it."""
    return ev.SessionUpdated(
        id=new_id("sevt"),
        title=UNSET if updated.title == session.title else updated.title,
        metadata=UNSET if updated.metadata == session.metadata or not updated.metadata else updated.metadata,
        agent=UNSET if updated.agent == session.agent else updated.agent,
        budget=UNSET if updated.budget == session.budget else updated.budget,
    )


def _agent(session: Session, state: SessionState, body: SessionAgentUpdate) -> SessionAgent:
    if state.status != "idle":
        raise Invalid(f"agent: can be changed only while the session is idle; it is {state.status}")
    tools = None if body.tools is UNSET else body.tools
    servers = None if body.mcp_servers is UNSET else body.mcp_servers
    try:
        return check_agent(agent_rules.replace_tools(session.agent, tools, servers))
    except Invalid as error:
        raise Invalid(f"agent.{error.message}", error_code=error.error_code) from error


def _budget(
    session: Session, state: SessionState, budget: BudgetLimit | None, models: Catalogue, now: datetime
) -> BudgetLimit | None:
    if budget is None:
        return None
    if session.budget is None:
        raise Invalid("budget: can be given only when a session is created", error_code="budget_create_only")
    check_budget(models, session.agent, budget)
    consumed = list_cost_microdollars(state.totals, state.active_at(now))
    if consumed is None:
        raise _not_budgetable(session.agent)
    if int(budget.max_list_cost.amount) * MICRODOLLARS_OF_CENT <= consumed:
        raise Invalid(
            f"budget.max_list_cost.amount: must be more than the {-(-consumed // MICRODOLLARS_OF_CENT)} cents that "
            "the session has cost",
            error_code="budget_not_raised",
        )
    return budget


def check_budget(models: Catalogue, agent: SessionAgent, budget: BudgetLimit | None) -> BudgetLimit | None:
    """The budget, if it is one that can be enforced."""
    if budget is None:
        return None
    amount = budget.max_list_cost.amount
    if not AMOUNT.fullmatch(amount):
        raise Invalid('budget.max_list_cost.amount: must be a whole number of cents as text, such as "2500"')
    if models.price(agent.model.id) is None:
        raise _not_budgetable(agent)
    return budget


def _not_budgetable(agent: SessionAgent) -> Invalid:
    return Invalid(
        f"budget: the model {agent.model.id} has no list price, so a budget cannot be enforced; "
        "the operator can add one under [prices] in corral.toml",
        error_code="model_not_budgetable",
    )


def check_title(title: str | None) -> str | None:
    """The title, if it keeps the limits."""
    if title is not None and not 1 <= len(title) <= TITLE_CHARACTERS_MAX:
        raise Invalid(f"title: must be 1 to {TITLE_CHARACTERS_MAX} characters")
    return title


def check_agent(agent: SessionAgent) -> SessionAgent:
    """The agent, if this server can run it."""
    if agent.skills:  # of an imported agent
        raise Invalid("skills: this server does not support skills yet")
    return agent
