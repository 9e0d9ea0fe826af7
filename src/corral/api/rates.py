"""Request rates: a token bucket for each key and group of endpoints. Off unless the operator wants it.

The numbers default to the hosted service's. Buckets live in this process; behind several replicas each counts for
itself.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal, NamedTuple, TypeAlias

from corral.config_sections import ServerSettings
from corral.errors import RateLimited

Group: TypeAlias = Literal["create", "read", "environment"]

BUCKETS_MAX = 10_000


class _Bucket(NamedTuple):
    tokens: float
    at: datetime


class Rates:
    """Counts requests."""

    def __init__(self, settings: ServerSettings) -> None:
        self._enabled = settings.rate_limits
        self._per_minute: dict[Group, int] = {
            "create": settings.create_requests_per_minute,
            "read": settings.read_requests_per_minute,
            "environment": settings.environment_requests_per_minute,
        }
        self._buckets: dict[tuple[str, Group], _Bucket] = {}

    def take(self, key_id: str, group: Group, now: datetime) -> None:
        """Count one request. Raises `RateLimited` when the bucket is empty; that request is not counted."""
        if not self._enabled:
            return
        capacity = self._per_minute[group]
        per_second = capacity / 60
        # Taken out and put back in, so that the dict stays sorted by last use.
        bucket = self._buckets.pop((key_id, group), _Bucket(capacity, now))
        elapsed = max(0.0, (now - bucket.at).total_seconds())
        tokens = min(float(capacity), bucket.tokens + elapsed * per_second)
        allowed = tokens >= 1
        self._buckets[key_id, group] = _Bucket(tokens - 1 if allowed else tokens, now)
        while len(self._buckets) > BUCKETS_MAX:
            del self._buckets[next(iter(self._buckets))]
        if not allowed:
            raise RateLimited(
                f"More than {capacity} {group} requests in a minute.", retry_after_seconds=(1 - tokens) / per_second
            )
