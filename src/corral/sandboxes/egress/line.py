"""HTTP/1.1 over a stream of bytes: `h11` does the protocol, this file moves the bytes and keeps the time.

Bodies pass through in pieces and are never gathered. Every wait is bounded; `TimeoutError` says that one was too long.
"""

from __future__ import annotations

import select
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import anyio
import h11
from anyio.abc import ByteStream, SocketAttribute

PIECE_BYTES = 64 * 1024
Header: TypeAlias = tuple[bytes, bytes]
Event: TypeAlias = (
    h11.Request | h11.InformationalResponse | h11.Response | h11.Data | h11.EndOfMessage | h11.ConnectionClosed
)
EVENTS = (h11.Request, h11.InformationalResponse, h11.Response, h11.Data, h11.EndOfMessage, h11.ConnectionClosed)
STREAM_ERRORS = (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream, OSError)
"""The other side is gone."""

HOP_BY_HOP = frozenset(
    b"connection proxy-connection proxy-authorization proxy-authenticate keep-alive te trailer upgrade "
    b"http2-settings expect".split()
)


class Line:
    """One end of an HTTP connection."""

    def __init__(self, stream: ByteStream, role: type[h11.SERVER] | type[h11.CLIENT], limits: Limits) -> None:
        self.stream, self._role, self._limits = stream, role, limits
        self._begin()

    def _begin(self) -> None:
        self.http = h11.Connection(self._role, max_incomplete_event_size=self._limits.header_bytes_max)

    async def receive(self) -> bytes:
        """Some bytes; none at the end."""
        try:
            with anyio.fail_after(self._limits.idle_seconds_max):
                return await self.stream.receive(PIECE_BYTES)
        except anyio.EndOfStream:
            return b""

    async def next_event(self) -> Event:
        """What comes next. Raises `h11.RemoteProtocolError`, one of `STREAM_ERRORS`, or `TimeoutError`."""
        while True:
            event = self.http.next_event()
            if event is h11.PAUSED:
                raise h11.RemoteProtocolError("more was sent than was asked for")
            if event is not h11.NEED_DATA:
                assert isinstance(event, EVENTS), "h11 has no other marks"
                return event
            self.http.receive_data(await self.receive())

    async def send(self, event: h11.Event) -> None:
        """Send an event; a stream that takes nothing for too long is broken."""
        data = self.http.send(event)
        if data:
            await self.send_bytes(data)

    async def send_bytes(self, data: bytes) -> None:
        """Send bytes as they are."""
        with anyio.fail_after(self._limits.idle_seconds_max):
            await self.stream.send(data)

    async def receive_within(self, last: Callable[[], float]) -> bytes:
        """As `receive`, with the time counted from `last()`, which may move on meanwhile."""
        while True:
            with anyio.move_on_at(last() + self._limits.idle_seconds_max):
                try:
                    return await self.stream.receive(PIECE_BYTES)
                except anyio.EndOfStream:
                    return b""
            if anyio.current_time() >= last() + self._limits.idle_seconds_max:
                raise TimeoutError

    def has_ended(self) -> bool:
        """Whether something came, or the end did, when nothing was to come: not to be used again."""
        raw = self.stream.extra(SocketAttribute.raw_socket)
        poll = select.poll()
        poll.register(raw, select.POLLIN)
        return bool(poll.poll(0))

    @property
    def reusable(self) -> bool:
        """Whether both sides are done with a message and may begin the next."""
        return self.http.our_state is h11.DONE and self.http.their_state is h11.DONE

    def next_cycle(self) -> None:
        """Begin the next message."""
        self.http.start_next_cycle()

    def taken_over(self) -> bytes:
        """What was received beyond the last message, for another protocol to begin with."""
        return self.http.trailing_data[0]


class Limits:
    """How much and how long."""

    def __init__(self, header_bytes_max: int, idle_seconds_max: float) -> None:
        self.header_bytes_max, self.idle_seconds_max = header_bytes_max, idle_seconds_max


class Rejoined(ByteStream):
    """A stream with bytes put back in front of it."""

    def __init__(self, stream: ByteStream, front: bytes) -> None:
        self._stream, self._front = stream, front

    async def receive(self, max_bytes: int = PIECE_BYTES) -> bytes:
        """See `ByteStream`."""
        if self._front:
            piece, self._front = self._front[:max_bytes], self._front[max_bytes:]
            return piece
        return await self._stream.receive(max_bytes)

    async def send(self, item: bytes) -> None:
        """See `ByteStream`."""
        await self._stream.send(item)

    async def send_eof(self) -> None:
        """See `ByteStream`."""
        await self._stream.send_eof()

    async def aclose(self) -> None:
        """See `ByteStream`."""
        await self._stream.aclose()

    @property
    def extra_attributes(self) -> Mapping[object, Callable[[], object]]:
        """None; the stream below has its own."""
        return {}


def end_to_end(headers: Sequence[Header], *, upgrading: bool = False) -> list[Header]:
    """Headers without those that concern one connection only.

    `upgrading` keeps the change to WebSocket. Where a body's length is said twice, only the framing that was used
    stays: two ways to read one message is how requests are smuggled."""
    named = {name.strip().lower() for key, value in headers if key == b"connection" for name in value.split(b",")}
    # What frames the message is not a header that a peer may have dropped.
    dropped = (HOP_BY_HOP | named) - {b"transfer-encoding", b"content-length", b"host"}
    kept = [(name, value) for name, value in headers if name not in dropped]
    if any(name == b"transfer-encoding" for name, _ in kept):
        kept = [(name, value) for name, value in kept if name != b"content-length"]
    if upgrading:
        kept += [(b"connection", b"Upgrade"), (b"upgrade", b"websocket")]
    return kept


def wants_websocket(headers: Sequence[Header]) -> bool:
    """Whether a message is about changing to WebSocket."""
    return any(name == b"upgrade" and value.strip().lower() == b"websocket" for name, value in headers)
