"""A wire to a database that can be cut after so many bytes, in either direction."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from typing import Literal, TypeAlias
from urllib.parse import urlsplit, urlunsplit

import anyio
from anyio.abc import ByteStream, SocketAttribute, SocketStream

Direction: TypeAlias = Literal["asked", "answered"]
GREETING_BYTES = 256
"""What a connection begins with, by which it is known."""
BROKEN = (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError, OSError)


class CuttingProxy:
    """Passes bytes on; once armed, the first connection that has passed so many more is cut on both sides."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._left: int | None = None
        self._direction: Direction = "asked"
        self._of = b""
        self._gone = False
        self.away = False
        """Nobody is let in."""
        self.cuts = 0

    def cut_after(self, count: int, direction: Direction, *, of: bytes = b"", gone: bool = False) -> None:
        """Pass `count` more bytes in this direction, then cut. Only connections count that began by saying `of`, such
        as the name of an application. With `gone`, no connection is let in after the cut until `disarm`."""
        self._left, self._direction, self._of, self._gone = count, direction, of, gone

    def disarm(self) -> None:
        """Pass everything."""
        self._left, self.away = None, False

    async def serve(self, client: SocketStream) -> None:
        """One connection."""
        if self.away:
            return await client.aclose()
        try:
            server = await anyio.connect_tcp(self._host, self._port)
        except OSError:
            return await client.aclose()
        async with client, server, anyio.create_task_group() as tasks:
            wire = partial(self._pass, said=bytearray(), scope=tasks.cancel_scope)
            tasks.start_soon(partial(wire, client, server, "asked"))
            await wire(server, client, "answered")

    async def _pass(
        self, source: ByteStream, target: ByteStream, direction: Direction, *, said: bytearray, scope: anyio.CancelScope
    ) -> None:
        try:
            while True:
                data = await source.receive()
                if direction == "asked" and len(said) < GREETING_BYTES:
                    said += data
                if self._left is not None and direction == self._direction and self._of in said:
                    data, whole = data[: self._left], data
                    self._left -= len(data)
                    if len(data) < len(whole) or self._left == 0:
                        self._left = None
                        self.cuts += 1
                        self.away = self._gone
                        if data:
                            await target.send(data)
                        return
                await target.send(data)
        except BROKEN:
            return
        finally:
            scope.cancel()


@asynccontextmanager
async def cutting(url: str) -> AsyncGenerator[tuple[CuttingProxy, str]]:
    """A proxy before the database, and the database's URL through it."""
    parts = urlsplit(url)
    proxy = CuttingProxy(parts.hostname or "127.0.0.1", parts.port or 5432)
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, proxy.serve)
        port = listener.extra(SocketAttribute.local_port)
        credentials, _, _ = parts.netloc.rpartition("@")
        yield proxy, urlunsplit(parts._replace(netloc=f"{credentials}@127.0.0.1:{port}"))
        tasks.cancel_scope.cancel()
