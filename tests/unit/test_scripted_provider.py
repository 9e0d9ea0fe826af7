"""The scripted model: its language, and that it is a pure function of the request."""

from __future__ import annotations

from contextlib import aclosing

import anyio
import msgspec
import pytest

from corral.domain.content import TextBlock, ThinkingBlock, ToolResultBlock, ToolUseBlock
from corral.domain.inference import (
    BlockStarted,
    ModelChunk,
    ModelRequest,
    ModelResponse,
    PromptMessage,
    TextDelta,
    ToolSpec,
)
from corral.errors import (
    ContextOverflow,
    ProviderBilling,
    ProviderError,
    ProviderOverloaded,
    ProviderRateLimited,
    ProviderRefused,
    ProviderUnreachable,
)
from corral.providers.scripted import ScriptedProvider

pytestmark = pytest.mark.anyio

BASH = ToolSpec(name="bash", description="Run a command.", input_schema={"type": "object"})


def script(*steps: object) -> str:
    return f"Please play this.\n```script\n{msgspec.json.encode(steps).decode()}\n```\nThank you."


def user(text: str) -> PromptMessage:
    return PromptMessage(role="user", content=(TextBlock(text=text),))


def assistant(text: str) -> PromptMessage:
    return PromptMessage(role="assistant", content=(TextBlock(text=text),))


def result(text: str, *, is_error: bool = False) -> PromptMessage:
    block = ToolResultBlock(tool_use_id="toolu_0_0", content=(TextBlock(text=text),), is_error=is_error)
    return PromptMessage(role="user", content=(block,))


def ask(*messages: PromptMessage, system: str = "", attempt: int = 0) -> ModelRequest:
    return ModelRequest(
        model="scripted", system=system, messages=messages, tools=(BASH,), output_tokens_max=1_000, attempt=attempt
    )


async def play(request: ModelRequest) -> list[ModelChunk]:
    with anyio.fail_after(5):
        return [chunk async for chunk in ScriptedProvider().stream(request)]


async def answer(request: ModelRequest) -> ModelResponse:
    last = (await play(request))[-1]
    assert isinstance(last, ModelResponse)
    return last


def text_of(response: ModelResponse) -> str:
    return "".join(block.text for block in response.content if isinstance(block, TextBlock))


async def test_without_a_script_it_repeats_the_user() -> None:
    response = await answer(ask(user("hello")))
    assert text_of(response) == "You said: hello"
    assert response.stop_reason == "end_turn"
    assert response.usage.input_tokens > 0
    assert response.usage.output_tokens > 0


async def test_text_is_previewed_in_as_many_pieces_as_asked() -> None:
    chunks = await play(ask(user(script({"say": "abcdefgh", "pieces": 4}))))
    assert chunks[:-1] == [BlockStarted(0, "text"), *(TextDelta(0, part) for part in ("ab", "cd", "ef", "gh"))]


async def test_short_text_has_fewer_pieces_and_none_is_empty() -> None:
    chunks = await play(ask(user(script({"say": "ab", "pieces": 9}))))
    assert chunks[:-1] == [BlockStarted(0, "text"), TextDelta(0, "a"), TextDelta(0, "b")]


async def test_steps_follow_the_assistant_messages_after_the_script() -> None:
    scripted = user(script({"tool": "bash", "input": {"command": "ls"}}, {"say": "second"}))
    first = await answer(ask(user("hi"), assistant("hello"), scripted))
    assert first.content == (ToolUseBlock(id="toolu_1_0", name="bash", input={"command": "ls"}),)
    assert first.stop_reason == "tool_use"
    history = (user("hi"), assistant("hello"), scripted, assistant("called"), result("files"))
    assert text_of(await answer(ask(*history))) == "second"
    assert text_of(await answer(ask(*history, assistant("second"), result("x")))) == "Done."


async def test_a_script_in_the_system_prompt_counts_all_assistant_messages() -> None:
    system = script({"say": "one"}, {"say": "two"})
    assert text_of(await answer(ask(user("hi"), system=system))) == "one"
    assert text_of(await answer(ask(user("hi"), assistant("one"), user("go on"), system=system))) == "two"


async def test_the_latest_message_decides_which_script_is_played() -> None:
    old = user(script({"say": "old"}))
    assert text_of(await answer(ask(old, assistant("old"), user(script({"say": "new"}))))) == "new"
    assert text_of(await answer(ask(old, assistant("old"), user("plain")))) == "You said: plain"


async def test_one_answer_may_hold_several_blocks_and_parallel_calls() -> None:
    step = [{"think": "hm"}, {"say": "now", "then": [{"tool": "bash"}]}, {"parallel": [{"tool": "a"}, {"tool": "b"}]}]
    response = await answer(ask(user(script(step))))
    assert response.content == (
        ThinkingBlock(thinking="hm", signature="scripted"),
        TextBlock(text="now"),
        ToolUseBlock(id="toolu_0_0", name="bash", input={}),
        ToolUseBlock(id="toolu_0_1", name="a", input={}),
        ToolUseBlock(id="toolu_0_2", name="b", input={}),
    )


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("overloaded", ProviderOverloaded),
        ("rate_limited", ProviderRateLimited),
        ("unreachable", ProviderUnreachable),
        ("refused", ProviderRefused),
        ("billing", ProviderBilling),
        ("overflow", ContextOverflow),
    ],
)
async def test_failures_raise_the_error_of_their_kind(kind: str, error: type[ProviderError]) -> None:
    with pytest.raises(error):
        await play(ask(user(script({"fail": kind}))))


async def test_a_failure_streams_its_partial_text_and_ends_after_the_attempts() -> None:
    scripted = user(script({"fail": "rate_limited", "attempts": 2, "after": "par", "retry_after": 7, "say": "whole"}))
    for attempt in (0, 1):
        seen: list[ModelChunk] = []
        with pytest.raises(ProviderRateLimited) as caught:
            async for chunk in ScriptedProvider().stream(ask(scripted, attempt=attempt)):
                seen.append(chunk)  # noqa: PERF401  # what came before the error is the point
        assert seen == [BlockStarted(0, "text"), TextDelta(0, "par")]
        assert caught.value.retry_after_seconds == 7
    assert text_of(await answer(ask(scripted, attempt=2))) == "whole"


async def test_a_hanging_step_streams_its_text_and_waits_until_cancelled() -> None:
    seen: list[ModelChunk] = []
    with anyio.move_on_after(0.2) as scope:
        async with aclosing(ScriptedProvider().stream(ask(user(script({"say": "x", "hang": True}))))) as chunks:
            async for chunk in chunks:
                seen.append(chunk)  # noqa: PERF401  # what came before the cancellation is the point
    assert scope.cancelled_caught
    assert seen == [BlockStarted(0, "text"), TextDelta(0, "x")]


async def test_refusal_stop_reason_usage_and_malformed_calls_can_be_scripted() -> None:
    refused = await answer(ask(user(script({"refuse": "cyber", "explanation": "no"}))))
    assert (refused.stop_reason, refused.refusal_category, refused.refusal_explanation) == ("refusal", "cyber", "no")
    cut = await answer(ask(user(script({"say": "and", "stop": "max_tokens"}))))
    assert cut.stop_reason == "max_tokens"
    dear = await answer(ask(user(script({"say": "x", "usage": {"input_tokens": 5, "cache_read_input_tokens": 9}}))))
    assert (dear.usage.input_tokens, dear.usage.cache_read_input_tokens) == (5, 9)
    assert dear.usage.output_tokens > 0
    broken = await answer(ask(user(script({"malformed": "bash"}))))
    assert broken.content == (ToolUseBlock(id="toolu_0_0", name="bash", input={}),)
    assert broken.malformed_tool_inputs == ("toolu_0_0",)
    assert broken.stop_reason == "tool_use"


async def test_echo_tells_what_the_model_was_sent() -> None:
    scripted = user(script({"say": "skip"}, {"echo": "prompt"}))
    request = ask(scripted, assistant("skip"), result("boom", is_error=True), system="be brief")
    digest = msgspec.json.decode(text_of(await answer(request)), type=dict[str, object])
    assert digest["tools"] == ["bash"]
    assert digest["messages"] == 3
    assert digest["system_chars"] == len("be brief")
    assert digest["last_result"] == "boom"
    assert digest["last_result_is_error"] is True
    assert text_of(await answer(ask(user(script({"echo": "system"})), system="be brief"))) == "be brief"


async def test_the_same_request_has_the_same_answer() -> None:
    request = ask(user(script([{"say": "a"}, {"tool": "bash", "input": {"command": "ls"}}])))
    assert await play(request) == await play(request)


async def test_strings_of_a_script_may_hold_fences() -> None:
    assert text_of(await answer(ask(user(script({"say": "```py\nx\n```"}))))) == "```py\nx\n```"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("```script\n[{]\n```", "Expecting"),
        ('```script\n[{"sya": 1}]\n```', "sya"),
        ('```script\n[{"say": "x", "pieces": 0}]\n```', "pieces"),
        ('```script\n[{"usage": {"tokens": 1}}]\n```', "tokens"),
    ],
)
async def test_a_bad_script_is_refused_by_name(text: str, problem: str) -> None:
    with pytest.raises(ProviderRefused, match=problem):
        await play(ask(user(text)))
