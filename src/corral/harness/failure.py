"""How failures of a model request appear in the log: as `session.error`, retried or not.

Source: the API's public documentation.
"""

from __future__ import annotations

import random
from collections.abc import Generator
from contextlib import contextmanager
from datetime import datetime

from corral.config_sections import HarnessSettings
from corral.domain import event as ev
from corral.domain import turn
from corral.domain.session import Session, SessionState
from corral.errors import CorralError, ProviderError
from corral.interfaces.event_log import Decision

BUG = "Something in the server broke. The server's log says what; send a message to go on."


def error_object(error: ProviderError, *, attempt: int, settings: HarnessSettings) -> ev.ErrorObject:
    """The error of a request that has now failed `attempt + 1` times in a row."""
    again = error.retryable and attempt + 1 < settings.model_attempts_max
    return ev.ErrorObject(
        type=error.session_error_type,  # pyright: ignore[reportArgumentType]  # each subclass names a literal
        message=error.message,
        retry_status=ev.Retrying() if again else ev.Exhausted(),
    )


def backoff_seconds(attempt: int, retry_after_seconds: float | None, settings: HarnessSettings) -> float:
    """How long to wait after `attempt` failures: doubling, with jitter, or as long as the server asks."""
    doubled = settings.backoff_seconds * 2 ** max(0, attempt - 1)
    jittered = min(doubled, settings.backoff_seconds_max) * random.uniform(0.5, 1.0)  # not a secret
    return max(jittered, min(retry_after_seconds or 0.0, settings.retry_after_seconds_max))


def abandon(session: Session, state: SessionState, now: datetime) -> Decision:
    """End a turn that the server itself broke."""
    if state.status not in ("running", "rescheduling"):
        return Decision(())
    error = ev.ErrorObject(type="unknown_error", message=BUG, retry_status=ev.Exhausted())
    return Decision(turn.fail_request(session, state, error, now))


@contextmanager
def unwrapped() -> Generator[None]:
    """Raise an error of ours as itself, not inside the exception groups of the tasks it went through."""
    try:
        yield
    except* CorralError as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        found = error
    else:
        return
    raise found
