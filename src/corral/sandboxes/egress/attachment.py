"""Which sandboxes are served, and until when: from before they start until their process has ended.

Between the life of a sandbox (`local.py`) and the proxy (`outlet.py`).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

from corral.domain.egress import EgressPolicy
from corral.domain.placeholder import Substitution
from corral.sandboxes.directory import SessionDirectory
from corral.sandboxes.egress.outlet import Egress


class Attachments:
    """Of one server, by session."""

    def __init__(self, egress: Egress) -> None:
        self._egress = egress
        self._followed: dict[str, int] = {}
        """pidfds of sandboxes that run."""

    @asynccontextmanager
    async def starting(
        self,
        directory: SessionDirectory,
        session_id: str,
        policy: EgressPolicy | None,
        secrets: Sequence[Substitution],
    ) -> AsyncGenerator[None]:
        """Serve the sandbox that starts in the block, and no longer if it does not. Raises `SandboxUnavailable`."""
        await self._attach(directory, session_id, policy, secrets)
        try:
            yield
        except BaseException:
            self.detach(session_id)
            raise

    async def _attach(
        self,
        directory: SessionDirectory,
        session_id: str,
        policy: EgressPolicy | None,
        secrets: Sequence[Substitution],
    ) -> None:
        self._unfollow(session_id)
        if policy is None:
            self._egress.detach_now(session_id)
        else:
            await self._egress.attach(session_id, directory.egress, directory.owner(), policy, secrets=secrets)

    async def attach_again(
        self, directory: SessionDirectory, session_id: str, pid: int, secrets: Sequence[Substitution]
    ) -> None:
        """Serve a sandbox that was found running: as it was made, whatever its environment says by now."""
        if session_id not in self._followed:
            await self._attach(directory, session_id, directory.egress_policy(), secrets)
            self.follow(session_id, pid)

    def entrust(self, session_id: str, secrets: Sequence[Substitution]) -> None:
        """Let these and no others be its secrets. Cheap when nothing changed."""
        self._egress.entrust(session_id, secrets)

    def follow(self, session_id: str, pid: int) -> None:
        """When this process ends, nobody is left to be served."""
        try:
            process = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        self._followed[session_id] = process
        asyncio.get_running_loop().add_reader(process, self.detach, session_id)

    def detach(self, session_id: str) -> None:
        """Serve it no longer. Idempotent."""
        self._unfollow(session_id)
        self._egress.detach_now(session_id)

    def _unfollow(self, session_id: str) -> None:
        process = self._followed.pop(session_id, None)
        if process is not None:
            asyncio.get_running_loop().remove_reader(process)
            os.close(process)

    async def close(self) -> None:
        """Stop looking, and end the proxy."""
        for session_id in list(self._followed):
            self._unfollow(session_id)
        await self._egress.close()
