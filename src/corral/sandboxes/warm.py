"""Warm sandboxes: a few that run already, blank, for sessions that are still to come.

A blank one was started for a recipe and for nobody: it has a directory, a host uid and a process of its own that no
session has used. Its daemon is held at its gate (`launched.py`), without files, without secrets and without anybody at
the other end of its way out, until `local.py` makes it a session's. What a session has used never comes back.

Blank ones are made after sandboxes were, when no other is being made, and end when their recipe is not asked for. They
die with the server, since their gate does; their directories then are nobody's, and go with those of deleted sessions.
"""

from __future__ import annotations

import asyncio
import secrets
import subprocess
from collections import OrderedDict
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import Context
from typing import NamedTuple, Protocol

import anyio
import msgspec
import structlog

from corral.config_sections import SandboxSettings
from corral.domain.environment import Recipe
from corral.errors import CorralError
from corral.sandboxes.directory import SessionDirectory
from corral.sandboxes.launched import Launched

log = structlog.get_logger(__name__)

QUIET_SECONDS = 1.0
"""Nothing is made sooner than this after somebody waited for a sandbox."""


class Blank(NamedTuple):
    """A sandbox that is no session's."""

    directory: SessionDirectory
    launched: Launched

    @property
    def name(self) -> str:
        """Of its directory, in place of a session's id."""
        return self.directory.path.name


class Backend(Protocol):
    """Whose sandboxes these are."""

    async def make_blank(self, name: str, recipe: Recipe) -> Blank:
        """A new one that is held. Raises `CorralError` and what the system raises."""
        ...

    async def discard(self, name: str) -> None:
        """End the blank one of this name, if it is still blank, and remove what is left of it."""
        ...

    def builds(self) -> bool:
        """Whether packages are being installed, so that the machine has enough to do."""
        ...


class Warm:
    """The blank sandboxes of one server, by recipe."""

    def __init__(self, settings: SandboxSettings, backend: Backend) -> None:
        self._settings, self._backend = settings, backend
        self._each_max = min(settings.warm, settings.warm_total_max)
        self._blanks: OrderedDict[Recipe, list[Blank]] = OrderedDict()
        """What was asked for last is last."""
        self._asked: dict[Recipe, float] = {}
        self._starting, self._started_at = 0, 0.0
        self._names: set[str] = set()
        """Of directories that are here because of us."""
        self._leaving: list[str] = []
        self._scope: anyio.CancelScope | None = None
        self._task: asyncio.Task[None] | None = None
        self._woken = asyncio.Event()
        self._closed = False

    def count(self) -> int:
        """How many there are to be taken."""
        return sum(map(len, self._blanks.values()))

    def has(self, name: str) -> bool:
        """Whether a directory of this name is one of ours."""
        return name in self._names

    def take(self, recipe: Recipe) -> Blank | None:
        """One that nobody else gets, if there is any; `leave` takes what is left of it."""
        blanks = self._blanks.get(_kind(recipe), [])
        while blanks:
            blank = blanks.pop()
            if blank.launched.runs():
                return blank
            self.leave(blank.name)
        return None

    def leave(self, name: str) -> None:
        """Remove what is left of one that was taken, some time soon."""
        self._leaving.append(name)
        self._wake()

    def asked(self, recipe: Recipe) -> None:
        """A session just got a new sandbox by this recipe; so may the next one."""
        if not self._each_max:
            return
        kind = _kind(recipe)
        self._blanks.setdefault(kind, [])
        self._blanks.move_to_end(kind)
        self._asked[kind] = asyncio.get_running_loop().time()
        self._wake()

    @contextmanager
    def starting(self) -> Generator[None]:
        """Somebody waits for a sandbox inside; blank ones can wait longer."""
        self._starting += 1
        try:
            yield
        finally:
            self._starting -= 1
            self._started_at = asyncio.get_running_loop().time()

    def _wake(self) -> None:
        self._woken.set()
        if not self._closed and (self._task is None or self._task.done()):
            # It outlives the request that came first, so no request's task group can own it; `close` awaits it.
            self._scope = anyio.CancelScope()
            self._task = asyncio.create_task(self._keep(self._scope), name="warm sandboxes", context=Context())

    async def close(self) -> None:
        """End them all. Idempotent."""
        self._closed = True
        if self._scope is not None and self._task is not None:
            self._scope.cancel()
            await asyncio.wait([self._task])
        for kind in list(self._blanks):
            self._drop(kind)
        await self._discard()

    async def _keep(self, scope: anyio.CancelScope) -> None:
        """Make what was asked for lately, end what was not; until nothing is left to look after."""
        with scope:
            while self._blanks or self._leaving:
                self._drop_old()
                await self._discard()
                wanted = next((kind for kind, found in self._blanks.items() if len(found) < self._each_max), None)
                left = self._seconds_left(wanted)
                if wanted is not None and left <= 0:
                    await self._fill(wanted)
                elif self._blanks:
                    self._woken.clear()
                    with anyio.move_on_after(left):
                        await self._woken.wait()

    def _seconds_left(self, wanted: Recipe | None) -> float:
        """Until there is something to do."""
        now = asyncio.get_running_loop().time()
        if wanted is not None:
            busy = self._starting or self._backend.builds()
            return QUIET_SECONDS if busy else self._started_at + QUIET_SECONDS - now
        return min(self._asked.values(), default=now) + self._settings.warm_seconds - now

    def _drop_old(self) -> None:
        oldest = asyncio.get_running_loop().time() - self._settings.warm_seconds
        too_many = len(self._blanks) - self._settings.warm_total_max // self._each_max
        for place, kind in enumerate(list(self._blanks)):
            if place < too_many or self._asked[kind] <= oldest:
                self._drop(kind)

    def _drop(self, kind: Recipe) -> None:
        self._leaving += [blank.name for blank in self._blanks.pop(kind, [])]
        self._asked.pop(kind, None)

    async def _fill(self, kind: Recipe) -> None:
        name = f"blank-{secrets.token_hex(8)}"
        self._names.add(name)
        try:
            blank = await self._make(name, kind)
        except (CorralError, OSError, subprocess.SubprocessError) as error:
            log.warning("sandbox_not_warmed", reason=str(error))
            self._drop(kind)
            self._leaving.append(name)
        except BaseException:
            self._leaving.append(name)
            raise
        else:
            self._blanks[kind].append(blank)

    async def _make(self, name: str, kind: Recipe) -> Blank:
        """A new one that is at its gate."""
        # Not left half-way when the server stops.
        with anyio.CancelScope(shield=True) as scope:
            blank = await self._backend.make_blank(name, kind)
            # What is still being mounted would be missed if it was moved.
            scope.shield = False
            with anyio.fail_after(self._settings.start_seconds_max):
                await blank.launched.ready()
            return blank
        raise AssertionError("a scope that is never cancelled swallows nothing")

    async def _discard(self) -> None:
        """End those that leave, and forget them."""
        while self._leaving:
            name = self._leaving.pop()
            with anyio.CancelScope(shield=True):
                try:
                    await self._backend.discard(name)
                except (CorralError, OSError) as error:
                    # What it leaves is found like that of a deleted session.
                    log.warning("warm_sandbox_not_ended", reason=str(error))
            self._names.discard(name)


def _kind(recipe: Recipe) -> Recipe:
    """What the sandbox itself is made by: variables are set when a session has it."""
    return msgspec.structs.replace(recipe, variables=())
