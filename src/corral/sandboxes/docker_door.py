"""The door to a container: how its first process gets a descriptor, which an engine does not let it inherit.

A door is a socket in a directory that is mounted into this container alone. Who knocks must be the container's first
process, as the kernel tells; that one gets the descriptor, and then the door is taken away. `daemon/arrival.py` is the
other side. Blocking.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from corral.errors import SandboxUnavailable
from corral.sandboxes.connection import short_socket_path
from corral.sandboxes.directory import start_ticks
from corral.sandboxes.docker_container import accounts
from corral.sandboxes.docker_engine import Started

LOOK_SECONDS = 0.5
"""How often a server that waits at the door looks whether the container still runs."""
READY = b"ready"
"""As in `daemon/arrival.py`."""
WHO_KNOCKS = (
    "Sandboxes need a local engine, on the same machine and in the same namespaces as the server, and a runtime whose "
    "processes are the machine's own, as runc's and crun's are. gVisor's (runsc) are not."
)
SAID_BYTES_MAX = 2_000
NOTED = ".corral-start"
NOTING_ERRORS = ("/bin/sh", "-c", f'exec "$0" "$@" 2>/tmp/{NOTED}')
"""Engines keep what a container said only as long as the container."""
SILENT = "its container ended without a word"


class Door:
    """One door: what waits there, and for whom."""

    def __init__(self, listener: socket.socket, uid: int, notes: Path) -> None:
        self._listener, self._uid, self._notes = listener, uid, notes

    def admit(self, started: Started, seconds_max: float) -> socket.socket:
        """The connection to the container's first process and to nobody else, which now waits to be handed its
        descriptor. For the caller to close. Raises `SandboxUnavailable`."""
        knocking = self._accept(started, time.monotonic() + seconds_max)
        try:
            pid, uid, _ = struct.unpack("3i", knocking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            if (pid, uid) != (started.pid, self._uid):
                raise SandboxUnavailable(
                    f"Process {pid} of user {uid} asked for the sandbox's socket, and not the container's process "
                    f"{started.pid} of user {self._uid}. {WHO_KNOCKS}"
                )
            knocking.settimeout(seconds_max)
            said = knocking.recv(SAID_BYTES_MAX)
            if said != READY:
                raise SandboxUnavailable(f"The sandbox did not start: {said.decode('utf-8', 'replace')}.")
        except BaseException:
            knocking.close()
            raise
        return knocking

    def _accept(self, started: Started, deadline: float) -> socket.socket:
        self._listener.settimeout(LOOK_SECONDS)
        while True:
            try:
                return self._listener.accept()[0]
            except TimeoutError as error:
                if start_ticks(started.pid) is None:
                    raise SandboxUnavailable(f"The sandbox did not start: {self._noted()}.") from error
                if time.monotonic() > deadline:
                    raise SandboxUnavailable("The sandbox did not start in time.") from error

    def _noted(self) -> str:
        """What an instance said that ended before any tool ran."""
        try:
            # Not followed: whoever can write here could otherwise show us any file.
            descriptor = os.open(self._notes, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return SILENT
        with open(descriptor, "rb") as file:
            lines = file.read(SAID_BYTES_MAX).decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else SILENT


@contextmanager
def open_door(entry: Path, uid: int, tmp: Path) -> Generator[Door]:
    """A door in `entry`, the server's own directory, which also gets the accounts that the inside sees; for the user
    `uid`, whose /tmp is at `tmp`. It is gone at the end."""
    for name, text in accounts(uid).items():
        (entry / name).write_text(text, encoding="ascii")
        (entry / name).chmod(0o644)
    place = entry / "door"
    place.mkdir(exist_ok=True)
    place.chmod(0o711)
    (place / "socket").unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        try:
            with short_socket_path(place / "socket") as short:
                listener.bind(short)
            (place / "socket").chmod(0o666)
            listener.listen(1)
            yield Door(listener, uid, tmp / NOTED)
        finally:
            (place / "socket").unlink(missing_ok=True)
            (tmp / NOTED).unlink(missing_ok=True)
