"""A model server of bytes: what it answers, and how the connection ends, is decided byte by byte.

For answers that no proper server gives. It runs in the event loop of the test; each request has its connection. Which
play a request gets is up to `play`, by the model's name and by how often that model was asked before.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any, Literal, NamedTuple

import msgspec

Json = dict[str, Any]
RESET = struct.pack("ii", 1, 0)
REQUEST_BYTES_MAX = 64 * 1024 * 1024


class Play(NamedTuple):
    """One answer: a whole HTTP response, or the beginning of one."""

    data: bytes
    ending: Literal["close", "reset", "hang"] = "close"
    piece_bytes: int | None = None
    """Sent in pieces of this size; None sends all at once."""
    flood: bytes = b""
    """Sent after `data`, `floods` times."""
    floods: int = 0


def http(
    body: bytes,
    *,
    status: str = "200 OK",
    length: int | None = None,
    kind: str = "text/event-stream",
    more: str = "",
) -> bytes:
    """A response; without a length it lasts until the connection ends."""
    sized = "" if length is None else f"content-length: {length}\r\n"
    return f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\nconnection: close\r\n{sized}{more}\r\n".encode() + body


class RawServer:
    """See `serving`."""

    def __init__(self, port: int, play: Callable[[str, list[Json]], Play]) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.bodies: defaultdict[str, list[Json]] = defaultdict(list)
        """What each model was asked, in order."""
        self._play = play
        self.tasks: set[asyncio.Task[None]] = set()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        try:
            await self._answer(reader, writer)
        except (ConnectionError, EOFError):
            pass  # the client has seen enough, or asked for nothing
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(head.partition("content-length: ")[2].partition("\r\n")[0])
        body: Json = msgspec.json.decode(await reader.readexactly(length))
        asked = self.bodies[body["model"]]
        asked.append(body)
        play = self._play(body["model"], asked)
        size = play.piece_bytes or len(play.data) or 1
        for start in range(0, len(play.data), size):
            writer.write(play.data[start : start + size])
            await writer.drain()
        for _ in range(play.floods):
            writer.write(play.flood)
            await writer.drain()
        if play.ending == "hang":
            await reader.read()
        if play.ending == "reset":
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            writer.transport.abort()


@asynccontextmanager
async def serving(play: Callable[[str, list[Json]], Play]) -> AsyncGenerator[RawServer]:
    """The server, while the context is open. `play` gets a model's name and all it was asked, the newest last."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = RawServer(listener.getsockname()[1], play)
        async with await asyncio.start_server(server.answer, sock=listener, limit=REQUEST_BYTES_MAX):
            yield server
            for task in list(server.tasks):
                task.cancel()
            await asyncio.gather(*server.tasks, return_exceptions=True)
