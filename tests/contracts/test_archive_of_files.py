"""Packing and unpacking a sandbox's files: what was tampered with does nothing outside."""

from __future__ import annotations

import io
import os
import sys
import tarfile
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import pytest

from corral.config_sections import SandboxSettings
from corral.errors import SandboxUnavailable
from corral.sandboxes.directory import remove_tree
from corral.sandboxes.packing import pack, unpack

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

SETTINGS = SandboxSettings()
NAMES = ("workspace",)
USER = 65_534 if os.geteuid() == 0 else os.geteuid()
"""Whom the files belong to."""

pytestmark = pytest.mark.anyio


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory of that user's, with something beside it that is not."""
    path = Path(tempfile.mkdtemp(prefix="corral-test-"))
    path.chmod(0o755)
    (path / "outside").mkdir()
    (path / "into").mkdir()
    if os.geteuid() == 0:
        os.chown(path / "into", USER, USER)
    yield path
    remove_tree(path)


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "", mode: int = 0o644) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname, made.mode = kind, target, mode
    return made


def tampered(*members: tarfile.TarInfo) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        archive.addfile(member("workspace", tarfile.DIRTYPE, mode=0o700))
        for each in members:
            archive.addfile(each)
    return zstd.compress(data.getvalue())


async def taken(place: Path, data: bytes, settings: SandboxSettings = SETTINGS) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield data

    await unpack(chunks(), place / "into", NAMES, USER, settings)


@pytest.mark.parametrize(
    "members",
    [
        [member("../outside/x")],
        [member("/tmp/corral-never")],
        [member("workspace/../../outside/x")],
        [member("elsewhere/x")],
        [member("workspace/link", tarfile.SYMTYPE, "../../outside"), member("workspace/link/x")],
        [member("workspace/link", tarfile.SYMTYPE, "../../outside/x"), member("workspace/link")],
        [member("workspace/link", tarfile.SYMTYPE, ".."), member("workspace/link", tarfile.DIRTYPE)],
        [member("workspace/hard", tarfile.LNKTYPE, "/etc/passwd")],
        [member("workspace/hard", tarfile.LNKTYPE, "../outside")],
        [
            member("workspace/link", tarfile.SYMTYPE, "/etc"),
            member("workspace/hard", tarfile.LNKTYPE, "workspace/link/passwd"),
        ],
        [member("workspace/device", tarfile.CHRTYPE)],
        [member("workspace/pipe", tarfile.FIFOTYPE)],
        [member("workspace/x"), member("workspace/x")],
        [member("workspace/" + "d/" * 600 + "x")],
    ],
    ids=lambda members: "; ".join(f"{each.name[:30]}>{each.linkname}" for each in members),
)
async def test_an_archive_that_leads_elsewhere_is_refused(place: Path, members: list[tarfile.TarInfo]) -> None:
    with pytest.raises(SandboxUnavailable, match="cannot be packed or unpacked"):
        await taken(place, tampered(*members))
    assert os.listdir(place / "outside") == []
    assert "corral-never" not in os.listdir("/tmp")


@pytest.mark.parametrize("data", [b"", b"nonsense", tampered(member("workspace/x"))[:-40]], ids=["none", "odd", "cut"])
async def test_what_is_no_archive_is_refused(place: Path, data: bytes) -> None:
    with pytest.raises(SandboxUnavailable):
        await taken(place, data)


async def test_more_than_was_allowed_is_refused(place: Path) -> None:
    few = msgspec.structs.replace(SETTINGS, checkpoint_files_max=3)
    with pytest.raises(SandboxUnavailable, match="too many files"):
        await taken(place, tampered(*(member(f"workspace/{number}") for number in range(9))), few)


async def test_links_of_an_archive_are_made_and_not_followed(place: Path) -> None:
    links = [member("workspace/etc", tarfile.SYMTYPE, "/etc"), member("workspace/up", tarfile.SYMTYPE, "../../outside")]
    await taken(place, tampered(*links))
    assert os.readlink(place / "into" / "workspace" / "etc") == "/etc"


async def test_a_tree_that_is_too_deep_is_not_packed(place: Path) -> None:
    deep = place / "into" / "workspace"
    for _ in range(520):
        deep /= "d"
    deep.mkdir(parents=True)
    with pytest.raises(SandboxUnavailable, match="too deep"):
        async for _ in pack(place / "into", NAMES, os.geteuid(), SETTINGS):
            pass


async def test_plain_tar_reads_what_is_packed(place: Path) -> None:
    workspace = place / "into" / "workspace"
    workspace.mkdir()
    (workspace / "hello").write_text("world", encoding="ascii")
    data = b"".join([chunk async for chunk in pack(place / "into", NAMES, os.geteuid(), SETTINGS)])
    with tarfile.open(fileobj=io.BytesIO(zstd.decompress(data))) as archive:
        file = archive.extractfile("workspace/hello")
        assert file is not None and file.read() == b"world"
