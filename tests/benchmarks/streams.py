"""Open event streams: what an idle one weighs, how fast events arrive at many, what readers that stall cost.

Three measurements, each on a server of its own. Latency is taken from the moment a request is sent to the moment a
frame of it has arrived, so it includes the disk, and this client's share of the cores: it reads every frame of every
stream.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import statistics
import time
from collections.abc import Sequence
from functools import partial
from typing import cast

import uvloop

from tests.benchmarks.server_process import Connection, Server, message, serving

NAME = "Event streams"
IDLE_STREAMS = 1_000
WARM_STREAMS = 50
READERS = 400
SESSIONS = 8
EVENTS = 8_000
BATCH = 10
SECONDS = 16.0
"""For all events together, evenly: the server is busy and not flooded."""
TEXT = "The build is green: 412 tests passed in 38 s, none were skipped and nothing was left running. " * 2
STALLED = 20
STALLED_EVENTS = 10_000
WARM_EVENTS = 2_000
STALLED_CLIENTS = 8
TITLE = "t" * 480
WAIT_SECONDS_MAX = 20.0
MARK = re.compile(rb"#(\d+):(\d+)#")


def run() -> list[tuple[str, float, str, str]]:
    rows: list[tuple[str, float, str, str]] = []
    for measure in (_idle, _delivery, _stalled):
        with serving() as server, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            rows += runner.run(measure(server))
    return rows


async def _idle(server: Server) -> list[tuple[str, float, str, str]]:
    asking = await server.connect()
    (session_id,) = await server.sessions(asking, 1)
    warm = await _open(server, session_id, WARM_STREAMS)
    before = server.memory_bytes()
    streams = await _open(server, session_id, IDLE_STREAMS)
    bytes_each = (server.memory_bytes() - before) / IDLE_STREAMS
    for connection in (asking, *warm, *streams):
        connection.close()
    return [("an idle stream", bytes_each / 1024, "KiB", f"aim: <= 18; {IDLE_STREAMS:,} open")]


async def _open(server: Server, session_id: str, count: int) -> list[Connection]:
    streams = [await server.connect() for _ in range(count)]
    for stream in streams:
        await stream.open_stream(server, session_id)
    return streams


# -------------------------------------------------------------------------------------------------------- delivery


class Reader(asyncio.Protocol):
    """Follows a stream: how many marked frames came, which ones, and how late."""

    def __init__(self, request: bytes, late: list[int]) -> None:
        self._request = request
        self._late = late
        self._rest = b""
        self.opened = asyncio.Event()
        self.complete = asyncio.Event()
        self.seen = 0
        self.numbers = 0
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's are not its children
        self.transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter_ns()
        self.opened.set()
        frames, _, self._rest = (self._rest + data).rpartition(b"\n\n")
        for number, sent in MARK.findall(frames):
            self.seen += 1
            self.numbers += int(number)
            self._late.append(now - int(sent))
        if self.seen >= EVENTS // SESSIONS:
            self.complete.set()


async def _delivery(server: Server) -> list[tuple[str, float, str, str]]:
    asking = [await server.connect() for _ in range(SESSIONS)]
    sessions = await server.busy_sessions(asking[0], SESSIONS)
    late: list[int] = []
    readers = [await _follow(server, sessions[number % SESSIONS], late) for number in range(READERS)]
    before, start = server.cpu_seconds(), time.perf_counter()
    await asyncio.gather(*(_send(server, *each, start) for each in zip(asking, sessions, strict=True)))
    wanted = EVENTS // SESSIONS
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(WAIT_SECONDS_MAX):
            for reader in readers:
                await reader.complete.wait()
    elapsed = time.perf_counter() - start
    cpu = server.cpu_seconds() - before
    lost = sum(reader.numbers != sum(range(wanted)) or reader.seen != wanted for reader in readers)
    for reader in readers:
        assert reader.transport is not None
        reader.transport.abort()
    cuts = statistics.quantiles(late, n=100)
    much = f"{len(late):,} frames in {elapsed:.0f} s to {READERS} streams of {SESSIONS} sessions"
    return [
        ("streams that lost or repeated an event", lost, "of 400", f"aim: 0; {EVENTS:,} events"),
        ("POST sent → frame read, p50", cuts[49] / 1e6, "ms", much),
        ("POST sent → frame read, p99", cuts[98] / 1e6, "ms", "aim: < 280 on two busy cores"),
        ("processor time of the server", cpu / len(late) * 1e6, "µs/frame", f"{cpu / elapsed:.0%} of a core"),
    ]


async def _follow(server: Server, session_id: str, late: list[int]) -> Reader:
    request = server.request("GET", f"/v1/sessions/{session_id}/events/stream")
    _, reader = await asyncio.get_running_loop().create_connection(
        partial(Reader, request, late), "127.0.0.1", server.port
    )
    await asyncio.wait_for(reader.opened.wait(), WAIT_SECONDS_MAX)
    return reader


async def _send(server: Server, connection: Connection, session_id: str, start: float) -> None:
    """This session's share of the events, in batches, each at its time."""
    count = EVENTS // SESSIONS
    for first in range(0, count, BATCH):
        await asyncio.sleep(start + SECONDS * first / count - time.perf_counter())
        now = time.perf_counter_ns()
        events = [message(f"#{number}:{now}# {TEXT}") for number in range(first, first + BATCH)]
        await connection.ask(server.request("POST", f"/v1/sessions/{session_id}/events", {"events": events}))


# --------------------------------------------------------------------------------------------------------- stalled


async def _stalled(server: Server) -> list[tuple[str, float, str, str]]:
    asking = [await server.connect() for _ in range(STALLED_CLIENTS)]
    (session_id,) = await server.sessions(asking[0], 1)
    await _rename(server, asking, session_id, WARM_EVENTS)
    alone = await _growth(server, asking, session_id)
    stalled = [await _stall(server, session_id) for _ in range(STALLED)]
    watched = await _growth(server, asking, session_id)
    for each in stalled:
        each.close()
    for connection in asking:
        connection.close()
    note = f"{STALLED} readers that read nothing while {STALLED_EVENTS:,} events pass"
    return [
        ("stalled readers: what they add", watched - alone, "MiB", f"aim: < 10; {note}"),
        ("growth with them, and without", watched, "MiB", f"{alone:.1f} MiB without: SQLite's page cache fills"),
    ]


async def _growth(server: Server, connections: Sequence[Connection], session_id: str) -> float:
    """By how many MiB the server grows while the events pass."""
    before = server.memory_bytes()
    await _rename(server, connections, session_id, STALLED_EVENTS)
    return (server.memory_bytes() - before) / 1024**2


async def _stall(server: Server, session_id: str) -> socket.socket:
    """A stream whose reader takes its headers at most, and then nothing."""
    reader = socket.socket()
    reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    reader.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(reader, ("127.0.0.1", server.port))
    await loop.sock_sendall(reader, server.request("GET", f"/v1/sessions/{session_id}/events/stream"))
    await loop.sock_recv(reader, 64)
    return reader


async def _rename(server: Server, connections: Sequence[Connection], session_id: str, count: int) -> None:
    """Events that are processed at once and wait for nobody: `session.updated`."""

    async def work(connection: Connection, numbers: range) -> None:
        for number in numbers:
            body = {"title": f"{number} {TITLE}"}
            await connection.ask(server.request("POST", f"/v1/sessions/{session_id}", body))

    step = len(connections)
    await asyncio.gather(*(work(each, range(n, count, step)) for n, each in enumerate(connections)))
