"""What every store of blobs promises: whole or not at all, the same bytes once, and never removed under a hand."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import anyio
import msgspec
import pytest

from corral.errors import MachineUnfit, NotFound, Unavailable
from corral.interfaces.blobs import Blobs
from corral.storage.blob_drafts import CHUNK_BYTES
from corral.storage.blobs import DiskBlobs
from corral.storage.s3_blobs import open_s3_blobs
from tests.contracts.bucket import Bucket, serving_bucket

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


@pytest.fixture(scope="module")
def shared_bucket() -> Iterator[Bucket]:
    with pytest.MonkeyPatch.context() as patch, serving_bucket() as opened:
        patch.setenv("AWS_ACCESS_KEY_ID", "key-of-the-tests")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret-of-the-tests")
        yield opened


@pytest.fixture
def bucket(shared_bucket: Bucket) -> Bucket:
    return shared_bucket.empty()


Names = Callable[[], list[str]]
"""What there is of blobs and drafts."""


class Store(NamedTuple):
    """A store and a look behind it."""

    blobs: Blobs
    names: Names


@pytest.fixture(params=["disk", "s3"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    directory = tmp_path / "blobs"
    if request.param == "disk":
        opened = DiskBlobs(directory)
        yield Store(opened, lambda: [path.name for path in files_in(tmp_path)])
        opened.close()
        return
    bucket: Bucket = request.getfixturevalue("bucket")
    async with open_s3_blobs(bucket.settings, directory) as s3:
        yield Store(s3, lambda: [*bucket.names(), *(path.name for path in files_in(tmp_path))])


@pytest.fixture
def blobs(store: Store) -> Blobs:
    return store.blobs


@pytest.fixture
def names(store: Store) -> Names:
    return store.names


async def stored(blobs: Blobs, data: bytes) -> str:
    with anyio.fail_after(SECONDS_MAX):
        async with blobs.put(pieces(data)) as blob:
            assert blob.size_bytes == len(data)
    return blob.sha256


async def read(blobs: Blobs, sha256: str, first: int = 0, end: int | None = None) -> bytes:
    return b"".join([chunk async for chunk in blobs.open(sha256, first=first, end=end)])


def files_in(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "blobs").rglob("*") if path.is_file() and path.name != "lock"]


@pytest.mark.parametrize("data", [b"", b"x", b"y" * CHUNK_BYTES, BIG], ids=["none", "one", "chunk", "chunks"])
async def test_what_was_put_is_read_back_under_its_hash(blobs: Blobs, data: bytes) -> None:
    sha256 = await stored(blobs, data)
    assert sha256 == hashlib.sha256(data).hexdigest()
    assert await read(blobs, sha256) == data


async def test_chunks_are_of_bounded_size(blobs: Blobs) -> None:
    sha256 = await stored(blobs, BIG)
    assert max([len(chunk) async for chunk in blobs.open(sha256)]) <= CHUNK_BYTES


@pytest.mark.parametrize(("first", "end"), [(0, 10), (5, None), (CHUNK_BYTES - 3, CHUNK_BYTES + 3), (7, 7), (9, 10**9)])
async def test_a_range_can_be_read(blobs: Blobs, first: int, end: int | None) -> None:
    sha256 = await stored(blobs, BIG)
    assert await read(blobs, sha256, first, end) == BIG[first:end]


async def test_the_same_bytes_are_stored_once(blobs: Blobs, names: Names) -> None:
    assert await stored(blobs, BIG) == await stored(blobs, BIG)
    assert len(names()) == 1


async def test_nothing_stays_of_a_stream_that_breaks(blobs: Blobs, names: Names) -> None:
    async def breaking() -> AsyncIterator[bytes]:
        yield BIG
        raise Broken

    with pytest.raises(Broken):
        async with blobs.put(breaking()):
            raise AssertionError("the context must not open")
    assert names() == []


async def test_nothing_stays_of_a_put_that_is_cancelled(blobs: Blobs, names: Names) -> None:
    async with anyio.create_task_group() as tasks:

        async def endless() -> AsyncIterator[bytes]:
            yield BIG
            tasks.cancel_scope.cancel()
            await anyio.sleep_forever()

        async with blobs.put(endless()):
            raise AssertionError("the context must not open")
    assert names() == []


async def test_a_deleted_blob_is_gone_and_may_come_back(blobs: Blobs) -> None:
    sha256 = await stored(blobs, b"here")
    await blobs.delete(sha256, nobody)
    await blobs.delete(sha256, nobody)
    with pytest.raises(NotFound):
        await read(blobs, sha256)
    with pytest.raises(NotFound):
        async with blobs.hold(sha256):
            raise AssertionError("the context must not open")
    assert await read(blobs, await stored(blobs, b"here")) == b"here"


async def test_a_blob_that_is_referred_to_stays(blobs: Blobs) -> None:
    sha256 = await stored(blobs, b"here")
    await blobs.delete(sha256, somebody)
    assert await read(blobs, sha256) == b"here"


@pytest.mark.parametrize("how", ["put", "hold"])
async def test_a_blob_is_not_deleted_while_somebody_is_about_to_refer_to_it(blobs: Blobs, how: str) -> None:
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


async def test_a_reader_keeps_what_it_opened_when_the_blob_is_deleted(blobs: Blobs) -> None:
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


async def test_two_servers_do_not_share_a_directory(tmp_path: Path) -> None:
    opened = DiskBlobs(tmp_path / "blobs")
    with pytest.raises(MachineUnfit, match="in use"):
        DiskBlobs(tmp_path / "blobs")
    opened.close()


# --------------------------------------------------------------------------------------------------------- S3 alone


async def test_a_bucket_that_is_not_there_is_said_at_start(bucket: Bucket, tmp_path: Path) -> None:
    settings = msgspec.structs.replace(bucket.settings, bucket="no-such-bucket")
    with pytest.raises(MachineUnfit, match="no-such-bucket"):
        async with open_s3_blobs(settings, tmp_path):
            raise AssertionError("the context must not open")


async def test_bytes_that_changed_in_the_bucket_are_noticed(bucket: Bucket, tmp_path: Path) -> None:
    async with open_s3_blobs(bucket.settings, tmp_path) as blobs:
        sha256 = await stored(blobs, b"here")
        bucket.replace(sha256, b"there")
        with pytest.raises(Unavailable, match="not what it was"):
            await read(blobs, sha256)


async def test_a_store_that_does_not_answer_is_no_missing_file(bucket: Bucket, tmp_path: Path) -> None:
    with serving_bucket() as another:
        settings = msgspec.structs.replace(another.settings, retry_seconds_max=0.1)
        async with open_s3_blobs(settings, tmp_path) as blobs:
            sha256 = await stored(blobs, b"here")
            another.close()
            with pytest.raises(Unavailable):
                await read(blobs, sha256)
            with pytest.raises(Unavailable):
                await stored(blobs, b"more")
    assert files_in(tmp_path) == []
