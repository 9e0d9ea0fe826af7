"""How failures of a model request appear in the log: as `session.error`, retried or not.

Source: events.md section 10, semantics.md section 12.
"""

from __future__ import annotations

import random

from corral.config import HarnessSettings
from corral.domain import event as ev
from corral.errors import ProviderError


def error_object(error: ProviderError, *, attempt: int, settings: HarnessSettings) -> ev.ErrorObject:
    """The error of a request that has now failed `attempt + 1` times in a row."""
    again = error.retryable and attempt + 1 < settings.model_attempts_max
    return ev.ErrorObject(
        type=error.session_error_type,  # pyright: ignore[reportArgumentType]  # each subclass names a literal
        message=error.message,
        retry_status=ev.Retrying() if again else ev.Exhausted(),
    )


def backoff_seconds(attempt: int, retry_after_seconds: float | None, settings: HarnessSettings) -> float:
    """How long to wait after `attempt` failures: doubling, with jitter, and never less than the server asked for."""
    doubled = settings.backoff_seconds * 2 ** max(0, attempt - 1)
    jittered = min(doubled, settings.backoff_seconds_max) * random.uniform(0.5, 1.0)  # not a secret
    return min(max(jittered, retry_after_seconds or 0.0), settings.backoff_seconds_max)
