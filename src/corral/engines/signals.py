"""What tells a running `advance` of an interrupt: an `asyncio.Event` in the shape of `interfaces.engine.Signal`."""

from __future__ import annotations

import asyncio


class LocalSignal:
    """A signal within one process."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def set(self) -> None:
        """Fire."""
        self._event.set()

    def is_set(self) -> bool:
        """Whether it has fired since the last `clear`."""
        return self._event.is_set()

    async def wait(self) -> None:
        """Until it fires."""
        await self._event.wait()

    def clear(self) -> None:
        """Arm it again."""
        self._event.clear()
