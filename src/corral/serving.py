"""HTTP around a `Corral`: bind, serve, and close so that clients notice at once.

uvicorn does the work; this file binds the socket itself (so that port 0 works and a taken port is one sentence), and
ends the open event streams before uvicorn waits for connections.
"""

from __future__ import annotations

import signal
import socket
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager

import anyio
import msgspec
import uvicorn

from corral.app.server import Corral
from corral.config import Settings
from corral.errors import MachineUnfit
from corral.heads import BoundedHeads

GRACE_SECONDS = 5
BACKLOG = 2_048
KEEP_ALIVE_SECONDS = 65


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises `MachineUnfit` when the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is named because asyncio turns Nagle's delay off only for sockets that name it.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise MachineUnfit(f"Cannot listen on {host}:{port}: {error.strerror}. Choose another with --port.") from error
    listener.listen(BACKLOG)
    listener.set_inheritable(False)
    return listener


def base_url(listener: socket.socket) -> str:
    """The URL that clients use."""
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}"


def listening_on(settings: Settings, listener: socket.socket) -> Settings:
    """The settings with the port that was had, where any port would do."""
    port = listener.getsockname()[1]
    return msgspec.structs.replace(settings, server=msgspec.structs.replace(settings.server, port=port))


class _Server(uvicorn.Server):
    """A uvicorn that ends event streams when it shuts down, and leaves the process's signals to the caller.

    Open streams would otherwise hold the shutdown up until its grace is over; and uvicorn raises a signal again after
    its own clean-up, which would kill the process before ours.
    """

    def __init__(self, config: uvicorn.Config, corral: Corral) -> None:
        super().__init__(config)
        self._corral = corral

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._corral.bus.close()
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        yield


@asynccontextmanager
async def serving(corral: Corral, listener: socket.socket) -> AsyncGenerator[str]:
    """Serve while the block runs; yields the base URL."""
    config = uvicorn.Config(
        corral.app,
        loop="none",
        http=BoundedHeads,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
    )
    server = _Server(config, corral)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_serve, server, listener)
        try:
            yield base_url(listener)
        finally:
            server.should_exit = True


async def serve_until_signalled(corral: Corral, listener: socket.socket) -> None:
    """Serve until SIGINT or SIGTERM."""
    async with serving(corral, listener):
        await until_signalled()


async def until_signalled() -> None:
    """Wait for SIGINT or SIGTERM."""
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        await anext(signals)


async def _serve(server: uvicorn.Server, listener: socket.socket) -> None:
    await server.serve(sockets=[listener])
