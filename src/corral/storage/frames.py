"""Rows and frames: the one encoding of an event, used for the table and for open streams alike.

An event is encoded once, when its transaction runs: the bytes are its row's body, its frame's data and what a page
of history is decoded from. Every backend uses this file; it does no I/O.
"""

from __future__ import annotations

from datetime import datetime
from typing import get_args

import msgspec

from corral.domain.event import AnyEvent, OtherEvent, SessionDeleted, StoredEvent
from corral.domain.ids import new_id
from corral.domain.lifecycle import Row
from corral.domain.query import LoggedEvent
from corral.interfaces.bus import Frame

TYPES: dict[type, str] = {kind: str(kind.__struct_config__.tag) for kind in get_args(AnyEvent)}
"""The wire's name of each event class."""

encode = msgspec.json.Encoder().encode
_decoder: msgspec.json.Decoder[AnyEvent] = msgspec.json.Decoder(AnyEvent)
_other = msgspec.json.Decoder(OtherEvent)


class EventRow(msgspec.Struct, frozen=True, gc=False):
    """An event as it is stored."""

    seq: int
    id: str
    type: str
    processed_at: datetime | None
    body: bytes
    """The event on the wire: UNSET is left out, null stays."""
    private: bytes | None


def row_of(row: Row) -> EventRow:
    """Encode a row, which has its event."""
    event = row.event
    assert event is not None, "a moved row has its event filled in"
    return EventRow(row.seq, event.id, TYPES[type(event)], row.processed_at, encode(event), row.private)


def frame_of(session_id: str, row: EventRow) -> Frame:
    """What open streams of the session get to see of a row."""
    return Frame(session_id, row.type, row.body)


def deleted_frame(session_id: str, now: datetime) -> Frame:
    """The last frame of a session. It belongs to no row: the history is gone."""
    return Frame(session_id, "session.deleted", encode(SessionDeleted(id=new_id("sevt"), processed_at=now)))


def read_event(body: bytes) -> AnyEvent:
    """The body of a row that Corral wrote as an event."""
    return _decoder.decode(body)


def read_stored(body: bytes) -> StoredEvent:
    """Any row's body as an event."""
    try:
        return _decoder.decode(body)
    except msgspec.ValidationError:
        return _other.decode(body)


def logged(seq: int, body: bytes, private: bytes | None) -> LoggedEvent:
    """A row read back."""
    return LoggedEvent(seq, read_stored(body), private, body)
