"""Sandboxes that are processes on this machine: finds the one that runs, else starts one, and destroys them.

The daemon listens on a socket that is bound here, in a directory that is not visible inside, so hostile code cannot
put another in its place; the same socket is how a sandbox that outlived the server is found again. How the daemon is
enclosed is the backend's part: `bubblewrap.py`, `docker.py` and `process.py` say what to check and what to run.
"""

from __future__ import annotations

import os
import subprocess
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from weakref import WeakValueDictionary

import anyio
import anyio.to_thread
import msgspec

from corral.config_sections import EgressSettings, SandboxSettings
from corral.domain.egress import EgressPolicy, installs
from corral.domain.environment import SEALED, Packages, Recipe
from corral.domain.file import Mount, Output
from corral.domain.placeholder import Substitution, variables
from corral.errors import MachineUnfit, SandboxUnavailable
from corral.interfaces.blobs import Blobs
from corral.interfaces.sandbox import Fact, Sandbox, Upkeep
from corral.sandboxes import directory_files, directory_uploads, programs
from corral.sandboxes.attendant import Attendant
from corral.sandboxes.cgroups import Group
from corral.sandboxes.child import Child, end
from corral.sandboxes.connection import Connection, Hello, News, greet, listen
from corral.sandboxes.directory import KILL_SECONDS_MAX, Record, SessionDirectory
from corral.sandboxes.egress import inside, trial
from corral.sandboxes.egress.attachment import Attachments
from corral.sandboxes.egress.outlet import Egress
from corral.sandboxes.launched import Launched
from corral.sandboxes.lifecycle import RESTARTED, Lifecycle, in_use
from corral.sandboxes.limited import Watch
from corral.sandboxes.series import SandboxSeries

CONNECTIONS_WAITING_MAX = 8
CHUNK_BYTES = 1024 * 1024
RUN_DAEMON = "import sys; sys.path.append(sys.argv.pop(1)); from corral.sandboxes.daemon.%s import main; main()"
DAEMON_SETTINGS = (
    "command_seconds",
    "command_seconds_max",
    "output_bytes_max",
    "text_file_bytes_max",
    "image_base64_bytes_max",
    "pdf_bytes_max",
    "glob_results_max",
    "remembered_calls_max",
    "orphan_seconds_max",
)


class LocalSandboxes(ABC):
    """Implements `Sandboxes`, but for what a backend adds."""

    as_server = False
    """Whether sandboxes run as the server's own user."""

    def __init__(self, settings: SandboxSettings, root: Path, egress: Egress | None = None) -> None:
        self._settings, self._root = settings, root
        self.egress = egress or Egress(EgressSettings(), root / "egress")
        """The way out of these sandboxes."""
        self._attachments = Attachments(self.egress)
        self._series = SandboxSeries(self.egress.registry)
        self._lifecycle = Lifecycle(settings, self._series, as_server=self.as_server)
        self._attendant = Attendant(settings, root, self, self._series)
        self._putting_away: dict[str, anyio.CancelScope] = {}
        self._lost_told: set[str] = set()
        """Sessions that have heard that their last sandbox stopped."""
        self._connections: dict[str, Connection] = {}
        self._series.watch(lambda: len(self._connections))
        self._watch = Watch(settings, root)
        self._children: dict[str, Child] = {}
        self._mounted: dict[str, Mapping[str, str]] = {}
        """What this server knows to be among a session's uploads: hashes by path."""
        self._locks: WeakValueDictionary[str, anyio.Lock] = WeakValueDictionary()
        self._start_lock = anyio.Lock()
        self._started = False

    @abstractmethod
    def prepare(self) -> None:
        """Check the machine and put programs in place; raise `MachineUnfit`. Blocking."""

    @abstractmethod
    def launch(self, directory: SessionDirectory, listener: int, recipe: Recipe) -> Launched:
        """Start a daemon that outlives this process. `listener` is to be inherited. Blocking."""

    def group(self, session_id: str) -> Group | None:
        """The cgroup that this session's sandbox is in, if this machine has any for us."""
        return None

    def kill(self, directory: SessionDirectory) -> None:
        """End the instance and all that it started. Blocking."""
        group = self.group(directory.path.name)
        if group is not None:
            # What is frozen does not die.
            group.thaw()
        directory.kill_instance()

    @abstractmethod
    def explain(self) -> list[Fact]:
        """What `prepare` depends on, one by one. Blocking; never raises."""

    async def explain_network(self) -> list[Fact]:
        """See `Sandboxes.explain_network`."""
        return [await trial.explain(self.egress)]

    async def start(self) -> None:
        """See `Sandboxes.start`. Idempotent."""
        async with self._start_lock:
            if not self._started:
                await anyio.to_thread.run_sync(self.prepare)
                # Right after: what this server needs was asked for just now.
                await anyio.to_thread.run_sync(self._prune_programs)
                self._started = True

    def _prune_programs(self) -> None:
        sessions = (SessionDirectory(self._root, place.name) for place in (self._root / "sessions").iterdir())
        records = (directory.record() for directory in sessions if directory.is_running())
        with suppress(OSError, SandboxUnavailable):
            programs.prune(self._root, [record.pid for record in records if record is not None])

    @asynccontextmanager
    async def attended(self, upkeep: Upkeep) -> AsyncGenerator[None]:
        """See `Sandboxes.attended`."""
        self._lifecycle.keep(upkeep)
        checkpoints = self._lifecycle.checkpoints
        assert checkpoints is not None
        try:
            async with self._attendant.attending(upkeep, checkpoints):
                yield
        finally:
            self._lifecycle.keep(None)

    async def open(self, session_id: str, recipe: Recipe = SEALED, secrets: Sequence[Substitution] = ()) -> Sandbox:
        """See `Sandboxes.open`. Cheap when the sandbox runs, so it may be called before every use."""
        connection = self._running(session_id)
        directory, group = SessionDirectory(self._root, session_id), self.group(session_id)
        if connection is not None and await self._lifecycle.is_moved_here(session_id):
            await connection.close()  # another machine has gone on with the session meanwhile: what runs here is older
        if connection is not None and not connection.lost:
            self._attachments.entrust(session_id, secrets)
            return self._watch.over(session_id, connection, directory, group)
        self._keep_here(session_id)
        async with self._locks.setdefault(session_id, anyio.Lock()):
            connection = self._running(session_id)
            if connection is None:
                await self._prepare_for(directory, recipe)
                # Not left half-way when the caller is cancelled; `start_seconds_max` bounds it.
                with anyio.CancelScope(shield=True):
                    connection = await self._open(directory, session_id, recipe, secrets)
            assert connection is not None, "a scope that is never cancelled swallows nothing"
            return self._watch.over(session_id, connection, directory, self.group(session_id))

    @abstractmethod
    async def furnish(self, recipe: Recipe) -> None:
        """Have at hand the packages that a new sandbox by `recipe` needs; may take minutes. Raises `PackagesFailed`."""

    async def _prepare_for(self, directory: SessionDirectory, recipe: Recipe) -> None:
        """Install packages, unless nothing new is to be made: what runs was furnished when it started."""
        if recipe.packages == Packages() or await anyio.to_thread.run_sync(directory.is_running):
            return
        try:
            await self.start()
            await self.furnish(recipe)
        except MachineUnfit as error:
            raise SandboxUnavailable(error.message) from error
        except OSError as error:
            raise SandboxUnavailable(f"The environment's packages could not be looked for: {error}") from error

    def _running(self, session_id: str) -> Connection | None:
        connection = self._connections.get(session_id)
        if connection is None or connection.lost:
            self._connections.pop(session_id, None)
            if connection is not None and connection.lost_told:
                self._lost_told.add(session_id)
            return None
        connection.touch()
        return connection

    async def _open(
        self, directory: SessionDirectory, session_id: str, recipe: Recipe, secrets: Sequence[Substitution]
    ) -> Connection:
        try:
            await self.start()
            lock = await anyio.to_thread.run_sync(directory.lock, self._settings.start_seconds_max)
            try:
                connection = await self._find(directory, session_id, secrets)
                if connection is None:
                    with self._series.starting() as start:
                        await self._lifecycle.revive(directory, session_id)
                        connection, start.warm = await self._launch(directory, session_id, recipe, secrets)
                connection.on_idle = partial(self._rest, session_id, connection)
                self._connections[session_id] = connection
                return connection
            finally:
                os.close(lock)
        except MachineUnfit as error:
            raise SandboxUnavailable(error.message) from error
        except OSError as error:
            raise SandboxUnavailable(f"The sandbox could not be started: {error}") from error

    async def _find(
        self, directory: SessionDirectory, session_id: str, secrets: Sequence[Substitution]
    ) -> Connection | None:
        record = await anyio.to_thread.run_sync(directory.record)
        if record is None:
            return None
        moved = await self._lifecycle.is_moved_here(session_id)  # if so, what runs here is out of date
        hello = None if moved else await greet(directory.socket, self._settings)
        if hello is not None:
            await self._attachments.attach_again(directory, session_id, record.pid, secrets)
            self._attachments.entrust(session_id, secrets)
            self._series.found()
            return self._connected(directory, hello, record, "")
        # It may hang rather than be gone; two over the same files must never be.
        await anyio.to_thread.run_sync(self.kill, directory)
        return None

    async def _launch(
        self, directory: SessionDirectory, session_id: str, recipe: Recipe, secrets: Sequence[Substitution]
    ) -> tuple[Connection, bool]:
        """The sandbox, new or warm, and whether it was warm."""
        await self._reap(session_id)
        policy = self.egress_policy(recipe)
        warm = launched = await self._adopt(directory, session_id, recipe, policy)
        if launched is None:
            await anyio.to_thread.run_sync(self._make, directory, policy)
        if secrets:
            recipe = msgspec.structs.replace(recipe, variables=tuple(variables(secrets).items()))
        try:
            async with self._attachments.starting(directory, session_id, policy, secrets):
                if launched is None:
                    launched = await self._start_daemon(directory, recipe)
                self._attachments.follow(session_id, launched.pid)
                await anyio.to_thread.run_sync(launched.release, dict(recipe.variables))
                record = await anyio.to_thread.run_sync(directory.record)
                hello = await greet(directory.socket, self._settings)
                if hello is None or record is None:
                    await anyio.to_thread.run_sync(self.kill, directory)
                    await self._reap(session_id)
                    raise SandboxUnavailable(f"The sandbox did not start. {directory.log_text()}".strip())
        except BaseException:
            if launched is not None:
                launched.release(None)
            raise
        told = session_id in self._lost_told
        self._lost_told.discard(session_id)
        notice = RESTARTED if record.predecessors and not told else ""
        return self._connected(directory, hello, record, notice), warm is not None

    async def _start_daemon(self, directory: SessionDirectory, recipe: Recipe) -> Launched:
        """Start a daemon over the directory, and note it; it waits at its gate."""
        launched = await anyio.to_thread.run_sync(self._launch_recorded, directory, recipe)
        if launched.process is not None:
            name = directory.path.name
            self._children[name] = Child(launched.process, self.group(name))
        return launched

    async def _adopt(
        self, directory: SessionDirectory, session_id: str, recipe: Recipe, policy: EgressPolicy | None
    ) -> Launched | None:
        """A sandbox that was started before and is this session's now; it waits at its gate. None when there is none,
        as here: `warming.py` has some."""
        return None

    def _connected(self, directory: SessionDirectory, hello: Hello, record: Record, notice: str) -> Connection:
        life = directory.life()
        has_predecessor = record.predecessors > 0 or (life is not None and life.generation > 0)
        connection = Connection(directory.socket, self._settings, hello, has_predecessor=has_predecessor)
        notice = life.notice or notice if life else notice
        if notice:
            connection.announce(News(notice, partial(_note_told, directory)))
        return connection

    def egress_policy(self, recipe: Recipe) -> EgressPolicy | None:
        """What a sandbox by this recipe may reach through the proxy; None when it gets no way out."""
        policy = self.egress.policy(recipe)
        return None if policy.reaches_nothing else policy

    def out_of_reach(self, recipe: Recipe, hosts: Sequence[str]) -> Sequence[str]:
        """See `Sandboxes.out_of_reach`."""
        policy = self.egress.policy(recipe)
        return [host for host in hosts if not policy.reaches_some(host)]

    def way_out(self, directory: SessionDirectory, recipe: Recipe) -> inside.WayOut | None:
        """What is put into a sandbox so that it finds the proxy; None when it gets no way out."""
        if self.egress_policy(recipe) is None:
            return None
        managers = self.egress.package_managers if installs(recipe) else None
        return inside.way_out(directory.egress, self.egress.ca_file, managers, self.egress.manager_files)

    def _make(self, directory: SessionDirectory, policy: EgressPolicy | None) -> None:
        self._watch.require_space()
        directory.make(uid_first=self._settings.uid_first, uid_count=self._settings.uid_count)
        directory.put_egress_policy(policy)
        life = directory.life()
        if life is not None and life.unused:
            directory.put_life(in_use(life))

    def _launch_recorded(self, directory: SessionDirectory, recipe: Recipe) -> Launched:
        listener = listen(directory.socket, CONNECTIONS_WAITING_MAX)
        try:
            launched = self.launch(directory, listener.fileno(), recipe)
        finally:
            listener.close()
        try:
            directory.put_record(launched.pid)
        except BaseException:
            if launched.process is None:
                self.kill(directory)
            else:
                launched.release(None)
                end(launched.process)
                launched.process.wait()
            raise
        return launched

    async def _reap(self, session_id: str) -> None:
        child = self._children.pop(session_id, None)
        if child is not None:
            try:
                await anyio.to_thread.run_sync(child.process.wait, KILL_SECONDS_MAX)
            except subprocess.TimeoutExpired as error:
                raise SandboxUnavailable("The session's earlier sandbox does not end.") from error
            finally:
                child.leave()

    def entrust(self, session_id: str, secrets: Sequence[Substitution]) -> None:
        """See `Sandboxes.entrust`."""
        self._attachments.entrust(session_id, secrets)

    async def mount(self, session_id: str, mounts: Sequence[Mount], blobs: Blobs) -> None:
        """See `Sandboxes.mount`. Cheap when nothing changed, so it may be called before every use."""
        wanted = {mount.path: mount.sha256 for mount in mounts}
        if self._mounted.get(session_id) == wanted:
            return
        directory = SessionDirectory(self._root, session_id)
        if not wanted and not directory.uploads.exists():
            return
        try:
            async with self._locks.setdefault(session_id, anyio.Lock()):
                for path in await anyio.to_thread.run_sync(directory_files.begin_uploads, directory, wanted):
                    self._watch.require_space()
                    await directory_uploads.place(directory, path, wanted[path], blobs)
                self._mounted[session_id] = wanted
                self._running(session_id)  # long files take long, and it was in use all the while
        except OSError as error:
            raise SandboxUnavailable(f"The session's files could not be mounted: {error}") from error

    async def outputs(self, session_id: str) -> Sequence[Output] | None:
        """See `Sandboxes.outputs`."""
        directory = SessionDirectory(self._root, session_id)
        await self._lifecycle.require_here(directory, session_id)
        found = await anyio.to_thread.run_sync(directory_files.outputs, directory)
        if found is None:
            found = await self._lifecycle.noted_outputs(session_id)
        if found is None and await self._bring_back(directory, session_id):
            found = await anyio.to_thread.run_sync(directory_files.outputs, directory)
        return found

    async def read_output(self, session_id: str, path: bytes) -> AsyncGenerator[bytes]:
        """See `Sandboxes.read_output`. No more than it had when it was opened, however fast it grows."""
        directory = SessionDirectory(self._root, session_id)
        if not directory.files.exists():
            await self._bring_back(directory, session_id)
        descriptor = await anyio.to_thread.run_sync(directory_files.open_output, directory, path)
        try:
            left = os.fstat(descriptor).st_size
            while left and (chunk := await anyio.to_thread.run_sync(os.read, descriptor, min(left, CHUNK_BYTES))):
                left -= len(chunk)
                yield chunk
        finally:
            os.close(descriptor)

    async def _bring_back(self, directory: SessionDirectory, session_id: str) -> bool:
        """Have the files of a session that rests on disk again, without a sandbox; False when there are none."""
        if not await self._lifecycle.has_archive(session_id):
            return False
        async with self._locks.setdefault(session_id, anyio.Lock()):
            if not directory.files.exists():
                lock = await anyio.to_thread.run_sync(directory.lock, self._settings.start_seconds_max)
                try:
                    await self._lifecycle.restore(directory, session_id)
                finally:
                    os.close(lock)
        return True

    def has(self, session_id: str) -> bool:
        """Whether a sandbox of this session is in use by this server."""
        return session_id in self._connections

    def _rest(self, session_id: str, connection: Connection) -> None:
        if self._lifecycle.checkpoints is None:
            connection.hang_up()
        else:
            self._attendant.announce(session_id)

    def _keep_here(self, session_id: str) -> None:
        """The session's sandbox is needed: it is not put away now."""
        if session_id in self._putting_away:
            self._putting_away[session_id].cancel()

    async def put_away(self, session_id: str) -> None:
        """End a sandbox that is not used and put its files away; nothing of it stays on this machine. Leaves alone one
        that is used again. Raises `SandboxUnavailable` or `Unavailable`; then the files stay where they are."""
        directory = SessionDirectory(self._root, session_id)
        async with self._locks.setdefault(session_id, anyio.Lock()):
            connection = self._connections.get(session_id)
            if connection is not None and not connection.lost and not connection.idle:
                return
            with anyio.CancelScope() as scope:
                self._putting_away[session_id] = scope
                try:
                    await self._end(directory, session_id)
                    lock = await anyio.to_thread.run_sync(directory.lock, self._settings.start_seconds_max)
                    try:
                        await self._lifecycle.put_away(directory, session_id)
                    finally:
                        os.close(lock)
                finally:
                    del self._putting_away[session_id]

    async def _end(self, directory: SessionDirectory, session_id: str) -> None:
        with anyio.CancelScope(shield=True):
            self._mounted.pop(session_id, None)
            self._lost_told.discard(session_id)
            connection = self._connections.pop(session_id, None)
            if connection is not None:
                await connection.end()
                await connection.close()
            await anyio.to_thread.run_sync(self.kill, directory)
            await self._reap(session_id)
            self._attachments.detach(session_id)
            if group := self.group(session_id):
                await anyio.to_thread.run_sync(group.remove)

    async def destroy(self, session_id: str) -> None:
        """See `Sandboxes.destroy`."""
        directory = SessionDirectory(self._root, session_id)
        self._keep_here(session_id)
        async with self._locks.setdefault(session_id, anyio.Lock()):
            with anyio.CancelScope(shield=True):
                await self._end(directory, session_id)
                await anyio.to_thread.run_sync(directory.remove)
                await self._lifecycle.drop(session_id)

    def leave(self) -> None:
        """See `Sandboxes.leave`."""
        for connection in self._connections.values():
            connection.leaving = True

    async def close(self) -> None:
        """See `Sandboxes.close`."""
        await self._watch.close()
        for connection in list(self._connections.values()):
            await connection.close()
        self._connections.clear()
        for child in self._children.values():
            child.leave()
        self._children.clear()
        await self._attachments.close()

    def daemon_command(
        self,
        python: str,
        source: str,
        *,
        listener: int,
        root: str,
        environment: Mapping[str, str],
        resources: Mapping[str, int],
        names: Mapping[str, str],
        module: str = "server",
        egress_socket: str = "",
    ) -> list[str]:
        """The command that runs the daemon, with paths as they are where it runs; `module` has its `main`."""
        values = {name: getattr(self._settings, name) for name in DAEMON_SETTINGS}
        values |= {"listener": listener, "root": root, "environment": environment, "resources": resources}
        values |= {"egress_socket": egress_socket, "egress_port": inside.PORT}
        values |= {"held": module == "server"}  # others wait for their server in ways of their own
        values |= {"names": names, "frame_bytes_max": self._settings.reply_bytes_max}
        return [python, "-I", "-S", "-c", RUN_DAEMON % module, source, msgspec.json.encode(values).decode()]


def _note_told(directory: SessionDirectory) -> None:
    life = directory.life()
    if life is not None and life.notice:
        directory.put_life(msgspec.structs.replace(life, notice=""))
