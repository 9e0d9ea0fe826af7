"""Results that are too long: in a file of a real sandbox, or honestly gone."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from corral.config_sections import HarnessSettings, SandboxSettings
from corral.domain.content import Base64Source, ImageBlock, ResultBlock, TextBlock
from corral.errors import SandboxUnavailable
from corral.harness.spilling import fitting
from corral.interfaces.sandbox import Sandbox
from corral.sandboxes.process import ProcessSandboxes

pytestmark = [pytest.mark.anyio, pytest.mark.requirement("F024")]

SETTINGS = HarnessSettings(tool_result_characters_max=1_000, tool_result_preview_characters=100)
LONG = "".join(f"line {number}\n" for number in range(400))
PICTURE = ImageBlock(source=Base64Source(media_type="image/png", data="AAAA"))


class Place(NamedTuple):
    """A sandbox, and where its home is."""

    sandbox: Sandbox
    home: Path

    async def open(self) -> Sandbox:
        return self.sandbox

    async def fitted(self, *content: ResultBlock, settings: HarnessSettings = SETTINGS) -> tuple[ResultBlock, ...]:
        return await fitting("sevt_call", content, settings, self.open)


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    with tempfile.TemporaryDirectory(prefix="corral-spill-") as made:
        sandboxes = ProcessSandboxes(SandboxSettings(directory=made), Path(made))
        yield Place(await sandboxes.open("sesn_1"), Path(made) / "sessions" / "sesn_1" / "files" / "home")
        await sandboxes.destroy("sesn_1")
        await sandboxes.close()


def text_of(block: ResultBlock) -> str:
    assert isinstance(block, TextBlock)
    return block.text


async def test_a_result_at_the_limit_is_left_as_it_is_and_needs_no_sandbox() -> None:
    async def never() -> Sandbox:
        raise AssertionError("not needed")

    content = (TextBlock(text="a" * 600), PICTURE, TextBlock(text="b" * 400))
    assert await fitting("sevt_call", content, SETTINGS, never) == content


async def test_a_longer_one_goes_to_a_file_with_a_preview_in_its_place(place: Place) -> None:
    (block,) = await place.fitted(TextBlock(text=LONG))
    shown = text_of(block)
    assert "/home/agent/tool_results/sevt_call.txt" in shown and f"{len(LONG):,} characters" in shown
    assert LONG[:50] in shown and shown.endswith(LONG[-50:]) and len(shown) < 500
    assert (place.home / "tool_results" / "sevt_call.txt").read_text(encoding="utf-8") == LONG


async def test_texts_count_together_and_pictures_keep_their_place(place: Place) -> None:
    half = TextBlock(text=LONG[:600])
    first, second, third = await place.fitted(PICTURE, half, PICTURE, half)
    assert (first, third) == (PICTURE, PICTURE) and "tool_results" in text_of(second)
    kept = (place.home / "tool_results" / "sevt_call.txt").read_text(encoding="utf-8")
    assert kept == f"{LONG[:600]}\n{LONG[:600]}"


async def test_the_same_call_written_again_is_the_same_file(place: Place) -> None:
    assert await place.fitted(TextBlock(text=LONG)) == await place.fitted(TextBlock(text=LONG))
    assert len(list((place.home / "tool_results").iterdir())) == 1


async def test_a_file_has_a_limit_of_its_own_and_says_so(place: Place) -> None:
    settings = msgspec.structs.replace(SETTINGS, tool_result_file_characters_max=2_000)
    (block,) = await place.fitted(TextBlock(text=LONG), settings=settings)
    assert "Its first 2,000 characters" in text_of(block)
    assert (place.home / "tool_results" / "sevt_call.txt").read_text(encoding="utf-8") == LONG[:2_000]


async def test_text_of_control_characters_still_fits_into_one_message(place: Place) -> None:
    text = "\x01" * SETTINGS.tool_result_file_characters_max
    (block,) = await place.fitted(TextBlock(text=text))
    assert "All of it is" in text_of(block)


async def test_where_no_file_can_be_written_no_file_is_named(place: Place) -> None:
    (place.home / "tool_results").write_text("in the way", encoding="utf-8")
    (block,) = await place.fitted(TextBlock(text=LONG))
    assert "could not be kept" in text_of(block) and "the rest is gone" in text_of(block)
    assert LONG[:50] in text_of(block) and text_of(block).endswith(LONG[-50:])


async def test_a_sandbox_that_is_gone_costs_the_middle_and_not_the_call() -> None:
    async def gone() -> Sandbox:
        raise SandboxUnavailable("No sandbox today.")

    (block,) = await fitting("sevt_call", (TextBlock(text=LONG),), SETTINGS, gone)
    assert "No sandbox today." in text_of(block) and "/tool_results" not in text_of(block)
