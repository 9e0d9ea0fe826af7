"""One request as a handler sees it: the seams, who calls, and what was sent, read strictly.

A handler answers with a struct, which is sent as JSON, or with an ASGI app that sends for itself (streams, plain
text). It raises errors of the tree in `errors.py` to refuse.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import TypeAlias, TypeVar

import anyio
import msgspec
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive

from corral.api import decoding
from corral.api.dependencies import Services
from corral.domain.api_key import ApiKey
from corral.errors import Invalid, TooLarge

T = TypeVar("T", bound=msgspec.Struct)

BODY_SECONDS_MAX = 300
CHUNK_SECONDS_MAX = 60
"""For a body that is streamed, which may take as long as it keeps coming."""

Answer: TypeAlias = msgspec.Struct | ASGIApp


class Disconnected(Exception):
    """The client went away before it had sent its request."""


class Call:
    """A request."""

    __slots__ = ("_complete", "_query_string", "_receive", "headers", "key", "path", "request_id", "services")

    def __init__(
        self,
        services: Services,
        key: ApiKey,
        *,
        path: Mapping[str, str],
        headers: Headers,
        query_string: bytes,
        receive: Receive,
        request_id: str,
    ) -> None:
        self.services = services
        self.key = key
        self.path = path
        """The parts of the path that the route names."""
        self.headers = headers
        self.request_id = request_id
        self._query_string = query_string
        self._receive = receive
        self._complete = False
        """The body has been read to its end, or as far as it will be."""

    @property
    def workspace_id(self) -> str:
        """The workspace that the caller sees."""
        return self.key.workspace_id

    def query(self, shape: type[T]) -> T:
        """The query string. Raises `Invalid`."""
        return decoding.query(self._query_string, shape)

    async def body(self, shape: type[T]) -> T:
        """The JSON body. Raises `Invalid`, or `TooLarge` as soon as that is known."""
        return decoding.body(await self._in_time(), shape)

    async def no_body(self) -> None:
        """For a POST that carries nothing. Raises `Invalid` when it does."""
        raw = await self._in_time()
        if raw.strip():
            decoding.body(raw, decoding.NoBody)

    async def stream(self, limit: int) -> AsyncGenerator[bytes]:
        """The body as it comes. Raises `TooLarge` as soon as that is known, `Invalid` when it stops coming."""
        await self._check_declared(limit)
        size, more = 0, True
        while more:
            chunk = b""
            with anyio.move_on_after(CHUNK_SECONDS_MAX) as patience:
                chunk, more = await self._chunk()
            if patience.cancelled_caught:
                raise Invalid(f"body: nothing came for {CHUNK_SECONDS_MAX} seconds", error_code="request_body_timeout")
            size += len(chunk)
            if size > limit:
                await self._refuse(size, limit, more=more)
            yield chunk

    async def drain(self) -> None:
        """Take in and drop the rest of a body that is refused, within reason, so that the client reads the answer."""
        left = self.services.settings.body_bytes_max
        with anyio.move_on_after(CHUNK_SECONDS_MAX):
            while not self._complete and left > 0:
                chunk, _ = await self._chunk()
                left -= len(chunk)

    async def _in_time(self) -> bytes:
        with anyio.move_on_after(BODY_SECONDS_MAX):
            return await self._read()
        raise Invalid(f"body: took longer than {BODY_SECONDS_MAX} seconds to arrive", error_code="request_body_timeout")

    async def _read(self) -> bytes:
        limit = self.services.settings.body_bytes_max
        await self._check_declared(limit)
        chunks: list[bytes] = []
        size = 0
        while True:
            chunk, more = await self._chunk()
            size += len(chunk)
            if size > limit:
                await self._refuse(size, limit, more=more)
            chunks.append(chunk)
            if not more:
                return b"".join(chunks)

    async def _check_declared(self, limit: int) -> None:
        """What the headers say of the body, before any of it is read."""
        if self.headers.get("content-encoding", "identity").strip().lower() != "identity":
            await self.drain()
            raise Invalid(
                "content-encoding: bodies must not be encoded", error_code="request_body_encoding_unsupported"
            )
        declared = self.headers.get("content-length", "")
        if declared.isdecimal() and len(declared) < 20 and int(declared) > limit:
            await self._refuse(int(declared), limit, more=True)

    async def _chunk(self) -> tuple[bytes, bool]:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        more: bool = message.get("more_body", False)
        self._complete = not more
        return message.get("body", b""), more

    async def _refuse(self, size: int, limit: int, *, more: bool) -> None:
        """Take in and drop what is still coming, within reason: a client reads no answer before it has sent all."""
        left = limit if size <= 2 * limit and "expect" not in self.headers else 0
        while more and left > 0:
            chunk, more = await self._chunk()
            left -= len(chunk)
        self._complete = True
        raise TooLarge(f"The request body is larger than the limit of {limit} bytes.")


Handler: TypeAlias = Callable[[Call], Awaitable[Answer]]
