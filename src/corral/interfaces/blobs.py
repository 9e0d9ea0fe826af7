"""The bytes of files."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from corral.domain.file import Blob


class Blobs(Protocol):
    """Bytes by content, never changed; never whole in memory. The same bytes are one blob, whoever stores them."""

    def put(self, chunks: AsyncIterator[bytes]) -> AbstractAsyncContextManager[Blob]:
        """Store the bytes: durable when the context opens, and safe from `delete` until it closes, so store what
        refers to the blob inside. When `chunks` or the inside of the context raises, nothing new stays."""
        ...

    def hold(self, sha256: str) -> AbstractAsyncContextManager[None]:
        """Keep a blob safe from `delete` while the context is open. Raises `NotFound`. Never hold two at a time."""
        ...

    def open(self, sha256: str, *, first: int = 0, end: int | None = None) -> AsyncGenerator[bytes]:
        """The bytes from `first` up to `end`, in chunks. Raises `NotFound`."""
        ...

    async def delete(self, sha256: str, unless: Callable[[], Awaitable[bool]]) -> None:
        """Remove the blob, unless something refers to it, which is asked while nobody holds it. Idempotent."""
        ...
