"""The backend over the API of Docker or Podman: every session in a container of its own, of an image of your choice.

The container runs the same daemon as the other backends over the same directories, so files, uploads and outputs are
where `directory.py` says, and what is learnt of them elsewhere holds here. The engine must be on this machine, and be
root's: it mounts the session's directories, and the daemon inside runs as their owner, which is a host uid of the
sandbox's own when the server is root, and the server's user otherwise.

An engine passes no open socket on. So the daemon fetches it, whose path is nowhere inside, at a door
(`docker_door.py`), which also shows that the engine is on this machine. Containers have labels, are found again after a
restart, and are removed when they end; what an engine that died left over is removed at the next start. Packages of an
environment are a read-only layer, made for the image that it has (`docker_building.py`).
"""

from __future__ import annotations

import hashlib
import os
import platform
import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import anyio.to_thread

from corral.config_sections import PackagesSettings, SandboxSettings
from corral.domain.environment import Recipe
from corral.errors import MachineUnfit, SandboxUnavailable
from corral.interfaces.sandbox import Fact
from corral.sandboxes import programs, seccomp
from corral.sandboxes.directory import SessionDirectory
from corral.sandboxes.docker_building import DockerWorkshop
from corral.sandboxes.docker_container import Installed, Parts, container, session_mounts, variables
from corral.sandboxes.docker_door import NOTING_ERRORS, open_door
from corral.sandboxes.docker_engine import Engine, EngineApi, Image
from corral.sandboxes.egress import inside
from corral.sandboxes.egress.outlet import Egress
from corral.sandboxes.launched import Launched
from corral.sandboxes.local import LocalSandboxes
from corral.sandboxes.packages import inside as installed
from corral.sandboxes.packages.layers import Layers
from corral.sandboxes.packages.workshop import LIBRARY, SITE_PACKAGES

SERVER_LABEL, SESSION_LABEL = "corral.server", "corral.session"
PYTHON = '#!/bin/sh\nexec python3 "$@"\n'


class DockerSandboxes(LocalSandboxes):
    """See the module."""

    def __init__(
        self,
        settings: SandboxSettings,
        data_dir: Path,
        egress: Callable[[Path], Egress] | None = None,
        *,
        packages: PackagesSettings | None = None,
    ) -> None:
        directory = settings.directory and Path(settings.directory).expanduser().absolute()
        root = directory or data_dir.absolute() / "sandboxes"
        super().__init__(settings, root, egress(root / "egress") if egress else None)
        self._engine = EngineApi(settings.docker)
        self._packages = packages or PackagesSettings()
        self._parts: Parts | None = None
        self._workshop: DockerWorkshop | None = None
        self._layers: Layers | None = None
        self._server = hashlib.sha256(os.fsencode(self._root)).hexdigest()[:16]
        """Which containers are ours: those over this directory, whichever process made them."""

    def prepare(self) -> None:
        """See `LocalSandboxes.prepare`."""
        self._check(self._engine.look())
        try:
            for place in (self._root, self._root / "sessions", self._root / "programs"):
                place.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._parts = self._find_parts()
        except OSError as error:
            raise MachineUnfit(f"Sandboxes cannot be kept in {self._root}: {error}") from error
        try:
            self._engine.image(self._settings.docker.image)
            self._sweep()
            self._workshop = self._make_workshop(self._parts)
            self._layers = Layers(self._root, self._packages, self._workshop)
            self._layers.prune(self._packages.unused_days_max * 86_400)
        except SandboxUnavailable as error:
            raise MachineUnfit(error.message) from error

    def _find_parts(self) -> Parts:
        rg, pip = programs.ripgrep(), programs.pip_parts()
        own = {"bin/python": PYTHON, **installed.COMMANDS, "site/sitecustomize.py": installed.SITECUSTOMIZE}
        own["corral.pth"] = installed.PTH
        daemon = programs.stage_daemon(self._root, Path(sys.executable))
        staged = programs.stage(self._root, "container", {**own, **({} if rg is None else {"bin/rg": rg})})
        return Parts(daemon, staged, programs.stage(self._root, "pip", pip) if pip else None)

    def _make_workshop(self, parts: Parts) -> DockerWorkshop:
        return DockerWorkshop(
            self._root,
            self._settings,
            self._engine,
            parts,
            egress=self.egress,
            resources=self._resources(),
            labels={SERVER_LABEL: self._server},
        )

    def _check(self, engine: Engine) -> None:
        wanted = self._settings.docker.runtime
        if not sys.platform.startswith("linux") or engine.os_type != "linux":
            raise MachineUnfit("Containers share files and sockets with the server, which needs Linux for both.")
        if not seccomp.knows(platform.machine()):
            raise MachineUnfit(f"There is no system call filter for {platform.machine()} yet; sandboxes need one.")
        if any("rootless" in option for option in engine.security_options):
            raise MachineUnfit(
                "A rootless engine shifts user ids, so its containers cannot own a session's files. Use root's engine, "
                "or `--sandbox bubblewrap`, which needs no root."
            )
        if not any("seccomp" in option for option in engine.security_options):
            raise MachineUnfit("The engine was built without seccomp, and sandboxes need it.")
        if wanted is not None and wanted not in engine.runtimes:
            known = ", ".join(sorted(engine.runtimes))
            raise MachineUnfit(f"The engine has no runtime `{wanted}`; it has {known}. Install it, or choose another.")

    def _sweep(self) -> None:
        """Remove what did not get to run, and containers of sessions that are gone."""
        self._engine.remove_failed({SERVER_LABEL: self._server})
        for session_id in self._engine.values_of(SESSION_LABEL, {SERVER_LABEL: self._server}):
            if not (self._root / "sessions" / session_id).exists():
                self._engine.remove(self._labels(session_id))

    def _labels(self, session_id: str) -> Mapping[str, str]:
        return {SERVER_LABEL: self._server, SESSION_LABEL: session_id}

    async def furnish(self, recipe: Recipe) -> None:
        """See `LocalSandboxes.furnish`."""
        assert self._layers is not None, "start() comes first"
        image = await anyio.to_thread.run_sync(self._image, recipe)
        await self._layers.ensure(recipe.packages, image.id)

    def _image(self, recipe: Recipe) -> Image:
        docker = self._settings.docker
        return self._engine.image(docker.images.get(recipe.environment, docker.image))

    def _installed(self, recipe: Recipe, layers: Layers, image: Image) -> Installed | None:
        layer = layers.find(recipe.packages, image.id)
        return layer and Installed(layer / "packages", layers.tools(image.id).get(SITE_PACKAGES, ""))

    async def close(self) -> None:
        """See `LocalSandboxes.close`. Builds end with the server."""
        if self._layers is not None:
            await self._layers.close()
        await super().close()

    def launch(self, directory: SessionDirectory, listener: int, recipe: Recipe) -> Launched:
        """See `LocalSandboxes.launch`."""
        assert self._parts is not None and self._layers is not None, "prepare() comes first"
        uid = directory.owner()
        if uid == 0:
            raise SandboxUnavailable("The session's files belong to root, and no sandbox runs as root.")
        image = self._image(recipe)
        installed_here = self._installed(recipe, self._layers, image)
        way_out = self.way_out(directory, recipe)
        environment = variables({**image.variables, **dict(recipe.variables)}) | dict(
            way_out.variables if way_out else {}
        )
        daemon = self.daemon_command(
            "python3",
            LIBRARY,
            listener=-1,
            root="/workspace",
            environment=environment,
            resources=self._resources(),
            names={},
            module="arrival",
            egress_socket=inside.SOCKET if way_out else "",
        )
        made = container(
            # The id: its name may mean another image by now, which the layer is not for.
            image.id,
            [*NOTING_ERRORS, *daemon],
            environment,
            uid=uid,
            place="/workspace",
            mounts=session_mounts(directory, self._parts, way_out, installed_here),
            labels=self._labels(directory.path.name),
            settings=self._settings,
        )
        with open_door(directory.server, uid, directory.files / "tmp") as door:
            started = self._engine.start(made)
            try:
                with door.admit(started, self._settings.start_seconds_max) as knocking:
                    socket.send_fds(knocking, [b"\0"], [listener])
            except BaseException:
                self._engine.remove(self._labels(directory.path.name))
                raise
        return Launched(None, started.pid)

    def _resources(self) -> Mapping[str, int]:
        """What cgroups do not count; and memory once more, so that one process that wants too much can say so."""
        settings = self._settings
        limits = {"RLIMIT_CORE": 0, "RLIMIT_NOFILE": settings.open_files_max}
        return {**limits, "RLIMIT_FSIZE": settings.disk_bytes_max, "RLIMIT_DATA": settings.memory_bytes_max}

    def kill(self, directory: SessionDirectory) -> None:
        """See `LocalSandboxes.kill`."""
        super().kill(directory)
        self._engine.remove(self._labels(directory.path.name))

    def explain(self) -> list[Fact]:
        """See `LocalSandboxes.explain`."""
        docker = self._settings.docker
        try:
            engine = self._engine.look()
            self.prepare()
            image = self._engine.image(docker.image)
        except (MachineUnfit, SandboxUnavailable) as error:
            return [Fact("docker sandbox", False, error.message)]
        assert self._workshop is not None, "prepare() made it"
        missing = {"memory": engine.memory_limit, "processes": engine.pids_limit, "processors": engine.cpu_cfs_quota}
        unlimited = ", ".join(name for name, limited in missing.items() if not limited)
        return [
            Fact(
                "docker engine",
                True,
                f"{engine.server_version} at {docker.host}, runtime {docker.runtime or 'default'}",
            ),
            Fact(
                "docker image", True, f"{docker.image}; takes no apt packages, which belong into an image of your own"
            ),
            *self._workshop.explain(image.id),
            Fact("docker limits", not unlimited, f"the engine cannot limit {unlimited}" if unlimited else "cgroups"),
            Fact("system calls", True, "filtered by an allow-list (seccomp)"),
            Fact("sandbox directory", True, str(self._root)),
        ]
