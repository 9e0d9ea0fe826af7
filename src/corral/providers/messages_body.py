"""What a model server sent: events without end, or something else than events: a page, an error with status 200.

Shared by the wires; what an error body means is each wire's own business. The SDKs' streams have one shape, of which
only the response is looked at here.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

import anyio
import msgspec

from corral.errors import ProviderUnreachable

if TYPE_CHECKING:
    import httpx2

BODY_BYTES_MAX = 64 * 1024
"""How much is read of a body that should have been a stream, to say what it is."""
CLOSE_SECONDS_MAX = 2.0
"""How long hanging up may take."""
EVENT_SHARE = 16
"""One event may have this part of a whole answer."""
EVENT_ENDS = (b"\n\n", b"\r\r", b"\r\n\r\n")


class Response(Protocol):
    """The HTTP response under an SDK's stream."""

    @property
    def headers(self) -> Mapping[str, str]:
        """Names are compared without case."""
        ...

    def aiter_bytes(self) -> AsyncIterator[bytes]:
        """The body, piece by piece."""
        ...


class Stream(Protocol):
    """An SDK's stream of events."""

    async def close(self) -> None:
        """Hang up."""
        ...


@asynccontextmanager
async def cut_at_the_end(stream: Stream) -> AsyncGenerator[None]:
    """Hang up at the end, also when the reader is cancelled: the server would go on generating."""
    try:
        yield
    finally:
        with anyio.move_on_after(CLOSE_SECONDS_MAX, shield=True):
            await stream.close()


async def shorten_error(response: httpx2.Response) -> None:
    """A hook for an SDK's HTTP client: of a page that says what went wrong, only the beginning is read.

    The SDKs read such pages whole before they raise.
    """
    import httpx2

    class Beginning(httpx2.AsyncByteStream):
        """The first bytes of a stream."""

        def __init__(self, stream: httpx2.AsyncByteStream) -> None:
            self._stream = stream

        async def __aiter__(self) -> AsyncGenerator[bytes]:
            left = BODY_BYTES_MAX
            async for piece in self._stream:
                yield piece[:left]
                left -= len(piece)
                if left <= 0:
                    return

        async def aclose(self) -> None:
            await self._stream.aclose()

    if response.status_code >= 400 and isinstance(response.stream, httpx2.AsyncByteStream):
        response.stream = Beginning(response.stream)


class Instead(NamedTuple):
    """A body that is no event stream."""

    kind: str
    """Its content type."""
    value: Mapping[str, object] | None
    """What it says, if it is a JSON object."""

    def __str__(self) -> str:
        return f"The model server answered with {self.kind or 'an unnamed type'} instead of an event stream."


class Bounded:
    """A response that ends with `ProviderUnreachable` when it, or one event in it, grows beyond all measure.

    The SDKs keep an event in memory until it ends, and copy it with every piece that comes. Everything but the bytes
    is the response's own.
    """

    def __init__(self, response: Response, bytes_max: int, *, framed: bool = False) -> None:
        """`framed`: events have a length of their own, which whoever reads them bounds; blank lines mean nothing."""
        self._response, self._bytes_max, self._framed = response, bytes_max, framed

    def __getattr__(self, name: str) -> object:
        return getattr(self._response, name)

    async def aiter_bytes(self) -> AsyncGenerator[bytes]:
        """The body, piece by piece, as long as it is of a sane size."""
        whole = event = 0
        end = b""
        async for piece in self._response.aiter_bytes():
            whole += len(piece)
            last = end + piece
            ended = max(last.rfind(blank) for blank in EVENT_ENDS)
            event = event + len(piece) if ended < 0 else len(last) - ended
            end = last[-3:]
            if whole > self._bytes_max:
                raise ProviderUnreachable(f"The model server's answer has more than {self._bytes_max} bytes.")
            if event > self._bytes_max // EVENT_SHARE and not self._framed:
                raise ProviderUnreachable(
                    f"The model server sent an event of more than {self._bytes_max // EVENT_SHARE} bytes."
                )
            yield piece


async def instead_of_events(response: Response, expected: str = "text/event-stream") -> Instead | None:
    """What came in place of events of the expected type; None when it is events."""
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == expected:
        return None
    body = b""
    async for piece in response.aiter_bytes():
        body += piece
        if len(body) >= BODY_BYTES_MAX:
            break
    try:
        value: object = msgspec.json.decode(body)
    except ValueError:
        value = None
    return Instead(kind, cast("dict[str, object]", value) if isinstance(value, dict) else None)
