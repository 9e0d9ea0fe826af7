"""A sandbox whose limits are watched while it runs, and told to the model when it runs into them.

Memory and processes are limited by the kernel (`cgroups.py`); here its count of what it killed becomes a sentence in
the result. Disk is counted by us (`disk.py`): who is over has all its processes killed but the daemon, and may not
write until it is below; `bash` still runs, since something must remove files, but is stopped as soon as it adds any.

One task watches for all sandboxes of a server. It asks the file system once per round, often only while there is
little left and calls run, and ends when no sandbox is connected.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextvars import Context
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec
import structlog

from corral.config_sections import SandboxSettings
from corral.domain.content import TextBlock
from corral.errors import SandboxLost, SandboxUnavailable
from corral.interfaces.sandbox import SandboxCall, SandboxReply
from corral.sandboxes import disk
from corral.sandboxes.cgroups import Group
from corral.sandboxes.connection import Connection
from corral.sandboxes.directory import SessionDirectory

log = structlog.get_logger(__name__)

WRITERS = ("write", "edit")
SLACK_BYTES = 1024 * 1024
"""What a command may add while the sandbox is over its limit: it must be able to remove files."""
SLACK_FILES = 64
DISK_BYTES_PER_SECOND = 4 * 1024 * 1024 * 1024
"""Faster than anything writes; bounds what is written between two looks."""
LOOK_SECONDS_MIN, LOOK_SECONDS_MAX = 0.02, 1.0
MEBIBYTE = 1024 * 1024


class Limited:
    """Implements `Sandbox` over a connection."""

    def __init__(self, connection: Connection, directory: SessionDirectory, group: Group | None, watch: Watch) -> None:
        self.connection, self.directory, self._group, self._watch = connection, directory, group, watch
        settings = watch.settings
        self._memory_bytes_max = settings.memory_bytes_max
        self.account = disk.Account(directory.files, disk.Space(settings.disk_bytes_max, settings.disk_files_max))
        self.ceiling = self.account.limit
        """What it may use now; more than its limit while a command runs that may remove files."""
        self.calls = 0
        self.stops: list[str] = []
        """Why it was stopped, each time."""

    async def call(self, call: SandboxCall) -> SandboxReply:
        """See `Sandbox.call`."""
        refusal = None if call.resumed else await self._watch.refusal(self, call.operation)
        if refusal is not None:
            return SandboxReply(content=(TextBlock(text=f"{call.operation}: {refusal}"),), is_error=True)
        kills, stops = self._kills(), len(self.stops)
        self.calls += 1
        self._watch.wake_for(self)
        try:
            reply = await self.connection.call(call)
        except SandboxLost as error:
            raise SandboxLost(" ".join([error.message, *self._notes(kills, stops)])) from error
        finally:
            self.calls -= 1
        notes = self._notes(kills, stops)
        if not notes:
            return reply
        return msgspec.structs.replace(reply, content=(*reply.content, TextBlock(text="\n".join(notes))), is_error=True)

    async def forget(self, call_ids: Sequence[str]) -> None:
        """See `Sandbox.forget`."""
        await self.connection.forget(call_ids)

    def _kills(self) -> int:
        return 0 if self._group is None else self._group.oom_kills()

    def _notes(self, kills: int, stops: int) -> list[str]:
        notes = self.stops[stops:]
        if self._kills() > kills:
            notes.insert(0, f"killed: the sandbox's memory limit of {_size(self._memory_bytes_max)} was reached")
        return notes


class Watch:
    """The disk of all sandboxes of one server."""

    def __init__(self, settings: SandboxSettings, root: Path) -> None:
        self.settings, self._root = settings, root
        self._limited: dict[str, Limited] = {}
        self._task: asyncio.Task[None] | None = None
        self._woken = asyncio.Event()

    def over(
        self, session_id: str, connection: Connection, directory: SessionDirectory, group: Group | None
    ) -> Limited:
        """The sandbox at the end of `connection`, watched from now on."""
        limited = self._limited.get(session_id)
        if limited is None or limited.connection is not connection:
            limited = self._limited[session_id] = Limited(connection, directory, group, self)
        if self._task is None or self._task.done():
            # It belongs to all sandboxes together, so no request's task group can own it; `close` ends it.
            self._task = asyncio.create_task(self._watch(), name="disk watch", context=Context())
        return limited

    def wake_for(self, limited: Limited) -> None:
        """A call begins: look sooner than was planned if this sandbox has little left."""
        if _patience(limited) < LOOK_SECONDS_MAX:
            self._woken.set()

    async def close(self) -> None:
        """Watch no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def require_space(self) -> None:
        """Raise `SandboxUnavailable` when the host's disk is too full for another sandbox. Blocking."""
        full = self._full(disk.free(self._root))
        if full:
            raise SandboxUnavailable(full)

    async def refusal(self, limited: Limited, operation: str) -> str | None:
        """Why this call must not run; None when it may."""
        free_now = disk.free(self._root)
        if operation in WRITERS and (full := self._full(free_now)):
            return full
        account = limited.account
        if account.used.within(account.limit):
            limited.ceiling = account.limit
            return None
        used = await self._count(limited)
        if used.within(account.limit):
            limited.ceiling = account.limit
        elif operation in WRITERS:
            return f"refused: {self._excess(used)}; remove files with bash first"
        elif not limited.calls:
            limited.ceiling = disk.Space(used.bytes + SLACK_BYTES, used.files + SLACK_FILES)
        return None

    async def _watch(self) -> None:
        while self._limited:
            for session_id, limited in list(self._limited.items()):
                if limited.connection.lost:
                    self._limited.pop(session_id)
            try:
                seconds = await self._look()
            except FileNotFoundError:
                # A sandbox was destroyed meanwhile.
                seconds = LOOK_SECONDS_MIN
            except (OSError, SandboxUnavailable) as error:
                # Of one look only; the next one comes.
                log.warning("disk_not_counted", error=str(error))
                seconds = LOOK_SECONDS_MAX
            with anyio.move_on_after(seconds):
                self._woken.clear()
                await self._woken.wait()
                await asyncio.sleep(LOOK_SECONDS_MIN)

    async def _look(self) -> float:
        """Stop all who are over; how long until the next look."""
        free_now = disk.free(self._root)
        full = self._full(free_now)
        seconds = LOOK_SECONDS_MAX
        for limited in list(self._limited.values()):
            account = limited.account
            if full and limited.calls:
                before = account.used.bytes
                if (await self._count(limited)).bytes > before + SLACK_BYTES:
                    await self._stop(limited, full)
            elif account.suspect(free_now, limited.ceiling):
                used = await self._count(limited)
                if not used.within(limited.ceiling):
                    await self._stop(limited, self._excess(used))
            if limited.calls:
                seconds = min(seconds, _patience(limited))
        return seconds

    async def _count(self, limited: Limited) -> disk.Space:
        record = await anyio.to_thread.run_sync(limited.directory.record)
        return await anyio.to_thread.run_sync(limited.account.count, record.pid if record else None)

    async def _stop(self, limited: Limited, why: str) -> None:
        limited.stops.append(f"killed: {why}")
        log.warning("sandbox_stopped", session_id=limited.directory.path.name, reason=why)
        if not await limited.connection.purge():
            await anyio.to_thread.run_sync(limited.directory.kill_instance)
        await self._count(limited)

    def _excess(self, used: disk.Space) -> str:
        settings = self.settings
        if used.bytes > settings.disk_bytes_max:
            return f"the sandbox's disk limit of {_size(settings.disk_bytes_max)} is reached ({_size(used.bytes)} used)"
        return f"the sandbox's limit of {settings.disk_files_max} files is reached ({used.files} there)"

    def _full(self, free_now: disk.Space) -> str | None:
        least = self.settings.disk_free_bytes_min
        if free_now.bytes >= least:
            return None
        return f"the host's disk is nearly full: {_size(free_now.bytes)} are free, and {_size(least)} are kept"


def _patience(limited: Limited) -> float:
    """How long nobody need look, however fast it writes."""
    left = limited.ceiling.bytes - limited.account.used.bytes
    return min(LOOK_SECONDS_MAX, max(LOOK_SECONDS_MIN, left / DISK_BYTES_PER_SECOND))


def _size(count: int) -> str:
    return f"{count / MEBIBYTE:,.0f} MiB" if count >= MEBIBYTE else f"{count} bytes"
