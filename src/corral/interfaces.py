"""Every seam of Corral in one file.

The middle parts (`harness engines tools mcp providers sandboxes storage api`) never import one another; they meet
here, and `app/` wires them. Each protocol's docstring is its contract; `tests/contracts` holds it against every
implementation. Nothing here does anything.

    EventLog   what happened: sessions, their events and their state     storage/{sqlite,postgres,ephemeral}
    Records    everything else that lasts: agents, environments, keys    storage/{sqlite,postgres,ephemeral}
    Sealing    how secrets are kept                                      vaults/sealing
    Credentials  what a session's vaults hold                            vaults/credentials
    Blobs      the bytes of files                                        storage/{blobs,s3_blobs}
    Archive    both at once, for moving in and out                       storage/{sqlite,postgres,ephemeral}
    Bus        what is happening: frames for open streams                engines/local
    Engine     who advances which session, and when                      engines/local
    Sandboxes  where tools run                                           sandboxes/{bubblewrap,docker,process}
    Provider   models                                                    providers/{anthropic,openai,local,scripted}
    McpServers  tools from elsewhere                                     mcp/servers
    Tool       a built-in tool of the sandbox                            tools/*
    WebTool    a built-in tool that reaches out                          tools/web_*
    Clock      what time it is                                           app/clock, tests
    Tracer     where time goes, for operators                            tracing.py
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from datetime import datetime
from typing import Literal, NamedTuple, Protocol, TypeAlias

import msgspec

from corral.domain import turn
from corral.domain.content import JsonObject, ResultBlock
from corral.domain.credential import Credential
from corral.domain.credential_validation import Validation
from corral.domain.environment import SEALED, Recipe
from corral.domain.file import Blob, Mount, Output
from corral.domain.inference import ModelChunk, ModelRequest, ToolSpec
from corral.domain.lifecycle import Change, Row
from corral.domain.placeholder import Substitution
from corral.domain.query import EventsQuery, LoggedEvent, Record, RecordsQuery, SessionsQuery
from corral.domain.restored import RestoredEvent
from corral.domain.session import Session, SessionState
from corral.domain.toolset import ToolConfig
from corral.domain.url import Url
from corral.domain.web import Source

# ---------------------------------------------------------------------------------------------------- clock


class Clock(Protocol):
    """The only source of time, so that tests can move it."""

    def now(self) -> datetime:
        """The current moment, timezone-aware, in UTC."""
        ...


# --------------------------------------------------------------------------------------------------- traces

Attributes: TypeAlias = Mapping[str, str | int | float | bool]
"""What is noted of a span, by dotted names. Contents only where `Tracer.content` allows them; never secrets."""


class Span(Protocol):
    """Something that takes time, as a trace shows it."""

    def note(self, attributes: Attributes) -> None:
        """Add to what is known of it."""
        ...

    def fail(self, kind: str) -> None:
        """It failed; `kind` is the name of the error, not its text."""
        ...


class Tracer(Protocol):
    """Takes down spans. Cheap, never blocks, and never raises."""

    @property
    def content(self) -> bool:
        """Whether spans may hold what was said."""
        ...

    def trace(self, name: str, attributes: Attributes) -> AbstractContextManager[Span]:
        """A trace of its own; steps that begin inside, in tasks that are started there too, are under it."""
        ...

    def step(self, name: str, attributes: Attributes) -> AbstractContextManager[Span]:
        """A span under the trace that is open here. May be left in another task than it was entered in."""
        ...


# ------------------------------------------------------------------------------------------------ providers


class Provider(Protocol):
    """A place that runs models."""

    def stream(self, request: ModelRequest) -> AsyncGenerator[ModelChunk]:
        """Ask the model; yield previews as they come and a `ModelResponse` last.

        Closing the iterator early cuts the connection to the model at once. Raises `ProviderError` (a subclass
        says whether a retry makes sense) and nothing else; never yields a `ModelResponse` after an error."""
        ...

    async def close(self) -> None:
        """Free connections and processes. Idempotent."""
        ...


# ------------------------------------------------------------------------------------------------ sandboxes

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
        """The regular files in `/mnt/session/outputs`, as they are now; None when there was never a sandbox."""
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


# ---------------------------------------------------------------------------------------------------- tools


class Tool(Protocol):
    """A built-in tool of `agent_toolset_20260401` that runs in the sandbox."""

    @property
    def spec(self) -> ToolSpec:
        """What the model is told. All descriptions together stay under 900 tokens."""
        ...

    def call(self, call_id: str, arguments: JsonObject) -> SandboxCall:
        """Check the model's arguments and make the sandbox call. Raises `Invalid`, worded for the model."""
        ...


class WebTool(Protocol):
    """A built-in tool that runs on the server, whatever the networking of the session's environment is.

    It only reads, so a call that a worker did not see the end of is made again."""

    @property
    def spec(self) -> ToolSpec:
        """What the model is told; counts like that of a `Tool`."""
        ...

    @property
    def offered(self) -> bool:
        """Whether models are told of it. One that is not still answers, with the reason."""
        ...

    async def run(
        self, arguments: JsonObject, config: ToolConfig | None, shown: Callable[[Url], Collection[Source]]
    ) -> SandboxReply:
        """Run the call within the agent's settings for the tool; `shown` says where the conversation showed a URL.
        Failures are error results for the model. Raises `Invalid`, worded for it, for arguments that make no sense."""
        ...

    async def close(self) -> None:
        """Drop connections. Idempotent."""
        ...


# ------------------------------------------------------------------------------------------------------ mcp


class McpTool(NamedTuple):
    """A tool of an MCP server, as its server and as models name it."""

    server: str
    name: str
    spec: ToolSpec


class McpFailure(NamedTuple):
    """A server that could not be reached, and why, in a sentence without secrets."""

    server: str
    message: str
    is_authentication: bool


class McpOffer(NamedTuple):
    """What the MCP servers of a session have to offer now."""

    tools: tuple[McpTool, ...] = ()
    """By server in the agent's order, then by name. Disabled tools are left out."""
    failures: tuple[McpFailure, ...] = ()


class McpServers(Protocol):
    """Connections to the MCP servers of sessions. Kept between turns, dropped when idle; a cache, never a fact."""

    async def offer(self, session: Session, *, retry: bool) -> McpOffer:
        """Connect to what is not connected yet and list the tools. On `retry`, which each turn begins with, servers
        that failed are tried again and lists are read anew. Bounded in time; never raises."""
        ...

    async def call(self, session: Session, server: str, name: str, arguments: JsonObject) -> SandboxReply:
        """Call a tool. What goes wrong is an error reply, worded for the model. Cancelling tells the server."""
        ...

    async def forget(self, session_id: str) -> None:
        """Drop the session's connections. Idempotent."""
        ...

    async def close(self) -> None:
        """Drop all connections. Idempotent."""
        ...


# ------------------------------------------------------------------------------------------------- the log

Step: TypeAlias = turn.Step


class Decision(NamedTuple):
    """What a decision function wants committed."""

    changes: Sequence[Change]
    session: Session | None = None
    """The session record to store in the same transaction, if it changes."""
    step: Step | None = None
    """What the harness does next; only passed through."""


Decide: TypeAlias = Callable[[Session, SessionState, datetime], Decision]
"""A pure function of the session as it is now. It may be run more than once; it raises to refuse."""


def nothing(session: Session, state: SessionState, now: datetime) -> Decision:
    """The decision to change nothing."""
    return Decision(())


class Committed(NamedTuple):
    """What a transaction did."""

    session: Session
    state: SessionState
    rows: tuple[Row, ...]
    step: Step | None


class Snapshot(NamedTuple):
    """A session and its state at one moment."""

    session: Session
    state: SessionState


class Claim(NamedTuple):
    """The right to advance a session, until somebody claims it again."""

    epoch: int
    committed: Committed

    @property
    def state(self) -> SessionState:
        """The session's state when it was claimed."""
        return self.committed.state


class EventLog(Protocol):
    """Sessions and what happened to them. The only truth.

    `transact` runs a decision function on the current session inside a transaction and commits its changes with
    the state they lead to: all of them durable when it returns, or none. Transactions on one session run one after
    another. After a commit the log publishes its rows on the `Bus`, in commit order.
    """

    async def create(self, session: Session, state: SessionState, decide: Decide) -> Committed:
        """Store a new session, with the decision's changes (initial events). Raises `Conflict` if the id exists."""
        ...

    async def snapshot(self, session_id: str, workspace_id: str | None = None) -> Snapshot:
        """The session as it is. Raises `NotFound`, also for another workspace's session."""
        ...

    async def transact(
        self, session_id: str, decide: Decide, *, workspace_id: str | None = None, epoch: int | None = None
    ) -> Committed:
        """Decide and commit. Raises `NotFound`; `StaleEpoch` when `epoch` is no longer the session's; and what
        `decide` raises, after which nothing is changed."""
        ...

    async def claim(self, session_id: str, decide: Decide = nothing) -> Claim:
        """Take over the session, and commit a first decision in the same transaction.

        From now on appends with an older epoch are refused. Raises `NotFound`."""
        ...

    async def events(self, session_id: str, query: EventsQuery) -> list[LoggedEvent]:
        """A page of history. Events that wait come last, in the order they were accepted. Raises `NotFound`."""
        ...

    async def sessions(self, query: SessionsQuery) -> list[Snapshot]:
        """A page of sessions."""
        ...

    async def unfinished(self) -> list[str]:
        """Ids of all sessions that are running or rescheduling: what an engine resumes when it starts."""
        ...

    async def spent_microdollars(self) -> int:
        """List cost of tokens of all sessions together, for the organisation's limit."""
        ...

    async def delete(self, session_id: str, workspace_id: str, allow: Callable[[Session, SessionState], None]) -> None:
        """Remove the session and its history, if `allow` does not raise. Publishes `session.deleted`."""
        ...


# ------------------------------------------------------------------------------------------------- records


class Records(Protocol):
    """Everything durable that is not a session: small objects by kind and id."""

    async def put(self, *records: Record, expect: Mapping[str, int] | None = None) -> None:
        """Insert or replace all records in one transaction.

        `expect` maps a record's id to the revision that must be stored now (0: none). Raises `Conflict` when that
        does not hold, or when a `unique_key` is taken; then nothing is changed."""
        ...

    async def get(self, kind: str, record_id: str, workspace_id: str | None) -> Record:
        """Raises `NotFound`, also for another workspace's record. `workspace_id=None` looks in all."""
        ...

    async def page(self, query: RecordsQuery) -> list[Record]:
        """A page of records."""
        ...

    async def delete(self, kind: str, record_id: str, workspace_id: str) -> None:
        """Remove a record. Raises `NotFound`."""
        ...


# ----------------------------------------------------------------------------------------------------- archive


class Restored(NamedTuple):
    """A session from elsewhere. Its events come in the order of history, and before `state`, what they add up to."""

    session: Session
    events: Iterable[RestoredEvent]
    state: Callable[[], SessionState]


class Archive(Protocol):
    """Everything in one store, for moving in and out."""

    async def workspaces(self) -> list[str]:
        """Ids of all workspaces that have something, sorted."""
        ...

    async def restore(self, items: Iterable[Record | Restored]) -> Counter[str]:
        """Store all items, or none; nothing is published, and no spending is counted. They are taken one at a time,
        maybe on another thread, and anew if the transaction is repeated. What is here and the same on the wire is left
        alone and counted in the answer by kind. Raises `Conflict` when it differs, and what the iteration raises."""
        ...


class Store(Protocol):
    """One place where things last."""

    @property
    def log(self) -> EventLog:
        """Sessions and their events."""
        ...

    @property
    def records(self) -> Records:
        """Everything else."""
        ...

    @property
    def archive(self) -> Archive:
        """Both at once."""
        ...

    async def close(self) -> None:
        """Finish what was begun and let go of the store. Idempotent."""
        ...


# -------------------------------------------------------------------------------------------------- vaults


class Sealing(Protocol):
    """Seals secrets with a key of their vault, which is itself sealed by a master key. Pure computation."""

    def new_key(self, vault_id: str) -> bytes:
        """A data key for a vault, sealed."""
        ...

    def seal(self, vault_id: str, key: bytes, data: bytes, about: str) -> bytes:
        """Seal `data` with the vault's `key`, bound to what it is `about`. Raises `MachineUnfit`."""
        ...

    def mark(self, vault_id: str, key: bytes, about: str) -> bytes:
        """32 bytes that depend on the vault's key and on what they are `about`. Raises `MachineUnfit`."""
        ...

    def open(self, vault_id: str, key: bytes, sealed: bytes, about: str) -> bytes:
        """What was sealed. Raises `MachineUnfit` when the keys are others, or it was sealed about something else."""
        ...


class Bearer(NamedTuple):
    """A token for an MCP server. Never logged: its text is a star."""

    token: str
    vault_id: str
    credential_id: str

    def __repr__(self) -> str:
        return f"Bearer({self.credential_id}, ***)"


class Variable(NamedTuple):
    """A secret that stands in a sandbox's environment as a placeholder. Never logged: its text is a star."""

    credential: Credential
    secret: str
    mark: bytes
    """20 bytes that are this variable's in this session, the same on every worker and whatever its secret is; nobody
    can compute them without the vault's key."""

    def __repr__(self) -> str:
        return f"Variable({self.credential.id}, ***)"


class Credentials(Protocol):
    """What the vaults of a session hold, found by use. The first vault in order that has a match wins."""

    async def bearer(
        self, workspace_id: str, vault_ids: Sequence[str], url: str, *, rejected: Bearer | None = None
    ) -> Bearer | None:
        """The token for the MCP server at `url`, refreshed if it is about to expire or was `rejected` (401); None when
        no vault has one, or when it was rejected and cannot be had anew. Raises `CredentialFailed`."""
        ...

    async def variables(self, workspace_id: str, vault_ids: Sequence[str], session_id: str) -> Sequence[Variable]:
        """The environment variables, one for each name. Raises `MachineUnfit` when they cannot be opened."""
        ...

    async def validate(self, workspace_id: str, vault_id: str, credential_id: str) -> Validation:
        """Try an `mcp_oauth` credential on its server. Raises `NotFound`, and `Invalid` for another type."""
        ...


# --------------------------------------------------------------------------------------------------- blobs


class Blobs(Protocol):
    """Bytes by content, never changed; never whole in memory. The same bytes are one blob, whoever stores them."""

    def put(self, chunks: AsyncIterator[bytes]) -> AbstractAsyncContextManager[Blob]:
        """Store the bytes: durable when the context opens, and safe from `delete` until it closes, so store what
        refers to the blob inside. When `chunks` or the inside of the context raises, nothing new stays."""
        ...

    def hold(self, sha256: str) -> AbstractAsyncContextManager[None]:
        """Keep a blob safe from `delete` while the context is open. Raises `NotFound`. Never hold two at a time."""
        ...

    def open(self, sha256: str, *, first: int = 0, end: int | None = None) -> AsyncGenerator[bytes]:
        """The bytes from `first` up to `end`, in chunks. Raises `NotFound`."""
        ...

    async def delete(self, sha256: str, unless: Callable[[], Awaitable[bool]]) -> None:
        """Remove the blob, unless something refers to it, which is asked while nobody holds it. Idempotent."""
        ...


# ----------------------------------------------------------------------------------------------------- bus


class Frame(NamedTuple):
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

    def wants_previews(self, session_id: str) -> bool:
        """Whether anybody may be reading; if not, the harness need not make previews."""
        ...


# -------------------------------------------------------------------------------------------------- engine


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

    async def stop(self, grace_seconds: float) -> None:
        """Stop starting work; let running steps finish for a while, then cancel them."""
        ...
