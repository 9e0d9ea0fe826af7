"""A real server on a loopback port for each test, in a thread of its own, with the store of tests behind it.

Tests talk to it from outside with the official SDK or with plain HTTP. `Server.commit` plays the harness: it appends
to the log on the server's own event loop.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol, TypeVar

import anthropic
import httpx2
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from corral.api.betas import MANAGED_AGENTS
from corral.api.dependencies import Services
from corral.api.routes import create_app
from corral.catalogue import load_catalogue
from corral.config_sections import SandboxSettings, ServerSettings
from corral.domain import turn
from corral.domain.api_key import ApiKey, sha256
from corral.domain.lifecycle import Change
from corral.domain.session import Session, SessionState
from corral.engines.bus import LocalBus
from corral.errors import Unauthenticated
from corral.interfaces.engine import Collect, Worker
from corral.interfaces.event_log import Committed, Decision
from corral.sandboxes.process import ProcessSandboxes
from corral.storage.blobs import DiskBlobs
from corral.storage.ephemeral import EphemeralStore
from corral.vaults.credentials import VaultCredentials
from corral.vaults.master_key import new_master_key
from corral.vaults.sealing import LocalKeyWrapper, VaultSealing

T = TypeVar("T")

WAIT_SECONDS = 10.0
KEYS = {"key-one": "wrkspc_one", "key-two": "wrkspc_two"}
LIMITS = turn.Limits()
START = datetime(2026, 11, 1, tzinfo=UTC)


class TickingClock:
    """A millisecond passes at each look, so that everything has its own moment; more when a test says so."""

    def __init__(self) -> None:
        self._now = START

    def now(self) -> datetime:
        self._now += timedelta(milliseconds=1)
        return self._now

    def advance(self, seconds: float) -> None:
        self._now += timedelta(seconds=seconds)


class RecordingEngine:
    """Runs nothing; remembers what it was told."""

    def __init__(self) -> None:
        self.woken: list[str] = []
        self.interrupted: list[str] = []

    async def start(self, worker: Worker, sessions: Sequence[str]) -> None: ...

    def wake(self, session_id: str) -> None:
        self.woken.append(session_id)

    def interrupt(self, session_id: str) -> None:
        self.interrupted.append(session_id)

    def collects(self, collect: Collect) -> None: ...

    async def collect(self, session_id: str) -> None: ...

    async def stop(self, grace_seconds: float) -> None: ...


async def authenticate(secret: str) -> ApiKey:
    if secret not in KEYS:
        raise Unauthenticated
    return ApiKey(id=f"apikey_{secret}", workspace_id=KEYS[secret], sha256=sha256(secret), created_at=START)


class _Uvicorn(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = threading.Event()
        self.loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.loop = asyncio.get_running_loop()
        self.ready.set()


class Host:
    """A uvicorn that serves one test after another, each with an app of its own."""

    def __init__(self) -> None:
        self.app: ASGIApp | None = None
        # asyncio turns Nagle's algorithm off only for sockets that say they are TCP.
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.bind(("127.0.0.1", 0))
        self.port = int(listener.getsockname()[1])
        config = uvicorn.Config(self, log_config=None, access_log=False, lifespan="off", ws="none", loop="asyncio")
        self._uvicorn = _Uvicorn(config)
        self._os_thread = threading.Thread(
            target=lambda: asyncio.run(self._uvicorn.serve(sockets=[listener])), daemon=True
        )
        self._os_thread.start()
        assert self._uvicorn.ready.wait(WAIT_SECONDS), "the server did not start"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert self.app is not None
        await self.app(scope, receive, send)

    def run(self, action: Callable[[], Awaitable[T]]) -> T:
        """Run something on the event loop."""

        async def running() -> T:
            return await action()

        assert self._uvicorn.loop is not None
        return asyncio.run_coroutine_threadsafe(running(), self._uvicorn.loop).result(WAIT_SECONDS)

    def stop(self) -> None:
        """Stop at once, open streams included."""
        self._uvicorn.should_exit = True
        self._uvicorn.force_exit = True
        self._os_thread.join(WAIT_SECONDS)
        assert not self._os_thread.is_alive(), "the server did not stop"


class Server:
    """One test's server."""

    def __init__(self, host: Host, settings: ServerSettings) -> None:
        self.clock = TickingClock()
        self.engine = RecordingEngine()
        self.bus = LocalBus(frames_max=settings.stream_buffer_frames_max, bytes_max=settings.stream_buffer_bytes_max)
        self.store = EphemeralStore(self.bus, self.clock)
        self._directory = TemporaryDirectory(prefix="corral-api-")
        self.directory = Path(self._directory.name)
        self.blobs = DiskBlobs(self.directory / "blobs")
        self.sandboxes = ProcessSandboxes(SandboxSettings(), self.directory)
        keys = (new_master_key(),)
        sealing = VaultSealing(LocalKeyWrapper(lambda: keys))
        self.services = Services(
            log=self.store.log,
            records=self.store.records,
            blobs=self.blobs,
            sandboxes=self.sandboxes,
            sealing=sealing,
            credentials=VaultCredentials(self.store.records, sealing, self.clock),
            bus=self.bus,
            engine=self.engine,
            clock=self.clock,
            settings=settings,
            authenticate=authenticate,
            models=load_catalogue({}),
        )
        self.host = host
        self.port = host.port
        self.base_url = f"http://127.0.0.1:{host.port}"
        self.app = host.app = create_app(self.services)
        self.run = host.run
        self._clients = ExitStack()
        self.client = self.sdk()
        self.http = self._clients.enter_context(
            httpx2.Client(base_url=self.base_url, headers=headers(), timeout=WAIT_SECONDS, verify=False)
        )

    def close(self) -> None:
        """Close the clients and forget everything."""
        self._clients.close()
        self.blobs.close()
        self._directory.cleanup()

    def sdk(self, key: str = "key-one") -> anthropic.Anthropic:
        """An official client of this server."""
        client = anthropic.Anthropic(
            api_key=key,
            base_url=self.base_url,
            max_retries=0,
            http_client=httpx2.Client(timeout=WAIT_SECONDS, verify=False),
        )
        return self._clients.enter_context(client)

    def commit(
        self, session_id: str, decide: Callable[[Session, SessionState, datetime], Sequence[Change]]
    ) -> Committed:
        """Append to a session's log, as the harness would."""

        def decision(session: Session, state: SessionState, now: datetime) -> Decision:
            return Decision(decide(session, state, now))

        return self.run(lambda: self.store.log.transact(session_id, decision))

    def proceed(self, session_id: str, limits: turn.Limits = LIMITS) -> None:
        """Take up what waits, as far as the rules alone carry the session."""
        self.commit(session_id, lambda session, state, now: turn.proceed(session, state, (), limits, now).changes)

    def interrupt_turn(self, session_id: str) -> None:
        """End the session's turn."""
        self.commit(session_id, turn.interrupt)


def headers(key: str = "key-one", **more: str) -> dict[str, str]:
    """What every raw request carries."""
    return {"authorization": f"Bearer {key}", "anthropic-beta": MANAGED_AGENTS, **more}


class Serve(Protocol):
    """Starts a server with settings of the test's own."""

    def __call__(self, **settings: Any) -> Server: ...


class World:
    """What sessions need."""

    def __init__(self, server: Server, model: str = "claude-opus-5-5", **agent: Any) -> None:
        self.server = server
        self.client = server.client
        beta = server.client.beta
        self.agent_id = beta.agents.create(name="worker", model=model, **agent).id
        self.environment_id = beta.environments.create(name=f"place-{self.agent_id}").id

    def session(self, *texts: str, **more: Any) -> str:
        """A new session, running if it is given something to say."""
        return self.client.beta.sessions.create(
            agent=self.agent_id,
            environment_id=self.environment_id,
            initial_events=[message(text) for text in texts],
            **more,
        ).id


def message(text: str) -> Any:
    """A user.message."""
    return {"type": "user.message", "content": [{"type": "text", "text": text}]}
