"""HTTP for MCP with limits on an answer: its bytes, and how many values they hold.

Of a stream of events, which may go on for ever, each event has a limit of bytes instead (SDK), and of values.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator

import httpx2

from corral.config_sections import McpSettings
from corral.mcp.density import Density
from corral.outbound.transport import OutboundTransport

EVENT_STREAM = "text/event-stream"


class LimitedTransport(OutboundTransport):
    """Cuts off answers that go on too long or hold too much."""

    def __init__(self, settings: McpSettings) -> None:
        super().__init__(settings)
        self._bytes_max, self._values_max = settings.result_bytes_max, settings.values_max

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """See `httpx2.AsyncBaseTransport`."""
        response = await super().handle_async_request(request)
        is_stream = response.headers.get("content-type", "").startswith(EVENT_STREAM)
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        density = Density(self._values_max, is_stream=is_stream)
        response.stream = _Limited(response.stream, math.inf if is_stream else self._bytes_max, density)
        return response


class _Limited(httpx2.AsyncByteStream):
    def __init__(self, stream: httpx2.AsyncByteStream, bytes_max: float, density: Density) -> None:
        self._stream, self._left, self._density = stream, bytes_max, density

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._stream:
            self._left -= len(chunk)
            if self._left < 0:
                raise httpx2.ReadError("the answer is over its limit of size")
            if not self._density.admits(chunk):
                raise httpx2.ReadError("the answer holds more values than its limit")
            yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()
