"""A process of ours that a sandbox is made of: reaped as soon as it ends, so that none stays a zombie; ended whole."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from contextlib import suppress

from corral.sandboxes.cgroups import Group


class Child:
    """See the module."""

    def __init__(self, process: subprocess.Popen[bytes], group: Group | None) -> None:
        self.process, self.group = process, group
        self._loop = asyncio.get_running_loop()
        self._ended: int | None = os.pidfd_open(process.pid)
        self._loop.add_reader(self._ended, self.leave)

    def leave(self) -> None:
        """Reap it if it has ended, and watch it no longer."""
        if self._ended is not None:
            self._loop.remove_reader(self._ended)
            os.close(self._ended)
            self._ended = None
        if self.process.poll() is None:
            # It outlives us on purpose; this keeps Popen from complaining about that.
            self.process.returncode = 0
        elif self.group is not None:
            self.group.remove_if_empty()


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process that was started with a session of its own, and what it has started in there; wait for it apart.

    bwrap makes the sandbox's first process before it sets it up, and that one waits for bwrap without end: whoever
    kills bwrap alone at that moment leaves it behind. As long as it waits, it is in bwrap's group.
    """
    if process.returncode is None:  # not reaped, so the number is still its own
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
