"""How moments and documents look in the columns of every database, and which ranges of a history a page is read from.

Times are integers, microseconds since 1970; documents are JSON. The backends share this file; it opens nothing and
runs nothing.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Literal, TypeAlias

import msgspec

from corral.domain.query import EventsQuery, Record
from corral.domain.session import Session, SessionState

INTEGER_MAX = 2**63 - 1
INTEGER_MIN = -(2**63)
TEXT_MAX = "\U0010ffff"
"""Behind every id."""

Part: TypeAlias = Literal["processed", "queued"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_documents = msgspec.json.Decoder(Session)
_states = msgspec.json.Decoder(SessionState)


def micros(moment: datetime) -> int:
    """Microseconds since 1970, exactly."""
    return (moment - _EPOCH) // _MICROSECOND


def moment(microseconds: int) -> datetime:
    """The reverse of `micros`."""
    return _EPOCH + timedelta(microseconds=microseconds)


def since(after: datetime | None, *, inclusive: bool) -> int:
    """The earliest moment that is meant, as the lower end of a BETWEEN."""
    return INTEGER_MIN if after is None else micros(after) + (0 if inclusive else 1)


def until(before: datetime | None, *, inclusive: bool) -> int:
    """The latest moment that is meant, as the upper end of a BETWEEN."""
    return INTEGER_MAX if before is None else micros(before) - (0 if inclusive else 1)


def read_document(document: bytes) -> Session:
    """What a session's client gave."""
    return _documents.decode(document)


def read_state(state: bytes) -> SessionState:
    """What a session's events add up to."""
    return _states.decode(state)


def read_record(row: tuple[str, str, str, str | None, str | None, int, int | None, int, bytes]) -> Record:
    """A row of the record queries."""
    kind, record_id, workspace_id, parent_id, unique_key, created_at, archived_at, revision, body = row
    return Record(
        kind=kind,
        id=record_id,
        workspace_id=workspace_id,
        parent_id=parent_id,
        unique_key=unique_key,
        created_at=moment(created_at),
        archived_at=None if archived_at is None else moment(archived_at),
        revision=revision,
        body=body,
    )


def parts_of(query: EventsQuery) -> tuple[Part, ...]:
    """The ranges of a history that are still ahead, in reading order: processed rows and queued ones lie apart."""
    ascending: tuple[Part, ...] = ("processed",) if query.processed_only else ("processed", "queued")
    ahead = ascending if query.order == "asc" else ascending[::-1]
    if query.beyond is None:
        return ahead
    at: Part = "queued" if query.beyond[0] else "processed"
    return ahead[ahead.index(at) :] if at in ahead else ahead if query.order == "desc" else ()
