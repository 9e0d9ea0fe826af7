"""What became of a commit whose answer was lost: looked for on another connection, before anybody is told.

A statement that was sent may have been done, may still be done, or may never arrive. Whoever holds the locks of its
sessions can tell: either what it wrote is there, or it is not; and once the same operations have been committed anew,
every session is at another version, and one that still comes is refused. So the writer locks, asks here, and then
either answers what it had decided the first time, or goes on as if nothing had been sent.

What proves a commit is something that no other could have written: its events, the sessions that it made, the documents
that it changed. A commit without any of these has only claimed sessions, which may be done twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from corral.storage.frames import encode
from corral.storage.jobs import Job
from corral.storage.postgres_batch import Batch
from corral.storage.postgres_connection import SQL, Connection


class _Sent(NamedTuple):
    batch: Batch
    answers: list[tuple[object, Exception | None]]
    """What each job would have been told."""


class Doubts:
    """Commits of the same jobs that were sent, and of which nobody knows whether they happened."""

    def __init__(self, jobs: Sequence[Job[Batch]]) -> None:
        self._jobs = jobs
        self._sent: list[_Sent] = []

    def __bool__(self) -> bool:
        return bool(self._sent)

    def send(self, batch: Batch) -> None:
        """It is about to be sent."""
        self._sent.append(_Sent(batch, [(job.value, job.error) for job in self._jobs]))

    def refused(self) -> None:
        """The server has said that the last one was undone."""
        self._sent.pop()

    async def resolve(self, connection: Connection) -> Batch | None:
        """The one that did happen, with its jobs' answers put back; None when none has.

        To be asked in a transaction that has locked the sessions.
        """
        for sent in reversed(self._sent):
            if await _is_there(connection, sent.batch):
                for job, (value, error) in zip(self._jobs, sent.answers, strict=True):
                    job.value, job.error = value, error
                return sent.batch
        return None


async def _is_there(connection: Connection, batch: Batch) -> bool:
    rows = [(key[0], row) for key, row in batch.events.items()]
    # Processed events stay where they are and are dated; queued ones are moved by whoever takes them up.
    if processed := [(number, row) for number, row in rows if row.processed_at is not None]:
        columns = [(number, row.seq, row.id, row.body) for number, row in processed]
        return await _ask(connection, "has_events", columns)
    if rows:
        return await _ask(connection, "has_queued_events", [(number, row.seq, row.id) for number, row in rows])
    if batch.created:
        return await _ask(connection, "has_sessions", [(each.number,) for each in batch.created.values()])
    if batch.redescribed:
        documents = [(number, encode(each.session)) for number, each in batch.redescribed.items()]
        return await _ask(connection, "has_documents", documents)
    if batch.deleted:
        return not await _ask(connection, "has_sessions", [(number,) for number in batch.deleted])
    return False


async def _ask(connection: Connection, name: str, rows: Sequence[tuple[object, ...]]) -> bool:
    return bool(await connection.fetchval(SQL[name], *map(list, zip(*rows, strict=True))))
