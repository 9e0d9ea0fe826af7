"""The Responses wire against a real HTTP server that answers with hand-written bytes, through the official SDK."""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec
import pytest
from starlette.requests import Request
from starlette.responses import Response

from corral.domain.content import (
    Base64Source,
    DocumentBlock,
    ImageBlock,
    PromptBlock,
    TextBlock,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
    UrlSource,
)
from corral.domain.inference import (
    BlockStarted,
    ModelRequest,
    ModelResponse,
    ModelUsage,
    PromptMessage,
    TextDelta,
    ToolSpec,
)
from corral.providers.messages_request import encode_request
from corral.providers.openai import OpenAIProvider
from corral.providers.openai_responses import encode_responses
from tests.counterpart import KEY, REQUEST, Counterpart, Json, data
from tests.unit.openai_words import RESPONSES_HELLO, added, chunks_of, done, event, response_of, responses, text

pytestmark = pytest.mark.anyio


@pytest.fixture
async def provider(server: Counterpart) -> AsyncIterator[OpenAIProvider]:
    provider = OpenAIProvider(api_key=KEY, base_url=f"{server.url}/v1", wire="responses", idle_seconds=5)
    yield provider
    await provider.close()


def pieces(index: int, *words: str) -> list[Json]:
    return [event("function_call_arguments.delta", output_index=index, delta=word) for word in words]


# ------------------------------------------------------------------------------------------------- answers


async def test_text_is_previewed_and_then_whole(server: Counterpart, provider: OpenAIProvider) -> None:
    usage: Json = {"input_tokens": 70, "input_tokens_details": {"cached_tokens": 64}, "output_tokens": 3}
    whole = done(0, type="message", id="msg_1", content=[{"type": "output_text", "text": "Hello"}])
    server.answers(responses(*RESPONSES_HELLO, whole, usage=usage))
    *previews, response = await chunks_of(provider)
    assert previews == [BlockStarted(0, "text"), TextDelta(0, "Hel"), TextDelta(0, "lo")]
    assert response == ModelResponse(
        content=(TextBlock(text="Hello"),),
        stop_reason="end_turn",
        usage=ModelUsage(input_tokens=6, output_tokens=3, cache_read_input_tokens=64),
    )
    assert server.paths == ["/v1/responses"]


async def test_calls_come_in_any_number_of_pieces_and_in_parallel(
    server: Counterpart, provider: OpenAIProvider
) -> None:
    events = (
        added(0, type="function_call", id="fc_1", call_id="a", name="bash", arguments=""),
        added(1, type="function_call", id="fc_2", call_id="b", name="read", arguments=""),
        *pieces(0, *'{"command": "'),
        *pieces(1, '{"path"', ': "x"}'),
        *pieces(0, *'echo \\"ä\\""}'),
        done(0, type="function_call", id="fc_1", call_id="a", name="bash", arguments="not looked at"),
    )
    server.answers(responses(*events))
    *previews, response = await chunks_of(provider)
    assert isinstance(response, ModelResponse)
    assert response.content == (
        ToolUseBlock(id="a", name="bash", input={"command": 'echo "ä"'}),
        ToolUseBlock(id="b", name="read", input={"path": "x"}),
    )
    assert response.stop_reason == "tool_use"
    assert previews == [BlockStarted(0, "tool_use"), BlockStarted(1, "tool_use")]


CALL = ToolUseBlock(id="a", name="t", input={"n": 1})
ITEM: Json = {"type": "function_call", "id": "fc_1", "call_id": "a", "name": "t", "arguments": '{"n":1}'}


@pytest.mark.parametrize(
    "events",
    [
        pytest.param((done(0, **ITEM),), id="whole at its end"),
        pytest.param(
            (
                added(0, **{**ITEM, "arguments": ""}),
                event("function_call_arguments.done", output_index=0, arguments='{"n":1}'),
            ),
            id="arguments at once",
        ),
        pytest.param(
            (
                event("output_item.added", item={**ITEM, "arguments": ""}),
                event("function_call_arguments.delta", item_id="fc_1", delta='{"n":1}'),
                event("output_item.done", item=ITEM),
            ),
            id="without places",
        ),
        pytest.param(
            (
                event("output_item.added", item={"type": "function_call", "call_id": "a", "name": "t"}),
                event("function_call_arguments.delta", item_id="a", delta='{"n":1}'),
                event("output_item.done", item={**ITEM, "id": None}),
            ),
            id="without places, the call's id being the item's",
        ),
        pytest.param((*pieces(0, '{"n":', "1}"), done(0, **ITEM)), id="pieces before the item"),
    ],
)
async def test_calls_are_whole_however_they_come(
    server: Counterpart, provider: OpenAIProvider, events: tuple[Json, ...]
) -> None:
    server.answers(responses(*events))
    assert (await response_of(provider)).content == (CALL,)


async def test_an_answer_may_be_in_its_last_event_only(server: Counterpart, provider: OpenAIProvider) -> None:
    message = {"type": "message", "content": [{"type": "output_text", "text": "Hello"}]}
    server.answers(responses(output=[{"type": "hologram"}, message, {**ITEM, "arguments": {"n": 1}}]))
    *previews, response = await chunks_of(provider)
    assert isinstance(response, ModelResponse)
    assert response.content == (TextBlock(text="Hello"), CALL)
    assert TextDelta(0, "Hello") in previews


async def test_broken_tool_input_and_missing_ids(server: Counterpart, provider: OpenAIProvider) -> None:
    server.answers(responses(added(0, type="function_call", name="t"), *pieces(0, '{"n": ')))
    response = await response_of(provider)
    (block,) = response.content
    assert isinstance(block, ToolUseBlock)
    assert block.id and block.input == {}
    assert response.malformed_tool_inputs == (block.id,)


async def test_reasoning_is_thinking(server: Counterpart, provider: OpenAIProvider) -> None:
    summary = event("reasoning_summary_text.delta", output_index=0, summary_index=0, delta="let me see")
    hidden = added(1, type="reasoning", id="rs_2", encrypted_content="x")
    server.answers(responses(added(0, type="reasoning", id="rs_1"), summary, hidden, text(2, "Hello")))
    *previews, response = await chunks_of(provider)
    assert isinstance(response, ModelResponse)
    assert response.content == (
        ThinkingBlock(thinking="let me see"),
        ThinkingBlock(thinking=""),
        TextBlock(text="Hello"),
    )
    assert previews[:2] == [BlockStarted(0, "thinking"), BlockStarted(1, "thinking")]


@pytest.mark.parametrize(("reason", "kept"), [("max_output_tokens", "max_tokens"), ("content_filter", "refusal")])
async def test_incomplete_answers_say_why(
    server: Counterpart, provider: OpenAIProvider, reason: str, kept: str
) -> None:
    ending = event("incomplete", response={"incomplete_details": {"reason": reason}, "usage": {"output_tokens": 5}})
    server.answers("".join(map(data, [*RESPONSES_HELLO, ending])))
    response = await response_of(provider)
    assert (response.stop_reason, response.usage.output_tokens) == (kept, 5)
    assert response.content == (TextBlock(text="Hello"),)


async def test_a_refusal_in_words_is_a_refusal(server: Counterpart, provider: OpenAIProvider) -> None:
    piece = event("refusal.delta", output_index=0, content_index=0, delta="I will not.")
    whole = done(0, type="message", content=[{"type": "refusal", "refusal": "I will not."}])
    server.answers(responses(added(0, type="message"), piece, whole))
    response = await response_of(provider)
    assert (response.stop_reason, response.refusal_explanation) == ("refusal", "I will not.")


async def test_unknown_events_and_items_are_skipped(server: Counterpart, provider: OpenAIProvider) -> None:
    strange: tuple[Json, ...] = (
        {"type": "keepalive", "delta": 5},
        {"sequence_number": 4},
        event("telepathy.delta", delta={"not": "text"}),
        added(7, type="web_search_call", id="ws_1"),
        done(7, type="web_search_call", id="ws_1"),
        event("output_text.done", output_index=0, text="not said twice"),
    )
    server.answers(responses(*strange, *RESPONSES_HELLO) + "data: [DONE]\n\n")
    assert (await response_of(provider)).content == (TextBlock(text="Hello"),)


# ------------------------------------------------------------------------------------------------ requests


def body_of(request: ModelRequest) -> Json:
    return msgspec.json.decode(encode_responses(request), type=Json)


def input_of(*messages: PromptMessage) -> object:
    return body_of(msgspec.structs.replace(REQUEST, messages=messages))["input"]


def user(*content: PromptBlock) -> PromptMessage:
    return PromptMessage(role="user", content=content)


def test_a_plain_request_asks_for_nothing_to_be_stored() -> None:
    assert encode_responses(REQUEST) == encode_responses(msgspec.structs.replace(REQUEST, attempt=3))
    assert body_of(REQUEST) == {
        "model": "m",
        "stream": True,
        "store": False,
        "include": ["reasoning.encrypted_content"],
        "max_output_tokens": 100,
        "input": [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]}],
    }


def test_system_prompt_effort_and_tools() -> None:
    tool = ToolSpec(name="t", description="d", input_schema={"type": "object"})
    body = body_of(msgspec.structs.replace(REQUEST, system="be brief", effort="xhigh", tools=(tool,)))
    assert (body["instructions"], body["reasoning"]) == ("be brief", {"effort": "xhigh"})
    assert body["tools"] == [
        {"type": "function", "name": "t", "description": "d", "parameters": {"type": "object"}, "strict": False}
    ]


def test_calls_and_results_keep_their_ids_and_their_places() -> None:
    picture = ImageBlock(source=Base64Source(media_type="image/png", data="QUJD"))
    thought = ThinkingBlock(thinking="hm", signature="s")
    assistant = PromptMessage(role="assistant", content=(thought, TextBlock(text="I look."), CALL))
    results = (
        ToolResultBlock(tool_use_id="a", content=(TextBlock(text="no such file"),), is_error=True),
        ToolResultBlock(tool_use_id="b", content=(picture,), is_error=True),
        ToolResultBlock(tool_use_id="c", content=()),
        TextBlock(text="And now?"),
    )
    told = PromptMessage(role="system", content=(TextBlock(text="Be brief."),))
    assert input_of(assistant, user(*results), told) == [
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I look."}]},
        {"type": "function_call", "call_id": "a", "name": "t", "arguments": '{"n":1}'},
        {"type": "function_call_output", "call_id": "a", "output": "Error: no such file"},
        {
            "type": "function_call_output",
            "call_id": "b",
            "output": [
                {"type": "input_text", "text": "Error:"},
                {"type": "input_image", "image_url": "data:image/png;base64,QUJD", "detail": "auto"},
            ],
        },
        {"type": "function_call_output", "call_id": "c", "output": "(no output)"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "And now?"}]},
        {"type": "message", "role": "system", "content": [{"type": "input_text", "text": "Be brief."}]},
    ]


def test_documents_are_files() -> None:
    inline = DocumentBlock(source=Base64Source(media_type="application/pdf", data="QUJD"), title="plan.pdf")
    linked = DocumentBlock(source=UrlSource(url="https://example.com/a.pdf"))
    assert input_of(user(inline, linked)) == [
        {
            "type": "message",
            "role": "user",
            "content": [
                {"type": "input_file", "filename": "plan.pdf", "file_data": "data:application/pdf;base64,QUJD"},
                {"type": "input_file", "file_url": "https://example.com/a.pdf"},
            ],
        }
    ]


async def test_reasoning_is_asked_for_sealed_and_goes_back_before_its_call(
    server: Counterpart, provider: OpenAIProvider
) -> None:
    reasoning: Json = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "SEALED=="}
    call: Json = {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "t", "arguments": "{}"}
    server.answers(responses(added(0, type="reasoning", id="rs_1"), done(0, **reasoning), done(1, **call)))
    first = await response_of(provider)
    assert first.content == (
        ThinkingBlock(thinking="", signature="responses:SEALED=="),
        ToolUseBlock(id="c1", name="t", input={}),
    )
    result = ToolResultBlock(tool_use_id="c1", content=(TextBlock(text="ok"),))
    messages = (*REQUEST.messages, PromptMessage(role="assistant", content=first.content), user(result))
    server.answers(responses(*RESPONSES_HELLO))
    await response_of(provider, msgspec.structs.replace(REQUEST, messages=messages))
    body = msgspec.json.decode(server.bodies[-1], type=Json)
    assert (body["include"], body["store"]) == (["reasoning.encrypted_content"], False)
    assert body["input"] == [
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]},
        {"type": "reasoning", "summary": [], "encrypted_content": "SEALED=="},
        {"type": "function_call", "call_id": "c1", "name": "t", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "ok"},
    ]


async def test_a_model_without_reasoning_is_asked_again_without_it_and_remembered(
    server: Counterpart, provider: OpenAIProvider
) -> None:
    async def handler(request: Request) -> Response:
        if "include" in msgspec.json.decode(await request.body(), type=Json):
            said = {"error": {"message": "Encrypted content is not supported with this model.", "param": "include"}}
            return Response(msgspec.json.encode(said), 400, {"content-type": "application/json"})
        return Response(responses(*RESPONSES_HELLO), 200, {"content-type": "text/event-stream"})

    server.handler = handler
    for _ in range(2):
        assert (await response_of(provider)).content == (TextBlock(text="Hello"),)
    assert ["include" in msgspec.json.decode(body, type=Json) for body in server.bodies] == [True, False, False]


def test_thinking_of_other_wires_stays_behind() -> None:
    blocks = (ThinkingBlock(thinking="hm", signature="EqQB"), ThinkingBlock(thinking="hm"), TextBlock(text="so"))
    said = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "so"}]}
    assert input_of(PromptMessage(role="assistant", content=blocks)) == [said]
    sealed = (ThinkingBlock(thinking="", signature="responses:x"), TextBlock(text="so"))
    request = msgspec.structs.replace(REQUEST, messages=(PromptMessage(role="assistant", content=sealed),))
    assert msgspec.json.decode(encode_request(request), type=Json)["messages"] == [
        {"role": "assistant", "content": [{"type": "text", "text": "so"}]}
    ]


def test_system_messages_go_in_the_role_that_the_server_takes() -> None:
    told = PromptMessage(role="system", content=(TextBlock(text="Be brief."),))
    request = msgspec.structs.replace(REQUEST, messages=(*REQUEST.messages, told))
    for role in ("system", "developer"):
        items = msgspec.json.decode(encode_responses(request, later_system=role))["input"]
        assert [item["role"] for item in items] == ["user", role]
    (item,) = msgspec.json.decode(encode_responses(request, later_system="user"))["input"]
    assert [part["text"] for part in item["content"]] == ["hi", "<system>\nBe brief.\n</system>"]


@pytest.mark.requirement("F002")
def test_fast_is_openais_priority_and_nobody_elses() -> None:
    fast = msgspec.structs.replace(REQUEST, speed="fast")
    assert msgspec.json.decode(encode_responses(fast, official=True))["service_tier"] == "priority"
    assert "service_tier" not in msgspec.json.decode(encode_responses(fast))
    assert "service_tier" not in msgspec.json.decode(encode_responses(REQUEST, official=True))
