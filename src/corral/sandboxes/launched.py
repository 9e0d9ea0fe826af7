"""A daemon that a backend has started, and the gate it waits at.

A daemon that is our own child has one end of a pair of sockets as its standard input. It says there when it is ready,
and serves nobody before it has read a line: the variables that are set for its session. The line is written when the
sandbox is written down and belongs to a session; if the server dies before, the gate closes, and the daemon ends.
"""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from typing import NamedTuple

import anyio
import msgspec

from corral.errors import SandboxUnavailable


class Launched(NamedTuple):
    """See the module."""

    process: subprocess.Popen[bytes] | None
    """Our child; None when an engine started it for us."""
    pid: int
    """The process whose death ends the sandbox; ours, or a child of it."""
    gate: socket.socket | None = None
    """Our end of it; None where there is none, and the daemon waits in a way of its own."""

    async def ready(self) -> None:
        """Until the daemon waits at its gate. Raises `SandboxUnavailable` when it ends instead."""
        assert self.gate is not None, "only daemons at a gate are waited for"
        await anyio.wait_readable(self.gate)
        with suppress(OSError):
            if self.gate.recv(1):
                return
        raise SandboxUnavailable("The sandbox ended while it was starting.")

    def release(self, variables: Mapping[str, str] | None) -> None:
        """Let the daemon serve with these variables; None lets it end. Only the first time counts. Blocking."""
        if self.gate is None:
            return
        with self.gate, suppress(OSError):  # it has ended, or the gate was opened before
            if variables is not None:
                self.gate.sendall(msgspec.json.encode(variables) + b"\n")

    def runs(self) -> bool:
        """Whether it has not ended, as far as we can tell."""
        return self.process is None or self.process.poll() is None
