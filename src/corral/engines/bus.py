"""The bus of one process: frames from whoever commits to whoever streams.

It keeps nothing and knows nothing of HTTP or storage. Each reader has a bounded queue; one that does not keep up loses
previews first (only ever the end of a preview, as the contract allows), and is cut off when facts no longer fit.
Everything runs on one event loop, so there are no locks. Frames of other processes come with the store.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Collection, Sequence

import anyio
from prometheus_client import CollectorRegistry, Counter

from corral.errors import Unavailable
from corral.interfaces.bus import Frame

PREVIEW_START = "event_start"
PREVIEWS_END = "span.model_request_end"


class LocalSubscription:
    """One reader's queue."""

    def __init__(self, bus: LocalBus, session_id: str, previews: frozenset[str]) -> None:
        self._bus = bus
        self.session_id = session_id
        self._previews = previews
        self._frames: deque[Frame] = deque()
        self._bytes = 0
        self._ready = anyio.Event()
        self._followed: set[str] = set()
        """Previews of the open model request that this reader has seen from their start, without a gap."""
        self._cut_off = False
        self._closed = False

    def offer(self, frame: Frame) -> None:
        """Queue a frame for the reader, or shed it, or cut the reader off."""
        if self._cut_off or self._closed or not self._wants(frame):
            return
        if len(self._frames) >= self._bus.frames_max or self._bytes + len(frame.data) > self._bus.bytes_max:
            if frame.preview_of is not None:
                self._bus.dropped.inc()
                self._followed.discard(frame.preview_id or "")
                return
            self._cut_off = True
            self._bus.cut_off.inc()
            self._frames.clear()
        else:
            self._frames.append(frame)
            self._bytes += len(frame.data)
            self._follow(frame)
        self._ready.set()

    def _wants(self, frame: Frame) -> bool:
        if frame.preview_of is None:
            return True
        # Clients cannot use a preview whose start they have not seen, nor one with a hole in it.
        return frame.preview_of in self._previews and (
            frame.type == PREVIEW_START or frame.preview_id in self._followed
        )

    def _follow(self, frame: Frame) -> None:
        if frame.type == PREVIEW_START:
            self._followed.add(frame.preview_id or "")
        elif frame.type == PREVIEWS_END:
            self._followed.clear()

    async def __aiter__(self) -> AsyncIterator[Frame]:
        while True:
            while self._frames:
                frame = self._frames.popleft()
                self._bytes -= len(frame.data)
                yield frame
                if frame.type == "session.deleted":
                    return
            if self._closed:
                return
            if self._cut_off:
                raise Unavailable("This reader fell too far behind and was cut off. Reconnect and list the history.")
            self._ready = anyio.Event()
            await self._ready.wait()

    def waiting(self, bytes_max: int) -> list[Frame]:
        """Take what is there already. See `Subscription`."""
        taken: list[Frame] = []
        size = 0
        while self._frames and size < bytes_max and self._frames[0].type != "session.deleted":
            frame = self._frames.popleft()
            size += len(frame.data)
            taken.append(frame)
        self._bytes -= size
        return taken

    def close(self) -> None:
        """Stop receiving. Idempotent."""
        self._closed = True
        self._ready.set()
        self._bus.remove(self)


class LocalBus:
    """Frames within one process."""

    def __init__(self, *, frames_max: int, bytes_max: int, registry: CollectorRegistry | None = None) -> None:
        self.frames_max = frames_max
        self.bytes_max = bytes_max
        registry = registry or CollectorRegistry()
        self.dropped = Counter(
            "corral_stream_previews_dropped", "Previews that slow readers did not get.", registry=registry
        )
        self.cut_off = Counter("corral_stream_readers_cut_off", "Readers too slow for the facts.", registry=registry)
        self._readers: dict[str, dict[LocalSubscription, None]] = {}

    def publish(self, frames: Sequence[Frame]) -> None:
        """Hand frames to all current readers of their sessions."""
        for frame in frames:
            for reader in self._readers.get(frame.session_id, ()):
                reader.offer(frame)

    def subscribe(self, session_id: str, *, previews: Collection[str] = ()) -> LocalSubscription:
        """From now on, all facts of the session and previews of the given event types."""
        reader = LocalSubscription(self, session_id, frozenset(previews))
        self._readers.setdefault(session_id, {})[reader] = None
        return reader

    def opened_at(self, session_id: str, seq: int) -> None:
        """See `Bus`. Nothing that follows is elsewhere."""

    def remove(self, reader: LocalSubscription) -> None:
        """Forget a reader."""
        readers = self._readers.get(reader.session_id, {})
        readers.pop(reader, None)
        if not readers:
            self._readers.pop(reader.session_id, None)

    def close(self) -> None:
        """End every reader's iteration: the server stops, and clients reconnect to the next one."""
        for readers in list(self._readers.values()):
            for reader in list(readers):
                reader.close()

    def wants_previews(self, session_id: str) -> bool:
        """Whether anybody reads the session; nobody does most of the time, and then previews cost nothing."""
        return session_id in self._readers
