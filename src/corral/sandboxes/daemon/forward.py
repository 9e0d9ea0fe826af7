"""The proxy's place inside: connections to a port of the sandbox's own loopback go to a unix socket, byte by byte.

Ordinary programs know proxies by host and port; the way out is a socket in a directory. Started by `server.py` when
the sandbox has one; imported only when somebody connects. One thread serves all connections.
"""

from __future__ import annotations

import select
import socket

CONNECTIONS_MAX = 200
PIECE_BYTES = 65_536
SOON_SECONDS = 0.2


class Half:
    """One direction: what was read from `source` and waits for `sink`."""

    def __init__(self, source: socket.socket, sink: socket.socket) -> None:
        self.source, self.sink = source, sink
        self.waiting = memoryview(b"")
        self.ended = False

    def wants(self) -> tuple[socket.socket, int]:
        """The socket to wait for, and for what. One piece is on the way at a time, so nothing piles up."""
        return (self.sink, select.EPOLLOUT) if self.waiting else (self.source, select.EPOLLIN)

    def move(self) -> None:
        """Move what can be moved; OSError when the connection is broken."""
        try:
            if not self.waiting:
                self.waiting = memoryview(self.source.recv(PIECE_BYTES))
                if not self.waiting:
                    self.ended = True
                    self.sink.shutdown(socket.SHUT_WR)
                    return
            self.waiting = self.waiting[self.sink.send(self.waiting) :]
        except BlockingIOError:
            return


class Pair:
    """A connection and its continuation."""

    def __init__(self, near: socket.socket, far: socket.socket) -> None:
        self.near, self.far = near, far
        self.halves = (Half(near, far), Half(far, near))

    def close(self) -> None:
        """End both."""
        self.near.close()
        self.far.close()


class Forwarder:
    """All connections."""

    def __init__(self, listener: socket.socket, path: str) -> None:
        self._listener, self._path = listener, path
        self._epoll = select.epoll()
        self._pairs: dict[int, Pair] = {}
        listener.setblocking(False)

    def serve(self) -> None:
        """For ever."""
        self._epoll.register(self._listener, select.EPOLLIN)
        while True:
            touched = [self._pairs.get(descriptor) for descriptor, _ in self._epoll.poll()]
            for pair in dict.fromkeys(touched):
                if pair is None:
                    self._accept()
                elif pair.near.fileno() >= 0:
                    self._advance(pair)

    def _accept(self) -> None:
        try:
            near = self._listener.accept()[0]
        except OSError:
            return
        far = self._continue() if len(self._pairs) < 2 * CONNECTIONS_MAX else None
        if far is None:
            near.close()
            return
        near.setblocking(False)
        near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        pair = Pair(near, far)
        for end in (near, far):
            self._pairs[end.fileno()] = pair
            self._epoll.register(end, 0)
        self._await(pair)

    def _continue(self) -> socket.socket | None:
        far = socket.socket(socket.AF_UNIX)
        far.settimeout(SOON_SECONDS)
        try:
            far.connect(self._path)
        except OSError:
            far.close()
            return None
        far.setblocking(False)
        return far

    def _advance(self, pair: Pair) -> None:
        try:
            for half in pair.halves:
                if not half.ended:
                    half.move()
        except OSError:
            return self._end(pair)
        if pair.halves[1].ended:
            # The far side is done with us; what the near one still says is for nobody.
            self._end(pair)
        else:
            self._await(pair)

    def _await(self, pair: Pair) -> None:
        masks = {pair.near: 0, pair.far: 0}
        for half in pair.halves:
            if not half.ended:
                end, mask = half.wants()
                masks[end] |= mask
        for end, mask in masks.items():
            self._epoll.modify(end, mask)

    def _end(self, pair: Pair) -> None:
        for end in (pair.near, pair.far):
            self._pairs.pop(end.fileno(), None)
        # Closing takes them out of the epoll set.
        pair.close()
