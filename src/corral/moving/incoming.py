"""Moving in: a file of objects as the API returns them, turned into what a store restores.

A line is an agent's version, an environment, a vault or a session; or `{"session_id": ..., "event": ...}`, an event of
the session above it; or `{"vault_id": ..., "credential": ..., "secret": ...}`, what the vault above it holds; or
`{"type": "workspace", "id": ...}`, where the lines below it belong. What cannot be kept exactly as it is, is refused
with its line and field, and then nothing is stored. docs/moving.md says it for users.

What a history means is `domain/restored.py`; where records are kept is decided in `api/`; sealing is `secrets.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import msgspec
from msgspec import UNSET

from corral.api import agents
from corral.domain import agent as agent_rules
from corral.domain import environment as environment_rules
from corral.domain.agent import Agent
from corral.domain.environment import ENVIRONMENT_KIND, Environment
from corral.domain.query import Record
from corral.domain.restored import History, RestoredEvent, check_id
from corral.domain.session import Session, SessionState, SessionView, view
from corral.domain.vault import VAULT_KIND, Vault
from corral.errors import Conflict, Invalid
from corral.interfaces.clock import Clock
from corral.interfaces.store import Archive, Depending, Moved, Restored
from corral.interfaces.vault import Sealing
from corral.moving.lines import Ahead, At, Line, check_kept, exactly, read
from corral.moving.secrets import Held, Taking

MISSED_MAX = 1_000
"""More names than that are not told."""


class Destination(NamedTuple):
    """Where things go, and what they are held against."""

    archive: Archive
    clock: Clock
    tools: Collection[str]
    """Built-in tools that this server can run."""
    workspace_id: str
    """For lines above the first that names a workspace."""
    sealing: Sealing


class Import:
    """A file to be imported. Iterating reads it from its beginning, as often as the store needs it."""

    def __init__(self, path: Path, destination: Destination) -> None:
        self._path = path
        self._destination = destination
        self._workspace_id = destination.workspace_id
        self._line = 0
        self.read: Counter[str] = Counter()
        """What has been read, in the words of the summary."""
        self.vaults_missed: set[tuple[str, str]] = set()
        """Workspaces and ids of vaults that sessions use and that were not there when these came; not more than
        `MISSED_MAX`."""

    async def run(self) -> Counter[str]:
        """Import all, or nothing. Answers with what was there already, by kind. Raises `Invalid`, `Conflict`."""
        try:
            return await self._destination.archive.restore(self)
        except Conflict as error:
            raise Conflict(f"line {self._line}: {error.message}; nothing was imported") from error
        except Invalid as error:
            raise Invalid(f"{error.message}; nothing was imported") from error

    def __iter__(self) -> Iterator[Moved]:
        self._workspace_id = self._destination.workspace_id
        self.read.clear()
        self.vaults_missed.clear()
        with self._path.open("rb") as file:
            lines = Ahead(read(file))
            for line in lines:
                self._line = line.number
                with At(line.number):
                    yield from self._items(line, lines)

    def _items(self, line: Line, lines: Ahead[Line]) -> Iterator[Moved]:
        match line.head.type:
            case "workspace":
                check_id("id", line.head.id)
                self._workspace_id = line.head.id
            case "agent":
                yield from self._agent(line, lines)
            case "environment":
                yield self._environment(exactly(line.text, Environment))
            case "session":
                yield from self._session(line, lines)
            case "vault":
                yield from self._vault(line, lines)
            case "" if line.head.credential is not UNSET:
                raise Invalid("vault_id: a credential must stand below the line of its vault")
            case "" if line.head.event is not UNSET:
                raise Invalid("session_id: an event must stand below the line of its session")
            case other:
                raise Invalid(f"type: `{other}` is none of agent, environment, session, vault and workspace")

    # ------------------------------------------------------------------------------------- agents, environments

    def _agent(self, line: Line, lines: Ahead[Line]) -> Iterator[Record]:
        """All versions of one agent, in any order; the highest is the agent as it is now."""
        self.read["agents"] += 1
        latest: Agent | None = None
        following: Line | None = line
        while following is not None:
            self._line = following.number
            with At(following.number):
                agent = exactly(following.text, Agent)
                check_id("id", agent.id)
                agent_rules.check(agent)
            yield self._version(agent)
            latest = agent if latest is None else max(latest, agent, key=lambda each: each.version)
            following = lines.next_if(lambda other: other.head.type == "agent" and other.head.id == line.head.id)
        assert latest is not None, "the first line is a version"
        yield Record(
            kind=agents.KIND,
            id=latest.id,
            workspace_id=self._workspace_id,
            created_at=latest.created_at,
            body=msgspec.json.encode(latest),
            archived_at=latest.archived_at,
        )

    def _version(self, agent: Agent) -> Record:
        return Record(
            kind=agents.VERSION_KIND,
            id=agents.version_id(agent.id, agent.version),
            workspace_id=self._workspace_id,
            created_at=agent.updated_at,
            # The agent alone says whether it is archived, with all its versions.
            body=msgspec.json.encode(msgspec.structs.replace(agent, archived_at=None)),
            parent_id=agent.id,
        )

    def _environment(self, environment: Environment) -> Record:
        self.read["environments"] += 1
        check_id("id", environment.id)
        environment_rules.check(environment)
        return Record(
            kind=ENVIRONMENT_KIND,
            id=environment.id,
            workspace_id=self._workspace_id,
            created_at=environment.created_at,
            body=msgspec.json.encode(environment),
            archived_at=environment.archived_at,
            unique_key=environment.name if environment.archived_at is None else None,
        )

    # --------------------------------------------------------------------------------------------------- vaults

    def _vault(self, line: Line, lines: Ahead[Line]) -> Iterator[Depending]:
        self.read["vaults"] += 1
        vault = exactly(line.text, Vault)
        check_id("id", vault.id)
        taking = Taking(self._destination.sealing, self._workspace_id, vault)
        yield taking.vault()
        while (following := lines.next_if(lambda other: other.head.credential is not UNSET)) is not None:
            self.read["credentials"] += 1
            self._line = following.number
            with At(following.number):
                held = exactly(following.text, Held)
                check_id("credential.id", held.credential.id)
                yield taking.credential(held)

    # ------------------------------------------------------------------------------------------------- sessions

    def _session(self, line: Line, lines: Ahead[Line]) -> Iterator[Depending | Restored]:
        self.read["sessions"] += 1
        shown = msgspec.json.decode(line.text, type=SessionView)
        check_id("id", shown.id)
        _check_usage(shown)
        session = Session(
            id=shown.id,
            workspace_id=self._workspace_id,
            agent=shown.agent,
            environment_id=shown.environment_id,
            created_at=shown.created_at,
            updated_at=shown.updated_at,
            archived_at=shown.archived_at,
            title=shown.title,
            metadata=shown.metadata,
            budget=shown.budget,
            deployment_id=shown.deployment_id,
            vault_ids=shown.vault_ids,
        )
        for vault_id in shown.vault_ids:
            yield Depending(VAULT_KIND, vault_id, partial(self._miss, session.workspace_id, vault_id))
        history = History(session.id)

        def events() -> Iterator[RestoredEvent]:
            while (following := lines.next_if(lambda other: other.head.event is not UNSET)) is not None:
                self.read["events"] += 1
                with At(following.number, "event."):
                    rows = history.take(_body(following, session.id))
                yield from rows
            yield from history.rest(shown)

        def state() -> SessionState:
            with At(line.number):
                found = history.state(shown, self._destination.clock.now(), self._destination.tools)
                check_kept(line.text, view(session, found, session.updated_at))
                return found

        yield Restored(session, events(), state)

    def _miss(self, workspace_id: str, vault_id: str, here: Record | None) -> None:
        if (here is None or here.workspace_id != workspace_id) and len(self.vaults_missed) < MISSED_MAX:
            self.vaults_missed.add((workspace_id, vault_id))


def _body(line: Line, session_id: str) -> bytes:
    """The event of a line, as it came but for spaces."""
    if line.head.session_id != session_id:
        with At(line.number):
            raise Invalid(f"session_id: events of {session_id} stand here; the line of their session comes first")
    assert isinstance(line.head.event, msgspec.Raw)
    return msgspec.json.format(bytes(line.head.event), indent=-1)


def _check_usage(shown: SessionView) -> None:
    cost = shown.usage.list_cost
    if cost is not None and not (cost.amount.isascii() and cost.amount.isdecimal()):
        raise Invalid("usage.list_cost.amount: must be a whole number of cents as text")
