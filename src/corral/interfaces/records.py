"""Everything else that lasts: agents, environments, keys, by kind and id."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from corral.domain.query import Record, RecordsQuery


class Records(Protocol):
    """Everything durable that is not a session: small objects by kind and id."""

    async def put(self, *records: Record, expect: Mapping[str, int] | None = None) -> None:
        """Insert or replace all records in one transaction.

        `expect` maps a record's id to the revision that must be stored now (0: none). Raises `Conflict` when that
        does not hold, or when a `unique_key` is taken; then nothing is changed."""
        ...

    async def get(self, kind: str, record_id: str, workspace_id: str | None) -> Record:
        """Raises `NotFound`, also for another workspace's record. `workspace_id=None` looks in all."""
        ...

    async def page(self, query: RecordsQuery) -> list[Record]:
        """A page of records."""
        ...

    async def delete(self, kind: str, record_id: str, workspace_id: str) -> None:
        """Remove a record. Raises `NotFound`."""
        ...
