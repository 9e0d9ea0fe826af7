"""What becomes of a session's files between two sandboxes: put away when it rests, brought back when it goes on.

Every step leaves either the directory or the checkpoint usable, whenever the server dies: the archive is durable and
recorded before the directory goes, and what is brought back takes its place when it is whole. Which of the two is newer
is told by their generations. The caller holds the session's locks, and no instance runs over the files.

When that is done is decided in `attendant.py`; what the archive and its record are, in `packing.py`, `checkpoints.py`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import datetime, timedelta
from typing import NamedTuple

import anyio
import anyio.to_thread
import msgspec
import structlog

from corral.config_sections import SandboxSettings
from corral.domain.file import Output
from corral.errors import Elsewhere, NotFound, SandboxUnavailable
from corral.interfaces.sandbox import Upkeep
from corral.sandboxes import directory_files
from corral.sandboxes.checkpoints import Checkpoint, Checkpoints, Kept
from corral.sandboxes.directory import PACKED_FOLDERS, Life, SessionDirectory
from corral.sandboxes.hosts import MOVED, MOVED_RESTORED, Hosts
from corral.sandboxes.packing import pack, unpack
from corral.sandboxes.series import SandboxSeries

log = structlog.get_logger(__name__)

OUTPUTS_NOTED_MAX = 1_000
RESTORED = (
    "[The sandbox had rested and was started anew. Its files are as they were, but for /tmp; background processes and "
    "the shell's variables and directory are gone.]"
)
RESTARTED = (
    "[The sandbox had stopped and was started anew. Its files were kept, but for /tmp; background processes and the "
    "shell's variables and directory are gone.]"
)
EXPIRED = "[The session's sandbox had become too old and was removed, with its files. This is a fresh one.]"
FILES_LOST = "[The files of the session's sandbox could not be brought back. This is a fresh one.]"


class _Known(NamedTuple):
    """What there is of a session's files."""

    has_files: bool
    life: Life | None
    kept: Kept | None

    @property
    def generation(self) -> int:
        """Of the files on disk; -1 without any."""
        return -1 if not self.has_files else self.life.generation if self.life else 0

    @property
    def kept_generation(self) -> int:
        """Of the checkpoint; 0 without any."""
        return self.kept.checkpoint.generation if self.kept else 0

    @property
    def created_at(self) -> datetime | None:
        """When the sandbox was made; None when that is not known."""
        if self.has_files and self.life:
            return self.life.created_at
        return self.kept.checkpoint.created_at if self.kept else None


class Lifecycle:
    """Puts files away and brings them back, once it knows where to."""

    def __init__(self, settings: SandboxSettings, series: SandboxSeries, *, as_server: bool) -> None:
        self._settings, self._series = settings, series
        self._as_server = as_server
        """Whether sandboxes run as the server's own user, so that files in them may belong to it."""
        self._upkeep: Upkeep | None = None
        self._checkpoints: Checkpoints | None = None
        self._hosts: Hosts | None = None

    def keep(self, upkeep: Upkeep | None) -> None:
        """From now on files are put away; or no longer."""
        self._upkeep = upkeep
        self._checkpoints = None if upkeep is None else Checkpoints(upkeep)
        self._hosts = Hosts(upkeep.records, upkeep.clock, upkeep.host) if upkeep and upkeep.host is not None else None

    @property
    def checkpoints(self) -> Checkpoints | None:
        """Where files are put, if they are."""
        return self._checkpoints

    async def revive(self, directory: SessionDirectory, session_id: str) -> None:
        """See to it that the directory holds the session's files as they should be now. Raises `SandboxUnavailable`."""
        if self._upkeep is None:
            return
        moved = await self._is_elsewhere(session_id)
        if moved:
            await anyio.to_thread.run_sync(directory.drop_files)  # older than what is there
        await self._bring_up_to_date(directory, session_id)
        if moved:
            await self._note_moved(directory)
        hosts = self._hosts
        if hosts is not None and hosts.here and (moved or await hosts.of(session_id) is None):
            workspace_id = await self._upkeep.owner(session_id)
            if workspace_id is not None:
                await hosts.take(session_id, workspace_id)

    async def is_moved_here(self, session_id: str) -> bool:
        """Whether the session goes on here because the host of its sandbox does not answer."""
        return await self._is_elsewhere(session_id)

    async def require_here(self, directory: SessionDirectory, session_id: str) -> None:
        """See to it that what lies in the directory is not older than what is elsewhere. Raises `Elsewhere`."""
        if self._hosts is None:
            return
        host = await self._hosts.of(session_id)
        if host not in (None, self._hosts.here):
            raise Elsewhere
        known = await self._know(directory, session_id)
        if host is None and known.has_files and known.generation < known.kept_generation:
            await anyio.to_thread.run_sync(directory.drop_files)

    async def restore(self, directory: SessionDirectory, session_id: str) -> None:
        """Have the files of a session that rests on disk, for reading; its sandbox does not move here."""
        if self._upkeep is not None:
            await self._bring_up_to_date(directory, session_id)

    async def _is_elsewhere(self, session_id: str) -> bool:
        return self._hosts is not None and await self._hosts.is_elsewhere(session_id)

    async def _note_moved(self, directory: SessionDirectory) -> None:
        life = await anyio.to_thread.run_sync(directory.life)
        assert life is not None, "it was just written"
        restored = life.notice == RESTORED
        # A generation of its own, so that a call which was sent before is not run again, and this is the newest.
        life = msgspec.structs.replace(
            life, generation=life.generation + 1, unused=False, notice=MOVED_RESTORED if restored else MOVED
        )
        await anyio.to_thread.run_sync(directory.put_life, life)

    async def _bring_up_to_date(self, directory: SessionDirectory, session_id: str) -> None:
        assert self._upkeep is not None
        known = await self._know(directory, session_id)
        now = self._upkeep.clock.now()
        if self._has_expired(known):
            await self._expire(directory, session_id, known)
            known = await self._know(directory, session_id)
        if known.kept is not None and known.kept_generation > known.generation:
            if known.kept.checkpoint.archive is not None:
                await self._restore(directory, known.kept)
            elif not known.has_files:
                life = Life(created_at=now, generation=known.kept_generation, notice=EXPIRED)
                await anyio.to_thread.run_sync(directory.put_life, life)
        elif known.life is None or not known.has_files:
            life = Life(created_at=now, generation=known.kept_generation)
            await anyio.to_thread.run_sync(directory.put_life, life)

    async def put_away(self, directory: SessionDirectory, session_id: str) -> None:
        """Pack the session's files into a checkpoint and remove the directory. When it raises `SandboxUnavailable` or
        `Unavailable`, or is cancelled, the directory is as it was."""
        if self._upkeep is None or self._checkpoints is None:
            return
        known = await self._know(directory, session_id)
        workspace_id = await self._upkeep.owner(session_id)
        elsewhere = await self._is_elsewhere(session_id)
        if workspace_id is None:
            await self._checkpoints.drop(session_id)
        elif elsewhere:
            log.info("sandbox_left_behind", session_id=session_id)  # another machine has gone on without it
        elif self._has_expired(known):
            await self._expire(directory, session_id, known)
        elif known.has_files and known.generation >= known.kept_generation and not _is_unchanged(known):
            await self._save(directory, session_id, workspace_id, known)
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(directory.remove)
            if self._hosts is not None:
                await self._hosts.leave(session_id)

    async def noted_outputs(self, session_id: str) -> tuple[Output, ...] | None:
        """What a session that rests has among its outputs, as far as that is known without its files."""
        kept = await self._checkpoints.find(session_id) if self._checkpoints else None
        return kept.checkpoint.outputs if kept else None

    async def has_archive(self, session_id: str) -> bool:
        """Whether files of this session were put away."""
        kept = await self._checkpoints.find(session_id) if self._checkpoints else None
        return kept is not None and kept.checkpoint.archive is not None

    async def drop(self, session_id: str) -> None:
        """The session is gone: let go of its checkpoint."""
        if self._checkpoints is not None:
            await self._checkpoints.drop(session_id)
        if self._hosts is not None:
            await self._hosts.leave(session_id, anywhere=True)

    async def _know(self, directory: SessionDirectory, session_id: str) -> _Known:
        assert self._checkpoints is not None
        kept = await self._checkpoints.find(session_id)
        has_files, life = await anyio.to_thread.run_sync(lambda: (directory.files.exists(), directory.life()))
        return _Known(has_files, life, kept)

    def _has_expired(self, known: _Known) -> bool:
        assert self._upkeep is not None
        if known.created_at is None or (not known.has_files and known.kept and not known.kept.checkpoint.archive):
            return False
        return self._upkeep.clock.now() - known.created_at > timedelta(seconds=self._settings.lifetime_seconds)

    async def _expire(self, directory: SessionDirectory, session_id: str, known: _Known) -> None:
        assert self._upkeep is not None and self._checkpoints is not None and known.created_at is not None
        workspace_id = known.kept.workspace_id if known.kept else await self._upkeep.owner(session_id)
        if workspace_id is not None:
            generation = max(known.generation, known.kept_generation) + 1
            await self._checkpoints.expire(session_id, workspace_id, generation=generation, created_at=known.created_at)
        await anyio.to_thread.run_sync(directory.drop_files)
        log.info("sandbox_expired", session_id=session_id)
        self._series.checkpoint("expired")

    async def _save(self, directory: SessionDirectory, session_id: str, workspace_id: str, known: _Known) -> None:
        assert self._upkeep is not None and self._checkpoints is not None
        outputs = await anyio.to_thread.run_sync(directory_files.outputs, directory)
        uid = self._user(directory)
        try:
            with anyio.fail_after(self._settings.checkpoint_seconds_max):
                async with aclosing(pack(directory.files, PACKED_FOLDERS, uid, self._settings)) as chunks:
                    await self._checkpoints.save(
                        session_id,
                        workspace_id,
                        chunks,
                        generation=max(known.generation, known.kept_generation) + 1,
                        created_at=known.created_at or self._upkeep.clock.now(),
                        outputs=outputs if outputs is not None and len(outputs) <= OUTPUTS_NOTED_MAX else None,
                    )
        except TimeoutError as error:
            raise SandboxUnavailable("Putting the sandbox's files away takes too long.") from error
        log.info("sandbox_put_away", session_id=session_id)
        self._series.checkpoint("put_away")

    async def _restore(self, directory: SessionDirectory, kept: Kept) -> None:
        checkpoint, limits = kept.checkpoint, self._settings
        begun = await anyio.to_thread.run_sync(
            lambda: directory.begin_files(uid_first=limits.uid_first, uid_count=limits.uid_count)
        )
        life = Life(created_at=checkpoint.created_at, generation=checkpoint.generation, unused=True, notice=RESTORED)
        try:
            with anyio.fail_after(limits.checkpoint_seconds_max):
                async with aclosing(self._verified(checkpoint)) as chunks:
                    await unpack(chunks, begun, PACKED_FOLDERS, self._user(directory, begun.stat().st_uid), limits)
        except TimeoutError as error:
            raise SandboxUnavailable("Bringing the sandbox's files back takes too long.") from error
        except NotFound:
            log.error("checkpoint_without_bytes", session_id=kept.session_id)
            life = Life(created_at=life.created_at, generation=life.generation, notice=FILES_LOST)
        await anyio.to_thread.run_sync(directory.take_files, begun, life)
        log.info("sandbox_brought_back", session_id=kept.session_id)
        self._series.checkpoint("brought_back")

    async def _verified(self, checkpoint: Checkpoint) -> AsyncGenerator[bytes]:
        """The archive's bytes. Raises `SandboxUnavailable` at the end when they are not those that were stored."""
        assert self._checkpoints is not None and checkpoint.archive is not None
        digest = hashlib.sha256()
        async with aclosing(self._checkpoints.read(checkpoint)) as chunks:
            async for chunk in chunks:
                digest.update(chunk)
                yield chunk
        if digest.hexdigest() != checkpoint.archive.sha256:
            raise SandboxUnavailable("The sandbox's files cannot be brought back: what was stored has changed.")

    def _user(self, directory: SessionDirectory, owner: int | None = None) -> int:
        if self._as_server:
            return os.geteuid()
        return directory.owner() if owner is None else owner


def _is_unchanged(known: _Known) -> bool:
    return bool(known.life and known.life.unused and known.generation == known.kept_generation)


def in_use(life: Life) -> Life:
    """The same files, about to be used by a sandbox."""
    return msgspec.structs.replace(life, unused=False)
