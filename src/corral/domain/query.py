"""What a store is asked for and what it hands back: records, events read back, and pages of each.

Data only; the seams that take it are `interfaces.event_log.EventLog` and `interfaces.records.Records`.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal, NamedTuple

import msgspec

from corral.domain.event import StoredEvent


class LoggedEvent(NamedTuple):
    """An event read back."""

    seq: int
    event: StoredEvent
    private: bytes | None
    body: bytes = b""
    """The event as the wire has it, byte for byte as it was stored; empty for one that did not come from the store."""


class EventsQuery(msgspec.Struct, frozen=True, kw_only=True):
    """A page of a session's history, by position."""

    limit: int
    beyond: tuple[bool, int] | None = None
    """Start behind the row that is (queued?, seq), in the direction of `order`. Both are needed: a queued event keeps
    its seq and still comes after every processed one."""
    order: Literal["asc", "desc"] = "asc"
    types: tuple[str, ...] = ()
    after: datetime | None = None
    """`processed_at` > this; with `after_inclusive`, >=."""
    after_inclusive: bool = False
    before: datetime | None = None
    before_inclusive: bool = False
    processed_only: bool = False


class SessionsQuery(msgspec.Struct, frozen=True, kw_only=True):
    """A page of sessions, by creation time and then id."""

    workspace_id: str
    limit: int
    order: Literal["asc", "desc"] = "desc"
    beyond: tuple[datetime, str] | None = None
    """Start behind this creation time and id, in the direction of `order`."""
    backwards: bool = False
    """Read against `order` (for `prev_page`); the result is still sorted by `order`."""
    statuses: tuple[str, ...] = ()
    agent_id: str | None = None
    agent_version: int | None = None
    deployment_id: str | None = None
    include_archived: bool = False
    after: datetime | None = None
    after_inclusive: bool = False
    before: datetime | None = None
    before_inclusive: bool = False


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """A stored object of any other kind: its keys for lists, and its body as JSON."""

    kind: str
    id: str
    workspace_id: str
    created_at: datetime
    body: bytes
    archived_at: datetime | None = None
    parent_id: str | None = None
    """For versions: the id of what this is a version of."""
    unique_key: str | None = None
    """Unique within kind and workspace, when set."""
    revision: int = 1


class RecordsQuery(msgspec.Struct, frozen=True, kw_only=True):
    """A page of records, newest first."""

    kind: str
    workspace_id: str | None
    limit: int
    beyond: tuple[datetime, str] | None = None
    """Start behind this creation time and id."""
    parent_id: str | None = None
    include_archived: bool = True
    after: datetime | None = None
    after_inclusive: bool = False
    before: datetime | None = None
    before_inclusive: bool = False
