"""`/v1/sessions/{id}/events/stream`: what happens in a session, as server-sent events, from now on.

Raw ASGI and no task of its own: thousands of these are open at once, and nearly all of them wait. Every frame is named
`message`, since older SDKs drop names that they do not know. Nothing is replayed: a client opens the stream, lists the
history, and drops the ids that it has seen.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Literal

import anyio
import msgspec
from starlette.types import Receive, Scope, Send

from corral.api import errors
from corral.api.call import Call
from corral.errors import CorralError, Invalid, Unavailable
from corral.interfaces.bus import Frame, Subscription

DELTAS_MAX = 100
SEND_BYTES = 32 * 1024
"""Frames that wait are sent together until they are so many bytes."""
PINGS_UNREAD_MAX = 4
"""A reader that takes nothing for this many pings' time is gone."""

HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
)
OPENED = b": open\n\n"
"""A comment, so that proxies and clients see the headers now and not with the first event."""
PING = b'event: ping\ndata: {"type":"ping"}\n\n'


class StreamQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which events to preview while they are being written."""

    event_deltas: tuple[Literal["agent.message", "agent.thinking"], ...] = ()


async def stream(call: Call) -> EventStream:
    """`GET /v1/sessions/{session_id}/events/stream`."""
    query = call.query(StreamQuery)
    if len(query.event_deltas) > DELTAS_MAX:
        raise Invalid(f"event_deltas: at most {DELTAS_MAX} values are allowed, got {len(query.event_deltas)}")
    session_id = call.path["session_id"]
    # First, so that a session deleted right after the look-up still closes the stream.
    subscription = call.services.bus.subscribe(session_id, previews=frozenset(query.event_deltas))
    try:
        found = await call.services.log.snapshot(session_id, call.workspace_id)
        call.services.bus.opened_at(session_id, found.state.seq)
    except BaseException:
        subscription.close()
        raise
    return EventStream(subscription, call.request_id, call.services.settings.ping_seconds)


class EventStream:
    """One open stream, as an ASGI app."""

    __slots__ = ("_ping_seconds", "_request_id", "_subscription")

    def __init__(self, subscription: Subscription, request_id: str, ping_seconds: float) -> None:
        self._subscription = subscription
        self._request_id = request_id
        self._ping_seconds = ping_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send frames until the session is deleted, the reader leaves or falls behind."""
        try:
            await send({"type": "http.response.start", "status": 200, "headers": list(HEADERS)})
            last = await self._frames(receive, send)
            if last is not None:
                await send({"type": "http.response.body", "body": last})
        finally:
            self._subscription.close()

    async def _frames(self, receive: Receive, send: Send) -> bytes | None:
        """Everything but the last frame, which is returned: empty at the end of a session, None for a reader gone."""
        if not await self._sent(OPENED, send):
            return None
        frames = aiter(self._subscription)
        while True:
            try:
                frame = await self._next(frames)
            except StopAsyncIteration:
                return b""
            except Unavailable as error:
                return _error_frame(error, self._request_id)
            if frame is None:
                # The wait was cut short, which ends an iterator that is a generator.
                frames = aiter(self._subscription)
                if await _is_gone(receive):
                    return None
            elif frame.type == "session.deleted":
                return _frame(frame)
            if not await self._sent(PING if frame is None else self._with_more(frame), send):
                return None

    async def _next(self, frames: AsyncIterator[Frame]) -> Frame | None:
        """The next frame; None when it is time for a ping."""
        with anyio.move_on_after(self._ping_seconds):
            return await anext(frames)
        return None

    def _with_more(self, frame: Frame) -> bytes:
        """The frame and what has come with it: events are committed in groups, and each send costs as much as ten."""
        return b"".join(map(_frame, (frame, *self._subscription.waiting(SEND_BYTES))))

    async def _sent(self, body: bytes, send: Send) -> bool:
        """Whether the reader took it in time."""
        with anyio.move_on_after(self._ping_seconds * PINGS_UNREAD_MAX):
            await send({"type": "http.response.body", "body": body, "more_body": True})
            return True
        return False


async def _is_gone(receive: Receive) -> bool:
    """Whether the client has closed the connection; does not wait."""
    with anyio.CancelScope(deadline=-1):
        while True:
            if (await receive())["type"] == "http.disconnect":
                return True
    return False


def _frame(frame: Frame) -> bytes:
    return b"event: message\ndata: " + frame.data + b"\n\n"


def _error_frame(error: CorralError, request_id: str) -> bytes:
    return b"event: error\ndata: " + errors.envelope(error, request_id) + b"\n\n"
