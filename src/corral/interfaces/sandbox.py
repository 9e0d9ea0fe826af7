"""Where tools run: one running sandbox, and a backend that makes them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Literal, NamedTuple, Protocol, TypeAlias

import msgspec

from corral.domain.content import JsonObject, ResultBlock
from corral.domain.environment import SEALED, Recipe
from corral.domain.file import Mount, Output
from corral.domain.placeholder import Substitution
from corral.interfaces.blobs import Blobs
from corral.interfaces.clock import Clock
from corral.interfaces.records import Records

SandboxOperation: TypeAlias = Literal["bash", "read", "write", "edit", "glob", "grep"]


class SandboxCall(msgspec.Struct, frozen=True, kw_only=True):
    """One tool call to run inside a sandbox."""

    call_id: str
    """The id of the `agent.tool_use` event. The sandbox remembers results by it."""
    operation: SandboxOperation
    arguments: JsonObject
    resumed: bool = False
    """True when an earlier worker may already have sent this call."""


class SandboxReply(msgspec.Struct, frozen=True, kw_only=True):
    """What a call came to. A tool that fails returns `is_error`; only a broken sandbox raises."""

    content: tuple[ResultBlock, ...]
    is_error: bool = False


class Sandbox(Protocol):
    """One running sandbox, belonging to one session."""

    async def call(self, call: SandboxCall) -> SandboxReply:
        """Run the call, or collect its result if this sandbox has already run (or is running) that `call_id`.

        Calls may be made concurrently and run in parallel. Cancelling stops waiting AND stops the command
        inside. Raises `SandboxLost` when the sandbox dies meanwhile, or when `call.resumed` and an earlier
        instance that might have run the call is gone."""
        ...

    async def forget(self, call_ids: Sequence[str]) -> None:
        """The results of these calls are safe in the log; the sandbox need not keep them. Never raises."""
        ...


class Fact(NamedTuple):
    """One thing about this machine that a backend depends on."""

    name: str
    ok: bool
    detail: str


class Upkeep(NamedTuple):
    """What a backend needs to put sandboxes away and to bring them back."""

    records: Records
    blobs: Blobs
    clock: Clock
    owner: Callable[[str], Awaitable[str | None]]
    """The workspace of the session with this id; None when there is no such session."""
    host: str | None = None
    """This machine's name, when several share the store; empty for one that makes no sandboxes."""


class Sandboxes(Protocol):
    """A backend that makes sandboxes. Registered by name in `app/sandboxes.py`."""

    async def start(self) -> None:
        """Check that this machine can run the backend; raise `MachineUnfit` with the remedy if not."""
        ...

    def explain(self) -> Sequence[Fact]:
        """What `start` depends on, one by one, for `corral doctor`. Blocking; never raises."""
        ...

    async def explain_network(self) -> Sequence[Fact]:
        """How sandboxes reach the network, and whether that works, for `corral doctor`. After `start`; never raises."""
        ...

    def attended(self, upkeep: Upkeep) -> AbstractAsyncContextManager[None]:
        """While open: sandboxes that nobody uses are paused and then put away, and what belongs to no session, or is
        too old, is removed, now and from time to time. Opened before any sandbox, by the server that runs them."""
        ...

    async def open(self, session_id: str, recipe: Recipe = SEALED, secrets: Sequence[Substitution] = ()) -> Sandbox:
        """The session's sandbox: the one that runs, however it was made, else a new one by `recipe` over its files,
        which are brought back if they were put away.

        A new one has the placeholders of `secrets` in its environment. From now on these secrets and no others take
        their place in what the sandbox sends, also when it was running; they end with it.

        Idempotent and safe to call concurrently for one id. Survives a restart of the server: a sandbox that
        outlived it is found again. Raises `SandboxUnavailable` with the reason."""
        ...

    def entrust(self, session_id: str, secrets: Sequence[Substitution]) -> None:
        """As `open` does for a sandbox that runs; nothing for one that does not."""
        ...

    def out_of_reach(self, recipe: Recipe, hosts: Sequence[str]) -> Sequence[str]:
        """Which of these, exact or `*.` and a name, mean no host that a sandbox by `recipe` may reach."""
        ...

    async def mount(self, session_id: str, mounts: Sequence[Mount], blobs: Blobs) -> None:
        """Let `/mnt/session/uploads` hold exactly these files, read-only inside, but for those whose bytes are gone.
        Idempotent; comes after `open`. Raises `SandboxUnavailable`."""
        ...

    async def outputs(self, session_id: str) -> Sequence[Output] | None:
        """The regular files in `/mnt/session/outputs`, as they are now; None when there was never a sandbox. Raises
        `Elsewhere` when they are on another machine."""
        ...

    def read_output(self, session_id: str, path: bytes) -> AsyncGenerator[bytes]:
        """The bytes of one of the outputs, never of anything else. Raises `NotFound`."""
        ...

    async def destroy(self, session_id: str) -> None:
        """Stop the session's sandbox and remove its files. Idempotent; no error when there is none."""
        ...

    def leave(self) -> None:
        """The server is about to stop: from now on a cancelled call goes on inside, for the next server to collect."""
        ...

    async def close(self) -> None:
        """Drop connections. Running sandboxes stay for the next server to find; they end by themselves later."""
        ...
