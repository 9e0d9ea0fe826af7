"""Which machine has a session's sandbox, when several share a store: noted from before it is made until it is put away.

A host is a data directory: `host` in it holds its name, and a lock on that keeps a second worker out. Who advances a
session is sent to the host of its sandbox by the engine; when nobody answers there, another machine goes on, with the
files as they were last put away, and the agent is told so.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from corral.domain.query import Record
from corral.errors import MachineUnfit, NotFound
from corral.interfaces.clock import Clock
from corral.interfaces.records import Records

KIND = "sandbox_host"
MOVED = (
    "[The session's sandbox was on another machine, which does not answer. This is a fresh one, without the files that "
    "were there.]"
)
MOVED_RESTORED = (
    "[The session's sandbox was on another machine, which does not answer. This one has the files as they were when it "
    "last rested; what was changed since, and /tmp, background processes and the shell's state, is gone.]"
)
MOVES = {notice: f"It is unknown whether this call took effect. {notice}" for notice in (MOVED, MOVED_RESTORED)}
"""What is said of a call that may have been running there."""


@contextmanager
def host_name(data_dir: Path) -> Generator[str]:
    """The name of this host, which nobody else has meanwhile. Raises `MachineUnfit`."""
    path = data_dir / "host"
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise MachineUnfit(f"{path} cannot be opened: {error.strerror}.") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        name = os.read(descriptor, 64).decode("ascii", "replace").strip()
        if not name:
            name = secrets.token_hex(8)
            os.write(descriptor, name.encode())
            os.fsync(descriptor)
        yield name
    except BlockingIOError as error:
        raise MachineUnfit(f"{data_dir} is in use by another worker; give each its own --data-dir.") from error
    finally:
        os.close(descriptor)


class Hosts:
    """Hosts by session; none for one whose sandbox rests, or that has none."""

    def __init__(self, records: Records, clock: Clock, here: str) -> None:
        self._records, self._clock = records, clock
        self.here = here
        """This host's name; empty where no sandboxes are made."""

    async def of(self, session_id: str) -> str | None:
        """The host that has the session's sandbox."""
        try:
            return (await self._records.get(KIND, session_id, None)).body.decode()
        except NotFound:
            return None

    async def is_elsewhere(self, session_id: str) -> bool:
        """Whether another host has it."""
        return await self.of(session_id) not in (None, self.here)

    async def take(self, session_id: str, workspace_id: str) -> None:
        """From now on it is here."""
        assert self.here, "nothing is made where there are no sandboxes"
        now, body = self._clock.now(), self.here.encode()
        await self._records.put(Record(kind=KIND, id=session_id, workspace_id=workspace_id, created_at=now, body=body))

    async def leave(self, session_id: str, *, anywhere: bool = False) -> None:
        """It is here no more, or, with `anywhere`, nowhere."""
        try:
            record = await self._records.get(KIND, session_id, None)
            if anywhere or record.body.decode() == self.here:
                await self._records.delete(KIND, session_id, record.workspace_id)
        except NotFound:
            return
