"""Long sessions before a model server that counts its cache as the real one does, and wants its own words back."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest

from corral.domain.content import TextBlock, ToolResultBlock, ToolUseBlock
from corral.domain.inference import ModelRequest, PromptBlock, PromptMessage, ToolSpec
from corral.providers.messages_request import encode_request
from tests.benchmarks.cache_share import measure
from tests.contracts.cache_server import Cache, Json

TOOL = ToolSpec(name="bash", description="Run. " * 400, input_schema={"type": "object"})


@pytest.mark.anyio
@pytest.mark.requirement("F143")
async def test_nearly_all_that_could_be_read_from_the_cache_is_and_the_model_gets_its_own_words_back() -> None:
    """Over a restart, with thinking and its signatures, and with more calls in one answer than a server looks back."""
    share = await measure(16)
    assert share.problems == ()
    assert all(each.extends for each in share.counted), "each request begins with the bytes of the one before"
    assert share.read >= 0.97 * share.ideal and share.ideal > 0.7 * share.whole
    assert share.reported_read == share.read


@pytest.mark.anyio
@pytest.mark.requirement("F144")
async def test_between_two_summaries_each_request_begins_with_the_bytes_of_the_one_before() -> None:
    """Over a restart too; and what stays word for word keeps its thinking."""
    share = await measure(18, window=9_000)
    assert share.problems == () and share.condensed >= 2
    assert [each.extends for each in share.counted].count(False) == share.condensed
    assert max(each.whole for each in share.counted) < 9_000


class Talk:
    """A conversation and the cache that it is sent to."""

    def __init__(self, model: str = "claude-x") -> None:
        self.now = 0.0
        self.cache = Cache(lambda: self.now)
        self.messages: list[PromptMessage] = []
        self.model = model

    def add(self, role: str, *blocks: PromptBlock) -> None:
        self.messages.append(msgspec.convert({"role": role, "content": msgspec.to_builtins(blocks)}, PromptMessage))

    def body(self, tools: Sequence[ToolSpec] = (TOOL,)) -> Json:
        request = ModelRequest(
            model=self.model, system="", messages=tuple(self.messages), tools=tuple(tools), output_tokens_max=10
        )
        return msgspec.json.decode(encode_request(request, cached=True))


def words(count: int) -> TextBlock:
    return TextBlock(text="word " * count)


def test_a_prompt_is_read_up_to_the_request_before_and_lives_for_five_minutes() -> None:
    talk = Talk()
    talk.add("user", words(2_000))
    first = talk.cache.take(talk.body())
    assert first.read == 0 and first.written["5m"] == first.whole
    talk.add("assistant", words(10))
    talk.add("user", words(10))
    second = talk.cache.take(talk.body())
    assert second.read == second.ideal == first.whole
    talk.now = 299.0
    assert talk.cache.take(talk.body()).read == second.whole
    talk.now = 600.0
    assert talk.cache.take(talk.body()) == (0, {"5m": second.whole, "1h": 0}, second.whole, 0, True)


def test_short_prompts_are_not_kept_and_how_short_depends_on_the_model() -> None:
    for model, kept in (("claude-x", True), ("claude-haiku-4-5", False)):
        talk = Talk(model)
        talk.add("user", words(2_000))
        counted = talk.cache.take(talk.body())
        assert (counted.written["5m"] > 0) is kept


@pytest.mark.parametrize("calls", [1, 9, 10, 30, 60])
def test_an_answer_of_any_number_of_calls_does_not_lose_the_prefix(calls: int) -> None:
    talk = Talk()
    talk.add("user", words(2_000))
    before = talk.cache.take(talk.body())
    talk.add("assistant", *(ToolUseBlock(id=f"sevt_{n}", name="bash", input={}) for n in range(calls)))
    talk.add("user", *(ToolResultBlock(tool_use_id=f"sevt_{n}", content=(words(3),)) for n in range(calls)))
    assert talk.cache.take(talk.body()).read == before.whole


def test_the_tools_alone_are_read_when_the_conversation_was_condensed() -> None:
    talk = Talk()
    tools = [msgspec.structs.replace(TOOL, name=f"tool_{n}", description="Do. " * 400) for n in range(4)]
    talk.add("user", words(2_000))
    talk.cache.take(talk.body(tools))
    talk.messages.clear()
    talk.add("user", words(50))
    counted = talk.cache.take(talk.body(tools))
    assert counted.read == counted.ideal > 1_024


def test_more_than_four_breakpoints_are_refused() -> None:
    mark = {"cache_control": {"type": "ephemeral"}}
    message: Json = {"role": "user", "content": [{"type": "text", "text": str(n), **mark} for n in range(5)]}
    with pytest.raises(ValueError, match="5 breakpoints"):
        Cache().take({"model": "m", "messages": [message]})
