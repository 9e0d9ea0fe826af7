"""What tests' own servers share: a port, a thread, and bytes passed on."""

from __future__ import annotations

import select
import socket
import socketserver
import threading
from collections.abc import Generator
from contextlib import contextmanager

PIECE_BYTES = 65_536


def free_port() -> int:
    """A port that nobody listened at a moment ago, for servers that must be told one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def served(server: socketserver.BaseServer) -> Generator[None]:
    """The server answers while the block runs; then it is closed."""
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def pass_on(one: socket.socket, other: socket.socket, seconds_max: float) -> None:
    """Between the two, both ways, until one ends or both are silent for too long."""
    while ready := select.select([one, other], [], [], seconds_max)[0]:
        for source in ready:
            piece = source.recv(PIECE_BYTES)
            if not piece:
                return
            (other if source is one else one).sendall(piece)
