"""The bytes of files in a bucket of S3, or of a server that speaks its API: `<prefix>/<first two digits>/<sha256>`.

A blob is first a file on this machine: only then is its name known, and an upload can be repeated. It goes up in parts,
checked by the server with SHA-256, and has its name when it is whole. What is read to its end is checked again.

What holds across processes: reading, and storing the same bytes twice, by any number of servers. `hold` and `delete`
know only this process: two servers that share a prefix could delete what the other is about to refer to. So one server
has a prefix at a time, as one has a database; that is for its operator to see to, since S3 has no locks.

`obstore` is the client (`corral[s3]`). The store on disk is `blobs.py`.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

import anyio

from corral.config_sections import BlobSettings
from corral.domain.file import Blob
from corral.errors import MachineUnfit, NotFound, Unavailable
from corral.storage.blob_drafts import CHUNK_BYTES, write_draft

if TYPE_CHECKING:
    from obstore.store import ClientConfig, S3Config, S3Store

GONE = "The bytes of this file are gone."


@asynccontextmanager
async def open_s3_blobs(settings: BlobSettings, directory: Path) -> AsyncGenerator[S3Blobs]:
    """The bucket of the settings; `directory` takes drafts. Raises `MachineUnfit` when it cannot be used."""
    try:
        from obstore.store import S3Store
    except ImportError as error:
        raise MachineUnfit(
            'Files in S3 need `obstore`: install `corral[s3]`, or set `[blobs] backend = "disk"`.'
        ) from error
    if not settings.bucket:
        raise MachineUnfit("`[blobs] bucket` must name the bucket.")
    incoming = directory / "incoming"
    try:
        incoming.mkdir(mode=0o700, parents=True, exist_ok=True)
        for draft in incoming.iterdir():
            draft.unlink()  # of a server that was killed
    except OSError as error:
        raise MachineUnfit(f"Files cannot be kept in {directory}: {error}") from error
    config: S3Config = {"checksum_algorithm": "SHA256"}
    client: ClientConfig = {"timeout": timedelta(seconds=settings.request_seconds_max)}
    if settings.region:
        config["region"] = settings.region
    if settings.endpoint_url:
        config["endpoint"] = settings.endpoint_url
        client["allow_http"] = settings.endpoint_url.startswith("http://")
    store = S3Store(
        settings.bucket,
        prefix=settings.prefix,
        config=config,
        client_options=client,
        retry_config={"retry_timeout": timedelta(seconds=settings.retry_seconds_max)},
    )
    blobs = S3Blobs(store, incoming, settings)
    try:
        await blobs.check()
    except (NotFound, Unavailable) as error:
        raise MachineUnfit(f"The bucket `{settings.bucket}` cannot be used: {error.message}") from error
    yield blobs


class S3Blobs:
    """`Blobs` in a bucket. Made by `open_s3_blobs`."""

    def __init__(self, store: S3Store, incoming: Path, settings: BlobSettings) -> None:
        self._store, self._incoming, self._settings = store, incoming, settings
        self._locks: WeakValueDictionary[str, anyio.Lock] = WeakValueDictionary()

    async def check(self) -> None:
        """Raises `NotFound` or `Unavailable` when the bucket is not there or not ours."""
        import obstore

        with _explained():
            # Asking for an object cannot tell a bucket that is not there from an empty one.
            async for _ in obstore.list(self._store, chunk_size=1):  # pyright: ignore[reportUnknownMemberType]  # arrow
                return

    @asynccontextmanager
    async def put(self, chunks: AsyncIterator[bytes]) -> AsyncGenerator[Blob]:
        """See `Blobs`."""
        draft = self._incoming / secrets.token_hex(16)
        try:
            blob = await write_draft(draft, chunks)
            async with self._lock_of(blob.sha256):
                is_new = not await self.exists(blob.sha256)
                try:
                    if is_new:
                        await self._upload(draft, blob)
                    yield blob
                except BaseException:
                    if is_new:
                        with anyio.CancelScope(shield=True):
                            await self._remove(blob.sha256)
                    raise
        finally:
            draft.unlink(missing_ok=True)

    @asynccontextmanager
    async def hold(self, sha256: str) -> AsyncGenerator[None]:
        """See `Blobs`."""
        async with self._lock_of(sha256):
            if not await self.exists(sha256):
                raise NotFound(GONE)
            yield

    async def open(self, sha256: str, *, first: int = 0, end: int | None = None) -> AsyncGenerator[bytes]:
        """See `Blobs`. Raises `Unavailable` at the end of a whole blob whose bytes are not those that were stored."""
        import obstore

        whole = first == 0 and end is None
        digest = hashlib.sha256()
        with _explained():
            size = (await obstore.head_async(self._store, _name(sha256)))["size"]
            end = size if end is None else min(end, size)
            if first < end:
                found = await obstore.get_async(self._store, _name(sha256), options={"range": (first, end)})
                async for piece in found.stream(CHUNK_BYTES):
                    view = memoryview(piece)
                    if whole:
                        digest.update(view)
                    for start in range(0, len(view), CHUNK_BYTES):
                        yield bytes(view[start : start + CHUNK_BYTES])
        if whole and digest.hexdigest() != sha256:
            raise Unavailable("A stored file is not what it was.")

    async def delete(self, sha256: str, unless: Callable[[], Awaitable[bool]]) -> None:
        """See `Blobs`. Holds within this process only."""
        async with self._lock_of(sha256):
            if not await unless():
                await self._remove(sha256)

    async def exists(self, sha256: str) -> bool:
        """Whether there is such a blob. Raises `Unavailable`."""
        import obstore

        try:
            with _explained():
                await obstore.head_async(self._store, _name(sha256))
        except NotFound:
            return False
        return True

    async def _upload(self, draft: Path, blob: Blob) -> None:
        import obstore

        with _explained():
            await obstore.put_async(
                self._store,
                _name(blob.sha256),
                draft,
                use_multipart=blob.size_bytes > self._settings.part_bytes,
                chunk_size=self._settings.part_bytes,
                max_concurrency=self._settings.parts_parallel_max,
            )

    async def _remove(self, sha256: str) -> None:
        import obstore

        try:
            with _explained():
                await obstore.delete_async(self._store, _name(sha256))
        except NotFound:
            return

    def _lock_of(self, sha256: str) -> anyio.Lock:
        return self._locks.setdefault(sha256, anyio.Lock())


def _name(sha256: str) -> str:
    return f"{sha256[:2]}/{sha256}"


@contextmanager
def _explained() -> Generator[None]:
    """The client's errors in ours. What they say may hold addresses and is cut short; it never holds keys."""
    from obstore.exceptions import BaseError

    try:
        yield
    except FileNotFoundError as error:
        raise NotFound(GONE) from error
    except (BaseError, OSError) as error:
        raise Unavailable(f"The store of files does not answer: {str(error)[:200]}") from error
