"""Layers: the packages of an environment, installed once for each distinct set and shared read-only.

    <root>/layers/<key>/packages    what is bound at `inside.LAYER`
    <root>/layers/<key>/base        only for sets with apt packages: a base of their own
    <root>/layers/drafts/<key>      while it is built; renamed into place when all of it is there
    <root>/layers/logs/<key>.log    what the newest build said
    <root>/layers/locks/<key>       held by whoever builds

The key is a digest of the ordered lists, the base and the versions of the tools, so a changed base or list is another
layer and a layer never changes. One build runs per key, also across servers on one directory: others wait for it. A
server that is killed takes its build along; the next to want the layer clears the draft away and begins anew. A
failure is remembered for a while, so that a turn does not try in a loop what has just failed.

Installing runs strangers' code. How that is enclosed, and what it may reach, is the `Workshop`'s part.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import platform
import stat
import subprocess
import threading
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from contextvars import Context
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec
import structlog

from corral.config_sections import PackagesSettings
from corral.domain.environment import Packages
from corral.errors import CorralError, PackagesFailed
from corral.sandboxes.directory import remove_tree
from corral.sandboxes.packages.managers import TABLE, explanation, wanted
from corral.sandboxes.packages.output import Bounds, run
from corral.sandboxes.packages.workshop import PLACES, Workshop

log = structlog.get_logger(__name__)

FORMAT = 1
"""Of a layer's content; another number makes all layers anew."""
FOLDERS = ("drafts", "logs", "locks")
"""Beside the layers."""
LOCK_POLL_SECONDS = 0.2
LOCK_GRACE_SECONDS = 60.0
TOUCH_SECONDS = 3_600.0


class Layers:
    """All layers below one root."""

    def __init__(self, root: Path, settings: PackagesSettings, workshop: Workshop) -> None:
        self._root, self._settings, self._workshop = root / "layers", settings, workshop
        self._builds: dict[str, asyncio.Task[Path | PackagesFailed]] = {}
        self._failures: dict[str, tuple[float, str]] = {}
        self._bounds: set[Bounds] = set()
        self._slots = asyncio.Semaphore(settings.builds_parallel_max)
        self._tools: dict[str, Mapping[str, str]] = {}
        """By base."""
        self._asking = threading.Lock()
        self._closed = False

    async def ensure(self, packages: Packages, base: str) -> Path | None:
        """The layer of these packages on this base, built if nobody has yet; None for none. Raises `PackagesFailed`.

        Cancelling stops waiting; the build goes on for whoever asks next."""
        if not wanted(packages):
            return None
        key = await anyio.to_thread.run_sync(self._key, packages, base)
        place = self._root / key
        if place.is_dir():
            await anyio.to_thread.run_sync(_touch, place)
            return place
        task = self._builds.get(key)
        if task is None:
            self._refuse_again(key)
            # Owned by `_builds` and awaited by `close`: a build outlives the turn that first asked for it.
            task = self._builds[key] = asyncio.create_task(
                self._build(key, packages, base), name=f"layer {key}", context=Context()
            )
            task.add_done_callback(lambda _: self._builds.pop(key, None))
        result = await asyncio.shield(task)
        if isinstance(result, PackagesFailed):
            raise PackagesFailed(result.message)
        return result

    def find(self, packages: Packages, base: str) -> Path | None:
        """As `ensure`, but raises `PackagesFailed` for a layer that is not there. Blocking."""
        if not wanted(packages):
            return None
        place = self._root / self._key(packages, base)
        if not place.is_dir():
            raise PackagesFailed("The environment's packages are gone again; they will be installed anew.")
        return place

    def tools(self, base: str) -> Mapping[str, str]:
        """See `Workshop.tools`; each base is asked once. Blocking."""
        with self._asking:
            if base not in self._tools:
                self._tools[base] = self._workshop.tools(base)
            return self._tools[base]

    def builds(self) -> bool:
        """Whether anything is being installed by this server."""
        return bool(self._builds)

    async def close(self) -> None:
        """End all builds; nothing of them stays."""
        self._closed = True
        for bounds in self._bounds:
            bounds.stop()
        if self._builds:
            await asyncio.wait(list(self._builds.values()))

    def prune(self, unused_seconds: float) -> list[str]:
        """Remove the layers that no sandbox was opened with for this long, and what dead servers began; the keys of
        the former. Blocking."""
        gone: list[str] = []
        for place in self._root.iterdir() if self._root.is_dir() else ():
            unused = time.time() - place.stat().st_mtime
            if place.name in FOLDERS or unused < unused_seconds or (lock := self._try_lock(place.name)) is None:
                continue
            with _closing(lock):
                draft = self._root / "drafts" / place.name
                self._clear(draft)
                place.rename(draft)
                (self._root / "logs" / f"{place.name}.log").unlink(missing_ok=True)
                gone.append(place.name)
        drafts = self._root / "drafts"
        for draft in drafts.iterdir() if drafts.is_dir() else ():
            if (lock := self._try_lock(draft.name)) is not None:
                with _closing(lock):
                    self._clear(draft)
        return gone

    def _key(self, packages: Packages, base: str) -> str:
        """Raises `PackagesFailed` when the base lacks what these packages need."""
        lists, versions = wanted(packages), dict[str, str]()
        if "apt" in lists and (reason := self._workshop.why_no_apt()):
            raise PackagesFailed(reason)
        tools = self.tools(base)
        for manager in lists:
            for tool in TABLE[manager].tools:
                # With apt a set may bring its own tools, so what is missing now shows when it is used.
                if tool not in tools and "apt" not in lists:
                    raise PackagesFailed(
                        f"The environment's {manager} packages could not be installed ({', '.join(lists[manager][:8])}"
                        f"): {self._workshop.lacking(tool, TABLE[manager].advice)}"
                    )
                versions[tool] = tools.get(tool, "")
        content = (FORMAT, platform.machine(), base, tuple(lists.items()), versions)
        return hashlib.sha256(msgspec.json.encode(content, order="deterministic")).hexdigest()[:32]

    def _refuse_again(self, key: str) -> None:
        if self._closed:
            raise PackagesFailed("The server is stopping.")
        failed_at, message = self._failures.get(key, (float("-inf"), ""))
        if time.monotonic() - failed_at < self._settings.failure_seconds:
            raise PackagesFailed(message)
        self._failures.pop(key, None)

    async def _build(self, key: str, packages: Packages, base: str) -> Path | PackagesFailed:
        try:
            async with self._slots:
                with _closing(await anyio.to_thread.run_sync(self._lock, key)):
                    place = self._root / key
                    if not place.is_dir():
                        await self._make(key, packages, base, place)
                    return place
        except PackagesFailed as error:
            failure = error
        except (CorralError, OSError, subprocess.SubprocessError) as error:
            failure = PackagesFailed(f"The environment's packages could not be installed: {error}")
        self._failures[key] = (time.monotonic(), failure.message)
        log.warning("packages_failed", layer=key, reason=failure.message)
        return failure

    async def _make(self, key: str, packages: Packages, base: str, place: Path) -> None:
        if self._closed:
            # While we waited for the lock; from here to the first await, `close` either is over or finds the bounds.
            raise PackagesFailed("The server is stopping.")
        draft, apt = self._root / "drafts" / key, bool(packages.apt)
        bounds = Bounds(draft, seconds_max=self._settings.build_seconds_max, bytes_max=self._settings.layer_bytes_max)
        self._bounds.add(bounds)
        uid: int | None = None
        try:
            log.info("packages_build_started", layer=key, packages=wanted(packages))
            await anyio.to_thread.run_sync(self._begin, draft)
            uid = await anyio.to_thread.run_sync(lambda: self._workshop.claim(draft, apt=apt))
            async with self._workshop.network(draft, uid) as environment:
                await anyio.to_thread.run_sync(
                    lambda: self._install(key, packages, bounds, environment, uid=uid, base=base)
                )
            await anyio.to_thread.run_sync(_finish, draft, place)
            log.info("packages_build_finished", layer=key)
        finally:
            self._bounds.discard(bounds)
            with anyio.CancelScope(shield=True):
                if uid is not None:
                    await anyio.to_thread.run_sync(self._workshop.release, draft, uid)
                await anyio.to_thread.run_sync(remove_tree, draft)

    def _begin(self, draft: Path) -> None:
        """An empty draft; one that a killed server has left is cleared away."""
        self._clear(draft)
        draft.mkdir(mode=0o711)
        draft.chmod(0o711)
        for name in PLACES:
            (draft / name).mkdir(mode=0o700)

    def _clear(self, draft: Path) -> None:
        home = draft / "home"
        if home.is_dir():
            self._workshop.release(draft, home.stat().st_uid)
        remove_tree(draft)

    def _install(
        self,
        key: str,
        packages: Packages,
        bounds: Bounds,
        environment: Mapping[str, str],
        *,
        uid: int,
        base: str,
    ) -> None:
        """Every manager in turn, all in this thread: the commands die with it."""
        apt = bool(packages.apt)
        with (self._root / "logs" / f"{key}.log").open("wb") as output:
            for manager, names in wanted(packages).items():
                began = time.monotonic()
                log.info("packages_installing", layer=key, manager=manager, packages=names)
                variables = {**environment, **TABLE[manager].environment}
                for argv in TABLE[manager].commands(names):
                    output.write(f"$ {' '.join(argv)}\n".encode())
                    start = partial(self._workshop.start, argv, bounds.place, variables, uid=uid, base=base, apt=apt)
                    said = run(start, bounds, output)
                    output.flush()
                    if said is not None:
                        # Some managers install one package after another.
                        installing = [name for name in names if {name, f"{name}@latest"} & {*argv}] or names
                        raise PackagesFailed(explanation(manager, installing, said))
                log.info("packages_installed", layer=key, manager=manager, seconds=round(time.monotonic() - began, 1))

    def _lock(self, key: str) -> int:
        deadline = time.monotonic() + self._settings.build_seconds_max + LOCK_GRACE_SECONDS
        while not self._closed:
            lock = self._try_lock(key)
            if lock is not None:
                return lock
            if time.monotonic() > deadline:
                raise PackagesFailed("Another server installs the environment's packages and does not finish.")
            time.sleep(LOCK_POLL_SECONDS)
        raise PackagesFailed("The server is stopping.")

    def _try_lock(self, key: str) -> int | None:
        for name in ("", *FOLDERS):
            folder = self._root / name
            folder.mkdir(parents=True, exist_ok=True)
            # What is built and bound must be found by the users of sandboxes, and listed by nobody.
            folder.chmod(0o711 if name in ("", "drafts") and os.geteuid() == 0 else 0o700)
        descriptor = os.open(self._root / "locks" / key, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        return descriptor


@contextmanager
def _closing(descriptor: int) -> Generator[None]:
    """Close it at the end, and with that release what it locks."""
    try:
        yield
    finally:
        os.close(descriptor)


def _finish(draft: Path, place: Path) -> None:
    """Seal what was built, and put it in place as one."""
    sealed = draft / "sealed"
    sealed.mkdir(mode=0o755)
    sealed.chmod(0o755)
    for name in ("packages", "base"):
        if (draft / name).is_dir():
            seal(draft / name)
            (draft / name).rename(sealed / name)
    sealed.rename(place)


def seal(top: Path) -> None:
    """Make a tree the server's own, readable for everybody and writable for nobody else, whatever its builder did.

    Sockets, pipes and devices go; so do bits that change users. Nothing may run over the tree any more."""
    _seal_one(top)
    for place in _below(top):
        if stat.S_IFMT(place.lstat().st_mode) not in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK):
            place.unlink()
        else:
            _seal_one(place)


def _below(directory: Path) -> Iterator[Path]:
    """Parents first, so that each is sealed, and with that open to us, before it is listed."""
    waiting = [directory]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            found = [(Path(entry.path), entry.is_dir(follow_symlinks=False)) for entry in entries]
        yield from (path for path, _ in found)
        waiting += [path for path, is_directory in found if is_directory]


def _seal_one(place: Path) -> None:
    mode = place.lstat().st_mode
    if os.geteuid() == 0:
        os.chown(place, 0, 0, follow_symlinks=False)
    if stat.S_ISDIR(mode):
        place.chmod(0o755)
    elif stat.S_ISREG(mode):
        place.chmod(0o755 if mode & 0o111 else 0o644)


def _touch(place: Path) -> None:
    """Note that the layer is used; `prune` looks at it."""
    if time.time() - place.stat().st_mtime > TOUCH_SECONDS:
        os.utime(place)
