"""One place where things last: the log and the records, alone or together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol, TypeAlias

from corral.domain.query import Record
from corral.domain.restored import RestoredEvent
from corral.domain.session import Session, SessionState
from corral.interfaces.event_log import EventLog
from corral.interfaces.records import Records


class Restored(NamedTuple):
    """A session from elsewhere. Its events come in the order of history, and before `state`, what they add up to."""

    session: Session
    events: Iterable[RestoredEvent]
    state: Callable[[], SessionState]


class Depending(NamedTuple):
    """A record that depends on the one that is here."""

    kind: str
    id: str
    record: Callable[[Record | None], Record | None]
    """What to restore, given what has that kind and id, in this transaction; None for nothing."""


Moved: TypeAlias = Record | Depending | Restored
"""What moves in."""


class Archive(Protocol):
    """Everything in one store, for moving in and out."""

    async def workspaces(self) -> list[str]:
        """Ids of all workspaces that have something, sorted."""
        ...

    async def restore(self, items: Iterable[Moved]) -> Counter[str]:
        """Store all items, or none; nothing is published, and no spending is counted. They are taken one at a time and
        never gathered, maybe on another thread, and anew if the transaction is repeated. What is here and the same on
        the wire is left alone and counted in the answer by kind. Raises `Conflict` when it differs, and what the
        iteration raises."""
        ...


class Store(Protocol):
    """One place where things last."""

    @property
    def log(self) -> EventLog:
        """Sessions and their events."""
        ...

    @property
    def records(self) -> Records:
        """Everything else."""
        ...

    @property
    def archive(self) -> Archive:
        """Both at once."""
        ...

    async def close(self) -> None:
        """Finish what was begun and let go of the store. Idempotent."""
        ...
