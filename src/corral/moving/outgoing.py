"""Moving out: everything of a workspace, or of all, as lines that `incoming.py` reads.

Objects are written as the API returns them. The store must not change meanwhile, which holds because whoever moves out
has it alone.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator

import msgspec

from corral.api import agents
from corral.domain.agent import Agent
from corral.domain.environment import ENVIRONMENT_KIND
from corral.domain.query import EventsQuery, SessionsQuery
from corral.domain.session import view
from corral.interfaces.clock import Clock
from corral.interfaces.event_log import Snapshot
from corral.interfaces.store import Store
from corral.interfaces.vault import Sealing
from corral.moving.secrets import all_records, unsealed

PAGE = 100
EVENTS_PAGE = 1_000

_encode = msgspec.json.Encoder().encode


class Source:
    """What is exported, and from where."""

    def __init__(self, store: Store, clock: Clock, sealing: Sealing | None = None) -> None:
        """With `sealing`, vaults go along and their secrets are written in clear; else there is nothing of them."""
        self._log, self._records, self._archive = store.log, store.records, store.archive
        self._clock, self._sealing = clock, sealing

    async def lines(self, workspace_id: str | None) -> AsyncGenerator[bytes]:
        """Every object of the workspace as a line; of all workspaces, each under a line that names it."""
        for each in [workspace_id] if workspace_id else await self._archive.workspaces():
            yield _line({"type": "workspace", "id": each})
            async for record in all_records(self._records, ENVIRONMENT_KIND, each):
                yield record.body + b"\n"
            if self._sealing is not None:
                async for item in unsealed(self._records, self._sealing, each):
                    yield _line(item)
            async for record in all_records(self._records, agents.KIND, each):
                latest = msgspec.json.decode(record.body, type=Agent)
                async for version in all_records(self._records, agents.VERSION_KIND, each, parent_id=record.id):
                    agent = msgspec.json.decode(version.body, type=Agent)
                    yield _line(msgspec.structs.replace(agent, archived_at=latest.archived_at))
            async for snapshot in self._all_sessions(each):
                yield self._session(snapshot)
                async for line in self._events(snapshot.session.id):
                    yield line

    def _session(self, snapshot: Snapshot) -> bytes:
        session, state = snapshot
        # A session that was running has not been since its last event: its server has stopped.
        at = self._clock.now() if state.running_since is None else state.last_at or state.running_since
        return _line(view(session, state, at))

    async def _all_sessions(self, workspace_id: str) -> AsyncGenerator[Snapshot]:
        query = SessionsQuery(workspace_id=workspace_id, limit=PAGE, order="asc", include_archived=True)
        while page := await self._log.sessions(query):
            for snapshot in page:
                yield snapshot
            last = page[-1].session
            query = msgspec.structs.replace(query, beyond=(last.created_at, last.id))

    async def _events(self, session_id: str) -> AsyncGenerator[bytes]:
        query = EventsQuery(limit=EVENTS_PAGE)
        while page := await self._log.events(session_id, query):
            for logged in page:
                yield _line({"session_id": session_id, "event": msgspec.Raw(logged.body)})
            last = page[-1]
            query = msgspec.structs.replace(query, beyond=(last.event.processed_at is None, last.seq))


def _line(value: object) -> bytes:
    return _encode(value) + b"\n"
