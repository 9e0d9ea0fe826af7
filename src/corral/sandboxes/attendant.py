"""Looks after the sandboxes of one machine while its server runs: puts away those that rest, removes what is nobody's.

A sandbox announces itself when it has not been used for a while, so nothing is looked through for that. What a crash,
a full disk or a deleted session left behind is looked for at start and from time to time, among what lies on this disk:
the sessions that rest for good have nothing there. How something is put away or removed is the backend's part.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Protocol

import anyio
import anyio.to_thread
import structlog

from corral.config_sections import SandboxSettings
from corral.errors import CorralError
from corral.interfaces.sandbox import Upkeep
from corral.sandboxes.checkpoints import Checkpoints
from corral.sandboxes.directory import SessionDirectory, give_back_lost_uids, remove_tree
from corral.sandboxes.series import SandboxSeries

log = structlog.get_logger(__name__)


class Backend(Protocol):
    """Whose sandboxes are looked after."""

    def has(self, session_id: str) -> bool:
        """Whether this server has the session's sandbox in use."""
        ...

    async def put_away(self, session_id: str) -> None:
        """Put the session's sandbox away, unless it is used again. Raises `CorralError` when that fails."""
        ...

    async def destroy(self, session_id: str) -> None:
        """Remove the session's sandbox and all that is kept for it."""
        ...


class Attendant:
    """See the module."""

    def __init__(self, settings: SandboxSettings, root: Path, backend: Backend, series: SandboxSeries) -> None:
        self._settings, self._root, self._backend, self._series = settings, root, backend, series
        self._resting: asyncio.Queue[str] = asyncio.Queue()
        """Sessions whose sandboxes want to be put away; each at most a few times."""
        self._first = True

    def announce(self, session_id: str) -> None:
        """This session's sandbox is not used."""
        self._resting.put_nowait(session_id)

    @asynccontextmanager
    async def attending(self, upkeep: Upkeep, checkpoints: Checkpoints) -> AsyncGenerator[None]:
        """Work in the background while open."""
        # A task of its own rather than a task group here: a group would wrap whatever the server's body raises. It is
        # ended through the scope and not by cancelling the task, so that what must not be cut in two is finished.
        scope = anyio.CancelScope()
        work = asyncio.create_task(self._work(scope, upkeep, checkpoints), name="sandboxes attended")
        work.add_done_callback(_report)
        try:
            yield
        finally:
            scope.cancel()
            await work

    async def _work(self, scope: anyio.CancelScope, upkeep: Upkeep, checkpoints: Checkpoints) -> None:
        with scope:
            async with anyio.create_task_group() as tasks:
                for _ in range(self._settings.checkpoints_parallel_max):
                    tasks.start_soon(self._put_away)
                tasks.start_soon(self._look, upkeep, checkpoints)

    async def _put_away(self) -> None:
        while True:
            await self._try_put_away(await self._resting.get())

    async def _try_put_away(self, session_id: str) -> None:
        try:
            await self._backend.put_away(session_id)
        except (CorralError, OSError) as error:
            # A full disk, a blob store that does not answer: the files stay here, and are looked for again later.
            log.warning("sandbox_not_put_away", session_id=session_id, reason=str(error))
            self._series.checkpoint("failed")

    async def _look(self, upkeep: Upkeep, checkpoints: Checkpoints) -> None:
        while True:
            try:
                await self.reap(upkeep, checkpoints)
            except (CorralError, OSError) as error:
                log.warning("sandboxes_not_reaped", reason=str(error))
            await anyio.sleep(self._settings.reap_seconds)

    async def reap(self, upkeep: Upkeep, checkpoints: Checkpoints) -> None:
        """Look once for what is to be removed or put away."""
        await anyio.to_thread.run_sync(self._empty_trash)
        for session_id in await anyio.to_thread.run_sync(_names, self._root / "sessions"):
            if self._backend.has(session_id):
                continue
            if await upkeep.owner(session_id) is None:
                await self._backend.destroy(session_id)
                log.info("sandbox_reaped", session_id=session_id)
            elif await anyio.to_thread.run_sync(self._rests, session_id):
                await self._try_put_away(session_id)
        await anyio.to_thread.run_sync(self._give_back_uids)
        await self._look_at_checkpoints(upkeep, checkpoints)

    async def _look_at_checkpoints(self, upkeep: Upkeep, checkpoints: Checkpoints) -> None:
        if self._first:
            # Only a server that died leaves these; all others are dropped with their session.
            self._first = False
            async for kept in checkpoints.all():
                if await upkeep.owner(kept.session_id) is None:
                    await checkpoints.drop(kept.session_id)
                else:
                    await checkpoints.finish(kept)
        oldest = upkeep.clock.now() - timedelta(seconds=self._settings.lifetime_seconds)
        async for kept in checkpoints.all(made_before=oldest):
            if not SessionDirectory(self._root, kept.session_id).files.exists():
                checkpoint = kept.checkpoint
                await checkpoints.expire(
                    kept.session_id,
                    kept.workspace_id,
                    generation=checkpoint.generation + 1,
                    created_at=checkpoint.created_at,
                )

    def _rests(self, session_id: str) -> bool:
        """Whether nothing runs there, nor was started lately; one that runs ends by itself."""
        directory = SessionDirectory(self._root, session_id)
        if directory.is_running():
            return False
        changed = directory.server.stat().st_mtime if directory.server.exists() else 0.0
        return time.time() - changed >= self._settings.checkpoint_seconds

    def _empty_trash(self) -> None:
        trash = self._root / "trash"
        for name in _names(trash):
            remove_tree(trash / name)

    def _give_back_uids(self) -> None:
        sessions = self._root / "sessions"
        give_back_lost_uids(self._root, {uid for name in _names(sessions) for uid in _owners(sessions / name)})


def _report(work: asyncio.Task[None]) -> None:
    """A bug must not wait until the server stops to be heard of."""
    if not work.cancelled() and (error := work.exception()) is not None:
        log.error("sandboxes_not_attended", exc_info=error)


def _names(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []


def _owners(session: Path) -> set[int]:
    try:
        return {entry.stat(follow_symlinks=False).st_uid for entry in os.scandir(session)}
    except FileNotFoundError:
        return set()
