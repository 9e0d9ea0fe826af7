"""Files in model requests: the same bytes every time, within bounds, and a sentence where one is missing."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from corral.domain.content import DocumentBlock, FileSource, ImageBlock, TextBlock, ToolResultBlock
from corral.domain.file import DOCUMENT_BYTES_MAX, FILE_KIND, File
from corral.domain.inference import PromptMessage
from corral.domain.query import Record
from corral.engines.bus import LocalBus
from corral.harness.attachments import Attachments
from corral.storage.blobs import DiskBlobs
from corral.storage.ephemeral import EphemeralStore

pytestmark = pytest.mark.anyio

NOW = datetime(2026, 11, 1, tzinfo=UTC)
WORKSPACE = "wrkspc_1"


class Clock:
    def __init__(self) -> None:
        self.time = NOW

    def now(self) -> datetime:
        return self.time


class Desk:
    """A store of files, and what reads them."""

    def __init__(self, directory: Path, cached_bytes_max: int = 1_000) -> None:
        self.clock = Clock()
        self.records = EphemeralStore(LocalBus(frames_max=1, bytes_max=1), self.clock).records
        self.blobs = DiskBlobs(directory)
        self.attachments = Attachments(self.records, self.blobs, self.clock, cached_bytes_max=cached_bytes_max)

    async def file(self, file_id: str, data: bytes, mime_type: str = "text/plain", **more: object) -> str:
        async def chunks() -> AsyncIterator[bytes]:
            yield data

        async with self.blobs.put(chunks()) as blob:
            file = File(
                id=file_id,
                filename=f"{file_id}.x",
                mime_type=mime_type,
                size_bytes=blob.size_bytes,
                sha256=blob.sha256,
                created_at=NOW,
            )
            body = msgspec.json.encode(msgspec.structs.replace(file, **more))
            await self.records.put(
                Record(kind=FILE_KIND, id=file_id, workspace_id=WORKSPACE, created_at=NOW, body=body)
            )
        return blob.sha256

    async def resolved(self, *blocks: ImageBlock | DocumentBlock | ToolResultBlock | TextBlock) -> list[object]:
        message = PromptMessage(role="user", content=blocks)
        (answer,) = await self.attachments.resolved(WORKSPACE, [message])
        return list(answer.content)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path / "blobs")
    yield made
    made.blobs.close()


def document(file_id: str) -> DocumentBlock:
    return DocumentBlock(source=FileSource(file_id=file_id), title="T")


async def test_messages_without_references_are_passed_on_as_they_are(desk: Desk) -> None:
    message = PromptMessage(role="user", content=(TextBlock(text="hi"),))
    (answer,) = await desk.attachments.resolved(WORKSPACE, [message])
    assert answer is message


async def test_references_in_tool_results_are_resolved(desk: Desk) -> None:
    await desk.file("file_a", b"\x89PNG", "image/png")
    image = ImageBlock(source=FileSource(file_id="file_a"))
    (result,) = await desk.resolved(ToolResultBlock(tool_use_id="t", content=(TextBlock(text="look"), image)))
    assert isinstance(result, ToolResultBlock)
    shown = msgspec.to_builtins(result.content[1])
    assert shown["source"] == {
        "type": "base64",
        "media_type": "image/png",
        "data": base64.b64encode(b"\x89PNG").decode(),
    }


async def test_the_same_file_gives_the_same_bytes_cached_or_not(desk: Desk) -> None:
    await desk.file("file_a", b"a" * 600)
    await desk.file("file_b", b"b" * 600)
    first = msgspec.json.encode(await desk.resolved(document("file_a"), document("file_b")))
    again = msgspec.json.encode(await desk.resolved(document("file_a"), document("file_b")))
    assert first == again


async def test_text_that_is_not_utf_8_is_still_text(desk: Desk) -> None:
    await desk.file("file_a", b"caf\xe9")
    (block,) = await desk.resolved(document("file_a"))
    assert msgspec.to_builtins(block)["source"]["data"] == "caf\ufffd"


async def test_files_that_cannot_be_used_become_a_sentence(desk: Desk) -> None:
    await desk.file("file_expired", b"x", expires_at=NOW + timedelta(seconds=1))
    sha256 = await desk.file("file_lost", b"lost")
    desk.clock.time += timedelta(seconds=1)

    async def nobody() -> bool:
        return False

    await desk.blobs.delete(sha256, nobody)
    for file_id in ("file_expired", "file_lost", "file_unknown"):
        gone = TextBlock(text=f"[The file {file_id} is no longer available.]")
        assert await desk.resolved(document(file_id)) == [gone]


async def test_files_of_another_workspace_are_not_available(desk: Desk) -> None:
    await desk.file("file_a", b"x")
    message = PromptMessage(role="user", content=(document("file_a"),))
    (answer,) = await desk.attachments.resolved("wrkspc_2", [message])
    assert answer.content == (TextBlock(text="[The file file_a is no longer available.]"),)


async def test_a_request_holds_no_more_than_a_model_takes(desk: Desk) -> None:
    half = DOCUMENT_BYTES_MAX // 2 + 1
    await desk.file("file_a", b"a" * half)
    await desk.file("file_b", b"b" * half)
    await desk.file("file_c", b"c")
    first, second, third = await desk.resolved(document("file_a"), document("file_b"), document("file_c"))
    assert isinstance(first, DocumentBlock) and isinstance(third, DocumentBlock)
    assert isinstance(second, TextBlock) and "left out" in second.text
