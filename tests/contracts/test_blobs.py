"""What every store of blobs promises: whole or not at all, the same bytes once, and never removed under a hand."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import anyio
import pytest

from corral.errors import MachineUnfit, NotFound
from corral.storage.blobs import CHUNK_BYTES, DiskBlobs

SECONDS_MAX = 20
BIG = os.urandom(3 * CHUNK_BYTES + 17)

pytestmark = pytest.mark.anyio


class Broken(Exception):
    """The client went away."""


async def pieces(data: bytes, size: int = 100_000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def nobody() -> bool:
    return False


async def somebody() -> bool:
    return True


@pytest.fixture
def blobs(tmp_path: Path) -> Iterator[DiskBlobs]:
    opened = DiskBlobs(tmp_path / "blobs")
    yield opened
    opened.close()


async def stored(blobs: DiskBlobs, data: bytes) -> str:
    with anyio.fail_after(SECONDS_MAX):
        async with blobs.put(pieces(data)) as blob:
            assert blob.size_bytes == len(data)
    return blob.sha256


async def read(blobs: DiskBlobs, sha256: str, first: int = 0, end: int | None = None) -> bytes:
    return b"".join([chunk async for chunk in blobs.open(sha256, first=first, end=end)])


def files_in(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "blobs").rglob("*") if path.is_file() and path.name != "lock"]


@pytest.mark.parametrize("data", [b"", b"x", b"y" * CHUNK_BYTES, BIG], ids=["none", "one", "chunk", "chunks"])
async def test_what_was_put_is_read_back_under_its_hash(blobs: DiskBlobs, data: bytes) -> None:
    sha256 = await stored(blobs, data)
    assert sha256 == hashlib.sha256(data).hexdigest()
    assert await read(blobs, sha256) == data


async def test_chunks_are_of_bounded_size(blobs: DiskBlobs) -> None:
    sha256 = await stored(blobs, BIG)
    assert max([len(chunk) async for chunk in blobs.open(sha256)]) <= CHUNK_BYTES


@pytest.mark.parametrize(("first", "end"), [(0, 10), (5, None), (CHUNK_BYTES - 3, CHUNK_BYTES + 3), (7, 7), (9, 10**9)])
async def test_a_range_can_be_read(blobs: DiskBlobs, first: int, end: int | None) -> None:
    sha256 = await stored(blobs, BIG)
    assert await read(blobs, sha256, first, end) == BIG[first:end]


async def test_the_same_bytes_are_stored_once(blobs: DiskBlobs, tmp_path: Path) -> None:
    assert await stored(blobs, BIG) == await stored(blobs, BIG)
    assert len(files_in(tmp_path)) == 1


async def test_nothing_stays_of_a_stream_that_breaks(blobs: DiskBlobs, tmp_path: Path) -> None:
    async def breaking() -> AsyncIterator[bytes]:
        yield BIG
        raise Broken

    with pytest.raises(Broken):
        async with blobs.put(breaking()):
            raise AssertionError("the context must not open")
    assert files_in(tmp_path) == []


async def test_nothing_stays_of_a_put_that_is_cancelled(blobs: DiskBlobs, tmp_path: Path) -> None:
    async with anyio.create_task_group() as tasks:

        async def endless() -> AsyncIterator[bytes]:
            yield BIG
            tasks.cancel_scope.cancel()
            await anyio.sleep_forever()

        async with blobs.put(endless()):
            raise AssertionError("the context must not open")
    assert files_in(tmp_path) == []


async def test_a_deleted_blob_is_gone_and_may_come_back(blobs: DiskBlobs) -> None:
    sha256 = await stored(blobs, b"here")
    await blobs.delete(sha256, nobody)
    await blobs.delete(sha256, nobody)
    with pytest.raises(NotFound):
        await read(blobs, sha256)
    with pytest.raises(NotFound):
        async with blobs.hold(sha256):
            raise AssertionError("the context must not open")
    assert await read(blobs, await stored(blobs, b"here")) == b"here"


async def test_a_blob_that_is_referred_to_stays(blobs: DiskBlobs) -> None:
    sha256 = await stored(blobs, b"here")
    await blobs.delete(sha256, somebody)
    assert await read(blobs, sha256) == b"here"


@pytest.mark.parametrize("how", ["put", "hold"])
async def test_a_blob_is_not_deleted_while_somebody_is_about_to_refer_to_it(blobs: DiskBlobs, how: str) -> None:
    sha256 = await stored(blobs, b"here")
    referred = False

    async def is_referred_to() -> bool:
        return referred

    with anyio.fail_after(SECONDS_MAX):
        async with anyio.create_task_group() as tasks:
            async with blobs.put(pieces(b"here")) if how == "put" else blobs.hold(sha256):
                tasks.start_soon(blobs.delete, sha256, is_referred_to)
                await anyio.wait_all_tasks_blocked()
                assert await read(blobs, sha256) == b"here"
                referred = True
    assert await read(blobs, sha256) == b"here"


async def test_a_reader_keeps_what_it_opened_when_the_blob_is_deleted(blobs: DiskBlobs) -> None:
    sha256 = await stored(blobs, BIG)
    chunks = blobs.open(sha256)
    first = await anext(chunks)
    await blobs.delete(sha256, nobody)
    assert first + b"".join([chunk async for chunk in chunks]) == BIG


async def test_what_a_killed_server_left_half_written_is_removed(tmp_path: Path) -> None:
    first = DiskBlobs(tmp_path / "blobs")
    sha256 = await stored(first, b"whole")
    (tmp_path / "blobs" / "incoming" / "abc").write_bytes(b"half")
    first.close()
    second = DiskBlobs(tmp_path / "blobs")
    assert [path.name for path in files_in(tmp_path)] == [sha256]
    second.close()


async def test_two_servers_do_not_share_a_directory(blobs: DiskBlobs, tmp_path: Path) -> None:
    with pytest.raises(MachineUnfit, match="in use"):
        DiskBlobs(tmp_path / "blobs")
