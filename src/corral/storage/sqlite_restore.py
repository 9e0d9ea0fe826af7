"""The bulk side of the SQLite store: whole sessions and records, written as they are.

It works inside the transaction and the savepoint that `sqlite_batch.py` has opened. Rows go to SQLite in chunks, so a
session of any length passes through little memory. What exists already is compared and never changed.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain, islice, zip_longest

import msgspec

from corral.domain.query import Record
from corral.domain.session import SessionState
from corral.interfaces.store import Depending, Moved, Restored
from corral.storage.columns import INTEGER_MAX, INTEGER_MIN, read_record
from corral.storage.frames import EventRow, encode
from corral.storage.sqlite_rows import (
    SQL,
    Stored,
    event_parameters,
    insert_all,
    positions,
    read_stored,
    record_parameters,
    session_parameters,
)
from corral.storage.transaction import check_same_record, check_same_session, differs, made, same_body, taken

CHUNK_EVENTS = 512


class Restoring:
    """One `Archive.restore`."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._known: Counter[str] = Counter()

    def run(self, items: Iterable[Moved]) -> Counter[str]:
        """Take the items one at a time; count those that were there."""
        for item in items:
            if isinstance(item, Restored):
                self._restore_session(item)
            else:
                self._restore_record(item)
        return self._known

    def _restore_record(self, item: Record | Depending) -> None:
        row = self._connection.execute(SQL["record"], {"kind": item.kind, "id": item.id}).fetchone()
        here = None if row is None else read_record(row)
        record = made(item, here)
        if record is None:
            return
        if here is not None:
            check_same_record(record, here)
            self._known[record.kind] += 1
            return
        try:
            self._connection.execute(SQL["put_record"], record_parameters(record))
        except sqlite3.IntegrityError as error:
            raise taken(record) from error

    def _restore_session(self, restored: Restored) -> None:
        row = self._connection.execute(SQL["session_by_id"], {"id": restored.session.id}).fetchone()
        if row is not None:
            self._compare(restored, read_stored(row))
            self._known["session"] += 1
            return
        # What the events add up to is known when they have passed; until then any state will do.
        blank = Stored(0, restored.session, SessionState(thread_id=""), 0)
        number = self._connection.execute(SQL["insert_session"], session_parameters(blank)).lastrowid
        assert number is not None
        self._connection.execute(SQL["put_document"], session_parameters(msgspec.structs.replace(blank, number=number)))
        count = self._insert_events(number, restored)
        state = restored.state()
        assert state.seq == count, "the state counts the events"
        status = {"status": state.status, "epoch": 0, "number": number}
        self._connection.execute(SQL["update_status"], status)
        insert_all(self._connection, "put_states", [(number, encode(state))])

    def _insert_events(self, number: int, restored: Restored) -> int:
        count = 0
        events = iter(restored.events)
        while chunk := list(islice(events, CHUNK_EVENTS)):
            rows = [
                event_parameters(number, EventRow(seq, each.id, each.type, each.processed_at, each.body, each.private))
                for seq, each in enumerate(chunk, count + 1)
            ]
            insert_all(self._connection, "insert_events", rows)
            count += len(chunk)
        return count

    def _compare(self, restored: Restored, stored: Stored) -> None:
        for event, body in zip_longest(restored.events, self._bodies(stored.number)):
            if event is None or body is None or not same_body(event.body, body):
                raise differs("session", restored.session.id)
        check_same_session(stored.session, stored.state, restored.session, restored.state())

    def _bodies(self, number: int) -> Iterator[bytes]:
        low, high = positions(number)
        everything = {
            "low": low,
            "high": high,
            "since": INTEGER_MIN,
            "until": INTEGER_MAX,
            "types": None,
            "limit": -1,
        }
        names = ("processed_events_asc", "queued_events_asc")
        rows = chain.from_iterable(self._connection.execute(SQL[name], everything) for name in names)
        return (body for _, body, _ in rows)
