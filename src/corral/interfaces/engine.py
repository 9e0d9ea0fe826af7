"""Who advances which session, and when."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeAlias

Collect: TypeAlias = Callable[[str], Awaitable[None]]
"""Takes in the outputs of a session, given its id."""


class Worker(Protocol):
    """What an engine runs: the harness."""

    async def advance(self, session_id: str, interrupted: Signal, *, inherited: bool) -> None:
        """Advance the session until it rests. Safe to kill at any line and to call again.

        `inherited` says that an earlier worker may have died in the middle: what it began is collected, not repeated.
        Raises `NotFound` when the session is gone, `StaleEpoch` when another worker has it, `Unavailable` when the
        store cannot write; anything else is a bug."""
        ...

    async def give_up(self, session_id: str) -> None:
        """End the session's turn with an error, after `advance` broke."""
        ...


class Signal(Protocol):
    """An edge that can be awaited and cleared."""

    def is_set(self) -> bool:
        """Whether it has fired since the last `clear`."""
        ...

    async def wait(self) -> None:
        """Until it fires."""
        ...

    def clear(self) -> None:
        """Arm it again."""
        ...


class Engine(Protocol):
    """Who advances which session, and when. Never trusted to be perfect: the log's epochs are the guard."""

    async def start(self, worker: Worker, sessions: Sequence[str]) -> None:
        """Begin to run sessions; `sessions` were unfinished when the last server stopped."""
        ...

    def wake(self, session_id: str) -> None:
        """The session has work. At most one `advance` of a session runs at a time; a wake during a run is kept."""
        ...

    def interrupt(self, session_id: str) -> None:
        """Tell a running `advance` at once that an interrupt waits in the log; also wakes."""
        ...

    def collects(self, collect: Collect) -> None:
        """What takes in the outputs of sessions whose sandboxes are on this machine, when others ask for it."""
        ...

    async def collect(self, session_id: str) -> None:
        """Have the machine that has the session's sandbox take in its outputs, as they are now. Raises `Unavailable`
        when it does not, or not in time."""
        ...

    async def stop(self, grace_seconds: float) -> None:
        """Stop starting work; let running steps finish for a while, then cancel them."""
        ...
