"""Breakpoints: few, at the ends of requests, and without effect on the prefix that is compared."""

from __future__ import annotations

import msgspec
import pytest

from corral.domain.content import TextBlock, ToolResultBlock, ToolUseBlock
from corral.domain.inference import ModelRequest, PromptMessage, ToolSpec
from corral.providers.messages_request import EncodedMessages, encode_message, encode_request

TOOL = ToolSpec(name="bash", description="Run.", input_schema={"type": "object"})


def conversation(rounds: int) -> tuple[PromptMessage, ...]:
    messages = [PromptMessage(role="user", content=(TextBlock(text="Go."),))]
    for number in range(rounds):
        call_id = f"sevt_{number}"
        use = ToolUseBlock(id=call_id, name="bash", input={"command": str(number)})
        result = ToolResultBlock(tool_use_id=call_id, content=(TextBlock(text=f"out {number}"),))
        messages.append(PromptMessage(role="assistant", content=(use,)))
        messages.append(PromptMessage(role="user", content=(result,)))
    return tuple(messages)


def request(rounds: int, *, system: str = "You work.") -> ModelRequest:
    return ModelRequest(model="m", system=system, messages=conversation(rounds), tools=(TOOL,), output_tokens_max=100)


def body(rounds: int, *, system: str = "You work.") -> dict[str, object]:
    return msgspec.json.decode(encode_request(request(rounds, system=system), cached=True), type=dict[str, object])


def marks(value: object) -> int:
    return msgspec.json.encode(value).count(b"cache_control")


@pytest.mark.parametrize("rounds", [0, 1, 2, 7, 40])
def test_there_are_never_more_breakpoints_than_the_api_allows(rounds: int) -> None:
    assert marks(body(rounds)) == (2 if rounds == 0 else 3)


def test_the_end_of_this_request_and_of_the_one_before_are_breakpoints() -> None:
    messages = msgspec.convert(body(3)["messages"], list[dict[str, object]])
    assert [marks(message) for message in messages] == [0, 0, 0, 0, 1, 0, 1]


def test_system_and_tools_are_one_breakpoint_which_stands_with_the_tools_when_there_is_no_system_prompt() -> None:
    with_system, without = body(1), body(1, system="")
    assert (marks(with_system["system"]), marks(with_system["tools"])) == (1, 0)
    assert "system" not in without and marks(without["tools"]) == 1


def test_a_longer_conversation_begins_with_the_same_bytes() -> None:
    """Breakpoints aside, which are not part of what a server compares."""
    short, long = (msgspec.json.encode(body(rounds)["messages"]) for rounds in (5, 6))
    mark = b',"cache_control":{"type":"ephemeral"}'
    assert long.replace(mark, b"").startswith(short.replace(mark, b"").removesuffix(b"]"))


@pytest.mark.parametrize("bytes_max", [0, 300, 1 << 20])
def test_remembered_messages_make_the_same_bytes(bytes_max: int) -> None:
    known = EncodedMessages(bytes_max)
    conversations = [request(rounds) for rounds in (1, 2, 7, 2)]
    for asked in [*conversations, *conversations]:
        for cached in (True, False):
            assert encode_request(asked, cached=cached, encode=known.of) == encode_request(asked, cached=cached)


def test_what_was_used_least_lately_is_forgotten_first() -> None:
    one, other, third = (PromptMessage(role="user", content=(TextBlock(text=letter),)) for letter in "abc")
    known = EncodedMessages(2 * len(encode_message(one)))
    first, second = known.of(one), known.of(other)
    assert known.of(one) is first
    known.of(third)
    assert known.of(one) is first
    assert known.of(other) is not second and known.of(other) == second


def test_a_message_of_which_nothing_may_be_sent_is_left_out() -> None:
    empty = PromptMessage(role="user", content=(TextBlock(text=" "),))
    assert encode_message(empty) == b""
    asked = msgspec.structs.replace(request(0), messages=(empty, *conversation(0)))
    assert encode_request(asked) == encode_request(request(0))
