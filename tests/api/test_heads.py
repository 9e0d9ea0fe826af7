"""Heads of requests that are too slow: no connection is kept for somebody who says nothing, or never says all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio
import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from corral.heads import BoundedHeads

pytestmark = [pytest.mark.anyio, pytest.mark.requirement("F159")]
SECONDS_MAX = 60.0
HASTE = 0.1
REQUEST = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"


@asynccontextmanager
async def connected(
    ready: asyncio.Event, seconds: list[float]
) -> AsyncGenerator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """To a server that says `beginning` and, once it is `ready`, ` end`; its patience is the last of `seconds`."""

    class Impatient(BoundedHeads):
        @property
        def head_seconds_max(self) -> float:
            return seconds[-1]

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"13")]})
        await send({"type": "http.response.body", "body": b"beginning", "more_body": True})
        await ready.wait()
        await send({"type": "http.response.body", "body": b" end"})

    config = uvicorn.Config(app, lifespan="off", log_config=None)
    config.load()
    state = ServerState()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Impatient(config, state, {}), "127.0.0.1", 0)
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
        try:
            with anyio.fail_after(SECONDS_MAX):
                yield reader, writer
        finally:
            writer.close()
            await writer.wait_closed()


@pytest.mark.parametrize("begun", [b"", REQUEST[:-2]])
async def test_a_connection_that_does_not_say_what_it_wants_is_closed(begun: bytes) -> None:
    async with connected(asyncio.Event(), [HASTE]) as (reader, writer):
        writer.write(begun)
        assert await reader.read() == b""


async def test_the_second_request_of_a_connection_must_be_said_too() -> None:
    ready, seconds = asyncio.Event(), [SECONDS_MAX]
    ready.set()
    async with connected(ready, seconds) as (reader, writer):
        writer.write(REQUEST)
        await reader.readuntil(b"beginning end")
        seconds.append(HASTE)
        writer.write(REQUEST[:-2])
        assert await reader.read() == b""


async def test_an_answer_that_is_on_its_way_is_not_cut_off_by_what_comes_behind_its_request() -> None:
    ready, seconds = asyncio.Event(), [SECONDS_MAX]
    async with connected(ready, seconds) as (reader, writer):
        writer.write(REQUEST)
        await reader.readuntil(b"beginning")
        seconds.append(HASTE)
        writer.write(REQUEST[:-2])
        with anyio.move_on_after(3 * HASTE):
            assert not await reader.read(1)
            pytest.fail("the answer was cut off")
        ready.set()
        assert await reader.readexactly(4) == b" end"
