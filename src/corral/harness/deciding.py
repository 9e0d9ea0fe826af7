"""What a worker hands to the log: a decision that appends what has happened, and all that follows by the rules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TypeAlias

from corral.domain import turn
from corral.domain.lifecycle import Change
from corral.domain.session import Session, SessionState
from corral.harness.parts import Parts
from corral.interfaces.event_log import Decide, Decision

Happened: TypeAlias = Callable[[Session, SessionState, datetime], Sequence[Change]]
"""What has happened, as changes to the session as it is now."""


async def following(parts: Parts, happened: Happened) -> Decide:
    """The decision that appends what has happened and goes on as far as the rules alone can."""
    stopped = await parts.spending_stopped()

    def decide(session: Session, state: SessionState, now: datetime) -> Decision:
        limits = _limits(parts, session, spending_stopped=stopped)
        decision = turn.proceed(session, state, happened(session, state, now), limits, now)
        return Decision(decision.changes, step=decision.step)

    return decide


def unchanged(session: Session, state: SessionState, now: datetime) -> Sequence[Change]:
    """Nothing has happened."""
    return ()


def _limits(parts: Parts, session: Session, *, spending_stopped: bool) -> turn.Limits:
    settings = parts.settings
    return turn.Limits(
        rounds_max=settings.tool_rounds_max,
        session_seconds_max=settings.session_seconds_max,
        compact_above_tokens=int(parts.window(session.agent.model.id) * settings.compact_above),
        compactions_max=settings.compactions_max,
        spending_stopped=spending_stopped,
    )
