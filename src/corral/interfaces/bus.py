"""What is happening: frames for open streams."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from typing import Protocol

import msgspec


class Frame(msgspec.Struct, frozen=True, gc=False):
    """Something a stream may show: a fact or a preview, encoded once for all readers."""

    session_id: str
    type: str
    data: bytes
    """The JSON object."""
    preview_of: str | None = None
    """For previews, the type of the event to come; None for facts."""
    preview_id: str | None = None
    """For previews, the id of the event to come."""


class Subscription(Protocol):
    """One reader's queue of frames. Bounded: a reader that does not keep up is cut off."""

    def __aiter__(self) -> AsyncIterator[Frame]:
        """Frames in commit order. Ends when the session is deleted; raises `Unavailable` when cut off."""
        ...

    def waiting(self, bytes_max: int) -> list[Frame]:
        """Take frames that are there already, until they are so many bytes; never the last one of a session."""
        ...

    def close(self) -> None:
        """Stop receiving. Idempotent."""
        ...


class Bus(Protocol):
    """Frames from whoever commits to whoever streams. Keeps nothing."""

    def publish(self, frames: Sequence[Frame]) -> None:
        """Hand frames to all current readers of their sessions. Never blocks. Called from the event loop."""
        ...

    def subscribe(self, session_id: str, *, previews: Collection[str] = ()) -> Subscription:
        """From now on, all facts of the session and previews of the given event types."""
        ...

    def opened_at(self, session_id: str, seq: int) -> None:
        """A reader who has subscribed has found the session's log at `seq` after that: what follows must reach it."""
        ...

    def wants_previews(self, session_id: str) -> bool:
        """Whether anybody may be reading; if not, the harness need not make previews."""
        ...
