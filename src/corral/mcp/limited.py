"""HTTP for MCP with a limit on the size of an answer. Streams of events have a limit for each event instead (SDK)."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx2

from corral.config_sections import McpSettings
from corral.outbound.transport import OutboundTransport

EVENT_STREAM = "text/event-stream"


class LimitedTransport(OutboundTransport):
    """Cuts off answers that are no event streams and go on too long."""

    def __init__(self, settings: McpSettings) -> None:
        super().__init__(settings)
        self._bytes_max = settings.result_bytes_max

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """See `httpx2.AsyncBaseTransport`."""
        response = await super().handle_async_request(request)
        if not response.headers.get("content-type", "").startswith(EVENT_STREAM):
            assert isinstance(response.stream, httpx2.AsyncByteStream)
            response.stream = _Limited(response.stream, self._bytes_max)
        return response


class _Limited(httpx2.AsyncByteStream):
    def __init__(self, stream: httpx2.AsyncByteStream, bytes_max: int) -> None:
        self._stream, self._left = stream, bytes_max

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._stream:
            self._left -= len(chunk)
            if self._left < 0:
                raise httpx2.ReadError("the answer is over its limit of size")
            yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()
