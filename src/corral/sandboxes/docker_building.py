"""Where containers build layers: see `packages/workshop.py`.

Every command of a build has a container of its own, of the image that the packages are for, with the walls of a
session's. Its output comes through a pipe that its first process fetches at a door, and the connection to the door is
its life: see `daemon/building.py`. Nothing is written to the image, so what apt would do is refused.
"""

from __future__ import annotations

import os
import secrets
import select
import signal
import socket
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from io import BytesIO
from pathlib import Path

from corral.config_sections import SandboxSettings
from corral.errors import PackagesFailed
from corral.sandboxes.directory import remove_tree
from corral.sandboxes.docker_container import HOME, Parts, build_mounts, container, variables
from corral.sandboxes.docker_door import NOTING_ERRORS, open_door
from corral.sandboxes.docker_engine import EngineApi
from corral.sandboxes.egress.inside import WayOut
from corral.sandboxes.egress.outlet import Egress
from corral.sandboxes.packages.output import Bounds, Command, run
from corral.sandboxes.packages.workshop import PLACES, PROBE_SECONDS_MAX, QUESTION, Workshop, answer

LAYER_LABEL = "corral.layer"
ANSWER_BYTES_MAX = 16
NO_APT = (
    "The environment's apt packages could not be installed: apt changes the whole of a system, as root, and Corral "
    "changes no image. Put them into an image of your own (`RUN apt-get install`), and name it for this environment "
    "under `[sandbox.docker.images]` in corral.toml."
)


class DockerWorkshop(Workshop):
    """See the module. A base is an image, by its id."""

    def __init__(
        self,
        root: Path,
        settings: SandboxSettings,
        engine: EngineApi,
        parts: Parts,
        *,
        egress: Egress,
        resources: Mapping[str, int],
        labels: Mapping[str, str],
    ) -> None:
        super().__init__(root, settings, egress, resources)
        self._engine, self._parts, self._server = engine, parts, labels

    def tools(self, base: str) -> Mapping[str, str]:
        """See `Workshop.tools`: they are asked in a container without anything."""
        # Named as copies of programs are, so that one which a killed server leaves is removed with them.
        scratch = self._root / "programs" / f"asking-{secrets.token_hex(8)}"
        uid = self._settings.uid_first if os.geteuid() == 0 else os.geteuid()
        bounds = Bounds(scratch, seconds_max=PROBE_SECONDS_MAX, bytes_max=self._settings.disk_bytes_max)
        said = BytesIO()
        try:
            scratch.mkdir(mode=0o700)
            for name in PLACES:
                (scratch / name).mkdir(mode=0o700)
                if os.geteuid() == 0:
                    os.chown(scratch / name, uid, uid)
            failed = run(lambda: self._start(QUESTION, scratch, {}, uid=uid, base=base, way_out=None), bounds, said)
        finally:
            self._engine.remove(self._labels(scratch))
            remove_tree(scratch)
        if failed:
            raise PackagesFailed(f"The sandbox's image did not tell its tools: {failed}")
        return answer(said.getvalue().decode("utf-8", "replace"))

    def lacking(self, tool: str, advice: str) -> str:
        """See `Workshop.lacking`."""
        return (
            f"the sandbox's image has no `{tool}`. In an image of your own, {advice}, and name it for this environment "
            "under `[sandbox.docker.images]`."
        )

    def why_no_apt(self) -> str | None:
        """See `Workshop.why_no_apt`."""
        return NO_APT

    def release(self, draft: Path, uid: int) -> None:
        """See `Workshop.release`. What still runs over the draft ends first."""
        self._engine.remove(self._labels(draft))
        super().release(draft, uid)

    def _labels(self, draft: Path) -> Mapping[str, str]:
        return {**self._server, LAYER_LABEL: draft.name}

    def start(
        self, argv: Sequence[str], draft: Path, environment: Mapping[str, str], *, uid: int, base: str, apt: bool
    ) -> Command:
        """See `Workshop.start`."""
        return self._start(argv, draft, environment, uid=uid, base=base, way_out=self.way_out(draft))

    def _start(
        self,
        argv: Sequence[str],
        draft: Path,
        environment: Mapping[str, str],
        *,
        uid: int,
        base: str,
        way_out: WayOut | None,
    ) -> Command:
        command = self.command("python3", argv, networked=way_out is not None, at_door=True)
        made = container(
            base,
            [*NOTING_ERRORS, *command],
            {**variables(self._engine.image(base).variables), **environment},
            uid=uid,
            place=HOME,
            mounts=build_mounts(draft, self._parts, way_out),
            labels=self._labels(draft),
            settings=self._settings,
        )
        output, theirs = os.pipe()
        with ExitStack() as undone, open(theirs, "wb", buffering=0):
            undone.callback(os.close, output)
            undone.callback(self._engine.remove, self._labels(draft))
            with open_door(draft, uid, draft / "tmp") as door:
                started = self._engine.start(made)
                line = undone.enter_context(door.admit(started, self._settings.start_seconds_max))
                # Before it is handed what it waits for: later it may have come to its end.
                ended = os.pidfd_open(started.pid)
                undone.callback(os.close, ended)
                socket.send_fds(line, [b"\0"], [theirs])
            undone.pop_all()
        return _Contained(output, ended, line)


class _Contained:
    """Implements `Command`: a container."""

    def __init__(self, output: int, ended: int, line: socket.socket) -> None:
        self.output, self.ended, self._line = output, ended, line

    def end(self) -> None:
        """See `Command.end`. The kernel ends everything else inside with its first process."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.ended, signal.SIGKILL)

    def close(self, seconds_max: float) -> int:
        """See `Command.close`."""
        poll = select.poll()
        poll.register(self.ended, select.POLLIN)
        try:
            if not poll.poll(seconds_max * 1000):
                raise PackagesFailed("A container in which packages were installed does not end.")
            self._line.settimeout(0)
            said = self._line.recv(ANSWER_BYTES_MAX)
        except (BlockingIOError, ConnectionError):
            said = b""
        finally:
            self._line.close()
            os.close(self.ended)
            os.close(self.output)
        return int(said) if said.strip().isdigit() else 1
