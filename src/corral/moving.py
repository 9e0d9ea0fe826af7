"""Objects as lines: what `corral import` reads and `corral export` writes.

A line is one JSON object as the API returns it: an agent's version, an environment, a session; or `{"session_id": ...,
"event": ...}`, an event of the session above it; or `{"type": "workspace", "id": ...}`, where the lines below it belong.
`Moving` reads a file into what `interfaces.Archive` restores, line by line and more than once if it must; `lines` goes the
other way. docs/moving.md is the contract: what cannot be kept exactly as it is, is refused with its line and field.

What history means is `domain/restored.py`, how things are stored is `api/` and `storage/`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Generic, NamedTuple, TypeAlias, TypeVar, cast

import msgspec

from corral.api import agents, environments
from corral.domain import agent as agent_rules
from corral.domain import environment as environment_rules
from corral.domain.agent import Agent
from corral.domain.environment import Environment
from corral.domain.restored import History, RestoredEvent, check_id
from corral.domain.session import Session, SessionState, SessionView, view
from corral.errors import Conflict, Invalid
from corral.interfaces import (
    Archive,
    Clock,
    EventLog,
    EventsQuery,
    Record,
    Records,
    RecordsQuery,
    Restored,
    SessionsQuery,
    Snapshot,
)

T = TypeVar("T")

LINE_BYTES_MAX = 64 * 1024 * 1024
PAGE = 500
PAGE_LARGE = 50
"""For pages of things that may be large."""
COMPUTED_FIELDS = frozenset({"stats.duration_seconds"})
"""Not stored: it goes on by itself."""
SECONDS_FIELDS = frozenset({"usage.active_seconds", "stats.active_seconds"})
"""Kept in milliseconds."""

Item: TypeAlias = Record | Restored


class _Head(msgspec.Struct, frozen=True):
    """What tells lines apart."""

    type: str = ""
    id: str = ""
    session_id: str = ""
    event: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _Line(NamedTuple):
    number: int
    text: bytes
    head: _Head


class Storing(NamedTuple):
    """Where things go, and what they are held against."""

    workspace_id: str
    clock: Clock
    tools: Collection[str]
    """Built-in tools that this server can run."""


class Moving:
    """A file to import. Iterating reads it from its beginning; `read` counts what has been read by then."""

    def __init__(self, path: Path, storing: Storing) -> None:
        self._path = path
        self._storing = storing
        self._workspace_id = storing.workspace_id
        self._line = 0
        self.read: Counter[str] = Counter()

    async def into(self, archive: Archive) -> Counter[str]:
        """Import the file, wholly or not at all. Answers with what was there already, by kind."""
        try:
            return await archive.restore(self)
        except Conflict as error:
            raise Conflict(f"line {self._line}: {error.message}; nothing was imported") from error
        except Invalid as error:
            raise Invalid(f"{error.message}; nothing was imported") from error

    def __iter__(self) -> Iterator[Item]:
        self._workspace_id = self._storing.workspace_id
        self.read.clear()
        with self._path.open("rb") as file:
            lines = _Ahead(_lines(file))
            for line in lines:
                self._line = line.number
                with _At(line.number):
                    yield from self._items(line, lines)

    def _items(self, line: _Line, lines: _Ahead[_Line]) -> Iterator[Item]:
        match line.head.type:
            case "workspace":
                check_id("id", line.head.id)
                self._workspace_id = line.head.id
            case "agent":
                yield from self._agent(line, lines)
            case "environment":
                self.read["environments"] += 1
                yield self._environment(_exact(line.text, Environment))
            case "session":
                self.read["sessions"] += 1
                yield self._session(line, lines)
            case "" if line.head.event is not msgspec.UNSET:
                raise Invalid("session_id: an event must follow the line of its session")
            case other:
                raise Invalid(f"type: `{other}` is none of agent, environment, session, workspace, and it has no event")

    # ------------------------------------------------------------------------------------- agents, environments

    def _agent(self, line: _Line, lines: _Ahead[_Line]) -> Iterator[Record]:
        """All versions of one agent, in any order; the highest is the agent as it is now."""
        self.read["agents"] += 1
        latest = agent = _agent(line.text)
        while True:
            yield self._record(agents.VERSION_KIND, agent, parent_id=agent.id)
            latest = max(latest, agent, key=lambda each: each.version)
            following = lines.next_if(lambda other: other.head.type == "agent" and other.head.id == latest.id)
            if following is None:
                break
            self._line = following.number
            with _At(following.number):
                agent = _agent(following.text)
        yield self._record(agents.KIND, latest)

    def _record(self, kind: str, agent: Agent, parent_id: str | None = None) -> Record:
        return Record(
            kind=kind,
            id=agent.id if parent_id is None else agents.version_id(agent.id, agent.version),
            workspace_id=self._workspace_id,
            created_at=agent.created_at if parent_id is None else agent.updated_at,
            body=msgspec.json.encode(agent),
            archived_at=agent.archived_at if parent_id is None else None,
            parent_id=parent_id,
        )

    def _environment(self, environment: Environment) -> Record:
        check_id("id", environment.id)
        environment_rules.check(environment)
        return Record(
            kind=environments.KIND,
            id=environment.id,
            workspace_id=self._workspace_id,
            created_at=environment.created_at,
            body=msgspec.json.encode(environment),
            archived_at=environment.archived_at,
            unique_key=environment.name if environment.archived_at is None else None,
        )

    # ------------------------------------------------------------------------------------------------- sessions

    def _session(self, line: _Line, lines: _Ahead[_Line]) -> Restored:
        shown = _decode(line.text, SessionView)
        check_id("id", shown.id)
        same = {field: getattr(shown, field) for field in Session.__struct_fields__ if hasattr(shown, field)}
        session = Session(workspace_id=self._workspace_id, **same)
        history = History(session.id)

        def events() -> Iterator[RestoredEvent]:
            while (following := lines.next_if(lambda other: other.head.event is not msgspec.UNSET)) is not None:
                with _At(following.number):
                    yield from history.take(_body_of(following, session.id))
                self.read["events"] += 1
            yield from history.rest(shown)

        def state() -> SessionState:
            with _At(line.number):
                now = self._storing.clock.now()
                found = history.state(shown, now, self._storing.tools)
                _check_kept(line.text, view(session, found, session.updated_at))
                return found

        return Restored(session, events(), state)


# --------------------------------------------------------------------------------------------------------- lines


class _At:
    """Says in which line something went wrong, unless that is said already."""

    def __init__(self, number: int) -> None:
        self._prefix = f"line {number}: "

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: object) -> None:
        if isinstance(error, Invalid) and not error.message.startswith("line "):
            raise Invalid(self._prefix + error.message) from error
        if isinstance(error, msgspec.DecodeError):
            raise Invalid(self._prefix + _path_first(str(error))) from error


class _Ahead(Generic[T]):
    """An iterator that can look one item ahead."""

    def __init__(self, items: Iterator[T]) -> None:
        self._items = items
        self._waiting: list[T] = []

    def __iter__(self) -> Iterator[T]:
        while self._peek():
            yield self._waiting.pop()

    def next_if(self, wanted: Wanted[T]) -> T | None:
        """The next item if it is wanted."""
        return self._waiting.pop() if self._peek() and wanted(self._waiting[0]) else None

    def _peek(self) -> bool:
        if not self._waiting:
            self._waiting += [item for item in [next(self._items, None)] if item is not None]
        return bool(self._waiting)


def _lines(file: Readable) -> Iterator[_Line]:
    """Lines that say something, decoded just so far that they can be told apart."""
    number = 0
    while text := file.readline(LINE_BYTES_MAX + 1):
        number += 1
        if len(text) > LINE_BYTES_MAX:
            raise Invalid(f"line {number}: longer than {LINE_BYTES_MAX} bytes")
        if text.strip():
            with _At(number):
                yield _Line(number, text, msgspec.json.decode(text, type=_Head))
