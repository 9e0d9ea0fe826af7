"""Heads of requests, bounded in size and time before anybody knows whose they are.

uvicorn's parser is fast and takes whatever comes: a header without end is gathered for ever, each piece copied anew,
and a connection that says nothing is kept. Bodies have limits of their own in `api/call.py`, where callers are known.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class BoundedHeads(HttpToolsProtocol):
    """uvicorn's protocol, and the end of connections whose heads are too large or too slow."""

    head_bytes_max = 64 * 1024
    """Counted where more is to come: what is there whole with one read of the socket passes."""
    head_seconds_max = 30.0

    def connection_made(self, transport: asyncio.Transport) -> None:
        """See `asyncio.Protocol`."""
        super().connection_made(transport)
        self._head_bytes, self._asked = 0, False
        self._patience: asyncio.TimerHandle | None = self._counting_down()

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        if self._head_bytes >= 0:
            self._head_bytes += len(data)
            if self._patience is None:
                self._patience = self._counting_down()
        super().data_received(data)
        if self._head_bytes > self.head_bytes_max and not self.transport.is_closing():
            self.send_400_response("The head of the request is too large.")

    def on_headers_complete(self) -> None:
        """See `httptools`."""
        self._head_bytes, self._asked = -1, True
        self._let_be()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """See `httptools`. What comes next is a head again."""
        self._head_bytes = 0
        super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._let_be()
        super().connection_lost(exc)

    def _counting_down(self) -> asyncio.TimerHandle:
        return self.loop.call_later(self.head_seconds_max, self._give_up)

    def _give_up(self) -> None:
        # Something may have come behind a request whose answer, a stream say, is still on its way.
        if not self._asked or self.cycle.response_complete:
            self.transport.close()

    def _let_be(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
