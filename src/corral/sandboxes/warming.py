"""Local sandboxes that are started before they are needed: how a blank one is made, and how it becomes a session's.

When there are how many is decided in `warm.py`. A blank one is a session's directory under a name of its own, and all
of it is moved: open files, mounts and sockets do not mind. That comes before the daemon's gate is opened, so whenever
the server dies in between, the daemon dies too, and what was moved are empty files.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path

import anyio
import anyio.to_thread
import structlog

from corral.config_sections import SandboxSettings
from corral.domain.egress import EgressPolicy
from corral.domain.environment import Recipe
from corral.domain.placeholder import Substitution
from corral.errors import SandboxUnavailable
from corral.sandboxes.connection import Connection
from corral.sandboxes.directory import SessionDirectory
from corral.sandboxes.egress.outlet import Egress
from corral.sandboxes.launched import Launched
from corral.sandboxes.local import LocalSandboxes
from corral.sandboxes.warm import Blank, Warm

log = structlog.get_logger(__name__)


class WarmingSandboxes(LocalSandboxes):
    """Adds warm sandboxes to a backend whose daemons are children of ours, over directories that can be moved."""

    def __init__(self, settings: SandboxSettings, root: Path, egress: Egress | None = None) -> None:
        super().__init__(settings, root, egress)
        self._warm = Warm(settings, self)
        self._held: dict[str, Launched] = {}
        """Daemons of blank ones."""
        self._series.watch_warm(self._warm.count)

    @abstractmethod
    def builds(self) -> bool:
        """See `warm.Backend`."""

    def has(self, session_id: str) -> bool:
        """See `LocalSandboxes.has`."""
        return super().has(session_id) or self._warm.has(session_id)

    async def close(self) -> None:
        """See `LocalSandboxes.close`. Blank sandboxes end."""
        await self._warm.close()
        await super().close()

    async def _launch(
        self, directory: SessionDirectory, session_id: str, recipe: Recipe, secrets: Sequence[Substitution]
    ) -> tuple[Connection, bool]:
        with self._warm.starting():
            return await super()._launch(directory, session_id, recipe, secrets)

    async def _adopt(
        self, directory: SessionDirectory, session_id: str, recipe: Recipe, policy: EgressPolicy | None
    ) -> Launched | None:
        if not await anyio.to_thread.run_sync(directory.is_new):
            return None
        self._warm.asked(recipe)
        blank = self._warm.take(recipe)
        if blank is None:
            return None
        try:
            await anyio.to_thread.run_sync(self._take_over, directory, blank, policy)
        except (OSError, SandboxUnavailable) as error:
            # What was moved is empty, and may stay; the daemon is still the blank one's, and ends with it.
            log.warning("warm_sandbox_not_used", session_id=session_id, reason=str(error))
            return None
        else:
            self._children[session_id] = child = self._children.pop(blank.name)
            child.group = self.group(session_id)
            return self._held.pop(blank.name)
        finally:
            self._warm.leave(blank.name)

    def _take_over(self, directory: SessionDirectory, blank: Blank, policy: EgressPolicy | None) -> None:
        self._watch.require_space()
        directory.put_egress_policy(policy)
        group, former = self.group(directory.path.name), self.group(blank.name)
        if group is not None and former is not None:
            group.take_over(former)
        directory.adopt(blank.directory)

    async def make_blank(self, name: str, recipe: Recipe) -> Blank:
        """See `warm.Backend`."""
        directory, policy = SessionDirectory(self._root, name), self.egress_policy(recipe)
        await self.egress.start()
        await anyio.to_thread.run_sync(self._make, directory, policy)
        if policy is not None:
            await anyio.to_thread.run_sync(directory.make_egress)
        self._held[name] = launched = await self._start_daemon(directory, recipe)
        return Blank(directory, launched)

    async def discard(self, name: str) -> None:
        """See `warm.Backend`."""
        directory = SessionDirectory(self._root, name)
        if (launched := self._held.pop(name, None)) is not None:
            launched.release(None)
        await self._end(directory, name)
        await anyio.to_thread.run_sync(directory.remove)
