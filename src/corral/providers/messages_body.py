"""What a model server sent instead of an event stream: a page, an error with status 200, or nothing we know.

Shared by the wires; what an error body means is each wire's own business. The SDKs' streams have one shape, of which
only the response is looked at here.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import NamedTuple, Protocol, cast

import msgspec

BODY_BYTES_MAX = 64 * 1024


class Response(Protocol):
    """The HTTP response under an SDK's stream."""

    @property
    def headers(self) -> Mapping[str, str]:
        """Names are compared without case."""
        ...

    def aiter_bytes(self) -> AsyncIterator[bytes]:
        """The body, piece by piece."""
        ...


class Instead(NamedTuple):
    """A body that is no event stream."""

    kind: str
    """Its content type."""
    value: Mapping[str, object] | None
    """What it says, if it is a JSON object."""

    def __str__(self) -> str:
        return f"The model server answered with {self.kind or 'an unnamed type'} instead of an event stream."


async def instead_of_events(response: Response) -> Instead | None:
    """What came in place of events; None when it is events."""
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "text/event-stream":
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
