"""The default backend: every session in Linux namespaces of its own, made by bubblewrap.

Inside are the host's /usr read-only, a small /etc, private /workspace, /home/agent, /tmp and /mnt/session, and no
network but its own loopback; a socket to the egress proxy is the way out where the environment allows one. What keeps
the inside in: it never runs as a host uid that matters (root's sandboxes each get a host uid of their own; started by
host root, bwrap is escapable through /proc/sys), it has no capabilities, cannot make user namespaces or gain
privileges, /proc/sys is read-only in any case, and a filter refuses system calls that no agent needs (`seccomp.py`).
Limits are in `cgroups.py` and `disk.py`; packages of an environment are a read-only layer (`packages/`).

A sandbox outlives the server: it has a session of its own and does not die with its parent. The daemon is process 1
of its namespace, so when it ends, or is killed, the kernel ends everything else inside.
"""

from __future__ import annotations

import hashlib
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

import anyio.to_thread
import msgspec

from corral.config_sections import PackagesSettings, SandboxSettings
from corral.domain.environment import Packages, Recipe
from corral.errors import MachineUnfit, SandboxUnavailable
from corral.interfaces.sandbox import Fact
from corral.sandboxes import bases, cgroups, programs, seccomp
from corral.sandboxes.bubblewrap_building import BubblewrapWorkshop
from corral.sandboxes.bubblewrap_inside import ENVIRONMENT, Programs, arguments, base_parts
from corral.sandboxes.child import end
from corral.sandboxes.directory import SessionDirectory
from corral.sandboxes.egress import inside
from corral.sandboxes.egress.outlet import Egress
from corral.sandboxes.launched import Launched
from corral.sandboxes.packages.layers import Layers
from corral.sandboxes.warming import WarmingSandboxes

INFO_BYTES_MAX = 4_096
ROOT_DIRECTORY = Path("/var/lib/corral")
BUILDS = "packages"
"""The group of all builds of layers; no session has this id."""
NPROC_PER_NAMESPACE_SINCE = (5, 14)
SWITCHES = {
    "kernel.unprivileged_userns_clone": "0",
    "kernel.apparmor_restrict_unprivileged_userns": "1",
    "user.max_user_namespaces": "0",
}
SWITCH_VALUES = {
    "kernel.unprivileged_userns_clone": "1",
    "kernel.apparmor_restrict_unprivileged_userns": "0",
    "user.max_user_namespaces": "10000",
}
REMEDY = "`--sandbox process` works without it, but isolates nothing."


class BubblewrapSandboxes(WarmingSandboxes):
    """See the module."""

    def __init__(
        self,
        settings: SandboxSettings,
        data_dir: Path,
        egress: Callable[[Path], Egress] | None = None,
        *,
        packages: PackagesSettings | None = None,
    ) -> None:
        root = root_directory(settings, data_dir)
        super().__init__(settings, root, egress(root / "egress") if egress else None)
        self._packages = packages or PackagesSettings()
        self._programs: Programs | None = None
        self._cgroups: cgroups.Cgroups | None = None
        self._layers: Layers | None = None

    def prepare(self) -> None:
        """See `LocalSandboxes.prepare`."""
        if not sys.platform.startswith("linux"):
            raise MachineUnfit("bubblewrap needs Linux.")
        if not seccomp.knows(platform.machine()):
            raise MachineUnfit(f"There is no system call filter for {platform.machine()} yet; sandboxes need one.")
        try:
            self._make_root()
            self._programs = self._find_programs()
        except OSError as error:
            raise MachineUnfit(f"Programs for sandboxes cannot be put into {self._root}: {error}") from error
        _probe(self._programs, self._settings)
        self._cgroups = cgroups.find(self._root)
        self._layers = Layers(self._root, self._packages, self._workshop(self._programs))
        self._layers.prune(self._packages.unused_days_max * 86_400)

    def group(self, session_id: str) -> cgroups.Group | None:
        """See `LocalSandboxes.group`."""
        found = self._cgroups
        return None if found is None else found.group(session_id, cgroups.Limits.of(self._settings))

    def _make_root(self) -> None:
        if os.geteuid() == 0 and not programs.reachable_directory(self._root):
            advice = "name another with CORRAL_SANDBOX_DIR"
            raise MachineUnfit(
                f"Sandboxes of a root server run as other users, who cannot enter {self._root}; {advice}."
            )
        for place in (self._root, self._root / "sessions", self._root / "programs"):
            place.mkdir(parents=True, exist_ok=True)
            place.chmod(0o711 if os.geteuid() == 0 else 0o700)

    def _workshop(self, found: Programs) -> BubblewrapWorkshop:
        def start(argv: Sequence[str], uid: int) -> subprocess.Popen[bytes]:
            process = _start_enclosed([*argv], uid, subprocess.PIPE, (), self.group(BUILDS)).process
            assert process is not None, "bwrap is a child of ours"
            return process

        resources, base = _resources(self._settings), bases.Base(found.root)
        return BubblewrapWorkshop(
            self._root, self._settings, base, found, egress=self.egress, resources=resources, start=start
        )

    def _find_programs(self) -> Programs:
        root = bases.find(self._root, self._settings.base).path
        if os.geteuid() == 0 and not programs.reachable_directory(root):
            raise MachineUnfit(f"The users that sandboxes run as cannot enter their base, {root}.")
        bwrap, rg, python = programs.bubblewrap(), programs.ripgrep(), programs.base_python(root)
        if os.geteuid() == 0:
            if not programs.reachable_by_others(bwrap):
                parts = programs.bubblewrap_parts(bwrap)
                bwrap = programs.stage(self._root, "bubblewrap", parts) / next(p for p in parts if p.endswith("bwrap"))
            if rg is not None and not programs.reachable_by_others(rg):
                rg = programs.stage(self._root, "ripgrep", {"rg": rg}) / "rg"
            if python.prefix is not None and not programs.reachable_by_others(python.prefix):
                staged = programs.stage(self._root, "python", programs.python_parts(python.prefix))
                python = python._replace(prefix=staged)
        runs = Path(sys.executable) if python.prefix else Path(python.executable)
        daemon = programs.stage_daemon(self._root, runs)
        base = programs.stage(self._root, "base", base_parts(python, root))
        pip = programs.pip_parts()
        return Programs(bwrap, daemon, python, base, rg, programs.stage(self._root, "pip", pip) if pip else None, root)

    async def furnish(self, recipe: Recipe) -> None:
        """See `LocalSandboxes.furnish`."""
        assert self._layers is not None, "start() comes first"
        await self._layers.ensure(recipe.packages, await anyio.to_thread.run_sync(self._base))

    def _base(self) -> str:
        assert self._programs is not None, "prepare() comes first"
        return bases.Base(self._programs.root).identity()

    def builds(self) -> bool:
        """See `warm.Backend`."""
        return self._layers is not None and self._layers.builds()

    async def close(self) -> None:
        """See `LocalSandboxes.close`. Builds end with the server."""
        if self._layers is not None:
            await self._layers.close()
        await super().close()
        if self._cgroups is not None and (builds := self.group(BUILDS)) is not None:
            builds.remove_if_empty()
            self._cgroups.remove()

    def _furnished(self, recipe: Recipe) -> Programs:
        """What to bind for this recipe; the layer is there."""
        assert self._programs is not None and self._layers is not None, "prepare() comes first"
        layer = None if recipe.packages == Packages() else self._layers.find(recipe.packages, self._base())
        if layer is None:
            return self._programs
        found = self._programs._replace(layer=layer / "packages")
        if (layer / "base").is_dir():
            parts = base_parts(found.python, layer / "base")
            found = found._replace(root=layer / "base", base=programs.stage(self._root, "base", parts))
        return found

    def launch(self, directory: SessionDirectory, listener: int, recipe: Recipe) -> Launched:
        """See `LocalSandboxes.launch`."""
        found = self._furnished(recipe)
        way_out = self.way_out(directory, recipe)
        command = self.daemon_command(
            found.python.executable,
            "/opt/corral/lib",
            listener=listener,
            root="/workspace",
            environment={**dict(recipe.variables), **ENVIRONMENT, **(way_out.variables if way_out else {})},
            resources=_resources(self._settings),
            names={},
            egress_socket=inside.SOCKET if way_out else "",
        )
        shared = self._settings.shared_memory_bytes_max
        argv = [*arguments(found, directory.files, shared, way_out), "--", *command]
        with directory.log.open("wb") as log:
            group = self.group(directory.path.name)
            return _start_enclosed(argv, directory.owner(), log, (listener,), group, held=True)

    def explain(self) -> list[Fact]:
        """See `LocalSandboxes.explain`."""
        facts = [Fact("platform", sys.platform.startswith("linux"), " ".join(os.uname()[0:3:2]))]
        try:
            self.prepare()
            found = self._programs or self._find_programs()
        except MachineUnfit as error:
            return [*facts, Fact("bubblewrap sandbox", False, error.message)]
        rooted = f"host uids from {self._settings.uid_first}, one for each" if os.geteuid() == 0 else "your own user"
        return [
            *facts,
            Fact("bubblewrap sandbox", True, f"a trial sandbox ran, as {rooted}"),
            Fact("system calls", True, "filtered by an allow-list (seccomp)"),
            Fact("sandbox directory", True, str(self._root)),
            Fact("sandbox python", True, "from /usr" if found.python.prefix is None else "Corral's own"),
            *self._explain_packages(found),
            Fact("ripgrep", found.rg is not None, "found" if found.rg else "missing: install the package `ripgrep`"),
            *self._explain_limits(),
        ]

    def _explain_limits(self) -> list[Fact]:
        settings, found = self._settings, self._cgroups
        force = [] if found is None else found.controllers
        by = "no cgroup is writable" if found is None else f"cgroup version {1 if found.old else 2}"
        memory = f"memory {settings.memory_bytes_max} bytes " + ("in all" if "memory" in force else "per process")
        cpus = f"{settings.cpus_max:g} cpus" if "cpu" in force else "cpus unlimited"
        count = "processes" if "pids" in force or "RLIMIT_NPROC" in _resources(settings) else "processes unlimited, not"
        return [
            Fact("sandbox limits", True, f"{by}: {memory}, {cpus}, {count} {settings.processes_max}"),
            Fact("sandbox limits per process", True, _in_words(_resources(settings))),
            Fact(
                "sandbox disk",
                True,
                f"{settings.disk_bytes_max} bytes and {settings.disk_files_max} files for each, held by counting and "
                f"stopping the writer; /dev/shm {settings.shared_memory_bytes_max} bytes, by its size",
            ),
        ]

    def _explain_packages(self, found: Programs) -> Iterator[Fact]:
        workshop = self._workshop(found)
        apt = (
            "takes apt packages" if workshop.why_no_apt() is None else "takes no apt packages: see `corral base build`"
        )
        yield Fact("sandbox base", True, f"{'this machine' if found.root == Path('/') else found.root}; {apt}")
        try:
            yield from workshop.explain(bases.Base(found.root).identity())
        finally:
            if (builds := self.group(BUILDS)) is not None:
                builds.remove()


def _in_words(resources: Mapping[str, int]) -> str:
    return ", ".join(f"{name[7:].lower()} {value}" for name, value in resources.items())


class _Info(msgspec.Struct):
    pid: int = msgspec.field(name="child-pid")


def root_directory(settings: SandboxSettings, data_dir: Path) -> Path:
    """Where sandboxes, bases and layers are kept."""
    if settings.directory is not None:
        return Path(settings.directory).expanduser().absolute()
    beside = data_dir.absolute() / "sandboxes"
    if os.geteuid() != 0 or programs.reachable_directory(beside):
        return beside
    return ROOT_DIRECTORY / hashlib.sha256(os.fsencode(data_dir.absolute())).hexdigest()[:12]


def _resources(settings: SandboxSettings) -> Mapping[str, int]:
    """Limits that the daemon sets for itself and all it starts.

    Memory is limited per process here, which is all there is without cgroups, and as RLIMIT_DATA: node and Java
    reserve far more address space than they use, so an RLIMIT_AS that means anything stops them from starting.
    Processes are counted per host uid; where that uid is the user's own, only kernels that count in the sandbox's
    user namespace apart can limit them without limiting the user too.
    """
    limits = {
        "RLIMIT_CORE": 0,
        "RLIMIT_NOFILE": settings.open_files_max,
        "RLIMIT_DATA": settings.memory_bytes_max,
        "RLIMIT_FSIZE": settings.disk_bytes_max,
    }
    release = tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2])
    if os.geteuid() == 0 or release >= NPROC_PER_NAMESPACE_SINCE:
        limits["RLIMIT_NPROC"] = settings.processes_max
    return limits


def _start_enclosed(
    argv: list[str],
    uid: int,
    log: IO[bytes] | int,
    inherited: tuple[int, ...],
    group: cgroups.Group | None,
    *,
    held: bool = False,
) -> Launched:
    """Run bwrap, and put it and all it starts into the group before any of that runs.

    With `held`, its standard input is a gate, for a daemon that waits until it is written down.
    """
    if group is not None:
        group.make()
    news, news_inside = os.pipe()
    # bwrap does not start the daemon before this pipe has no writer any more.
    blocked, hold = os.pipe()
    gate, gate_inside = socket.socketpair() if held else (None, None)
    try:
        told = ["--info-fd", str(news_inside), "--block-fd", str(blocked)]
        process = _start([argv[0], *told, *argv[1:]], uid, log, (*inherited, news_inside, blocked), gate_inside)
        os.close(news_inside)
        news_inside = -1
        said = b""
        while not said.endswith(b"}\n") and (piece := os.read(news, INFO_BYTES_MAX)):
            said += piece
        if not said:
            end(process)  # it has failed, or was killed with its work half done
        # The daemon itself: bwrap stays outside, only to wait for it.
        pid = msgspec.json.decode(said, type=_Info).pid if said else process.pid
        if group is not None and said:
            _enclose(group, process, pid)
    except BaseException:
        if gate is not None:
            gate.close()
        raise
    finally:
        if gate_inside is not None:
            gate_inside.close()
        for descriptor in (news, news_inside, blocked, hold):
            if descriptor >= 0:
                os.close(descriptor)
    return Launched(process, pid, gate)


def _enclose(group: cgroups.Group, process: subprocess.Popen[bytes], pid: int) -> None:
    try:
        group.put(process.pid, pid)
    except SandboxUnavailable:
        for each in (pid, process.pid):
            with suppress(ProcessLookupError):
                os.kill(each, signal.SIGKILL)
        process.wait()
        raise


def _start(
    argv: list[str], uid: int, log: IO[bytes] | int, inherited: tuple[int, ...], gate: socket.socket | None = None
) -> subprocess.Popen[bytes]:
    """Run bwrap in a session of its own, with nothing of ours but what is named, and never as root."""
    if uid == 0:
        raise SandboxUnavailable("The session's files belong to root, and no sandbox runs as root.")
    # Setting a user needs root; without it we are that user already.
    user = uid if os.geteuid() == 0 else None
    system_calls = seccomp.open_program()
    try:
        return subprocess.Popen(
            [argv[0], "--seccomp", str(system_calls), *argv[1:]],
            stdin=subprocess.DEVNULL if gate is None else gate.fileno(),
            stdout=log,
            stderr=subprocess.STDOUT,
            env=ENVIRONMENT,
            cwd="/",
            pass_fds=(*inherited, system_calls),
            start_new_session=True,
            user=user,
            group=user,
            extra_groups=None if user is None else (),
        )
    finally:
        os.close(system_calls)


def _probe(found: Programs, settings: SandboxSettings) -> None:
    """Run an empty sandbox; the only way to know that this machine lets us."""
    check = f"import sys; sys.exit(sys.version_info < {programs.PYTHON_MIN})"
    argv = [
        *arguments(found, None, settings.shared_memory_bytes_max, None),
        "--",
        found.python.executable,
        "-I",
        "-S",
        "-c",
        check,
    ]
    uid = settings.uid_first if os.geteuid() == 0 else os.geteuid()
    with tempfile.TemporaryFile() as log:
        try:
            process = _start(argv, uid, log, ())
        except (OSError, subprocess.SubprocessError) as error:
            raise MachineUnfit(f"bubblewrap cannot be started as uid {uid}: {error}. {REMEDY}") from error
        try:
            code = process.wait(settings.start_seconds_max)
        except subprocess.TimeoutExpired as error:
            end(process)
            process.wait()
            raise MachineUnfit("A trial sandbox did not end in time.") from error
        log.seek(0)
        said = log.read(2_000).decode("utf-8", "replace").strip()
    if code:
        raise MachineUnfit(f"A trial sandbox failed ({said or f'exit code {code}'}). {_remedy(said)}")


def _remedy(said: str) -> str:
    """What to do about it, by what the kernel's switches say."""
    for switch, bad in SWITCHES.items():
        path = Path("/proc/sys", switch.replace(".", "/"))
        if path.exists() and path.read_text(encoding="ascii").strip() == bad:
            return f"Allow user namespaces with `sysctl {switch}={SWITCH_VALUES[switch]}`. {REMEDY}"
    if "proc" in said:
        return f"In a container, /proc must not be masked (`--security-opt systempaths=unconfined`). {REMEDY}"
    return f"The machine must allow user namespaces to ordinary users. {REMEDY}"
