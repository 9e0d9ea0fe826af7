"""The Chat wire against a real HTTP server that answers with hand-written bytes, through the official SDK."""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec
import pytest

from corral.config_sections import SystemRole
from corral.domain.content import (
    Base64Source,
    DocumentBlock,
    FileSource,
    ImageBlock,
    PlainTextSource,
    PromptBlock,
    RedactedThinkingBlock,
    SearchResultBlock,
    SearchResultCitations,
    SearchResultText,
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
from corral.providers.openai import OpenAIProvider
from corral.providers.openai_chat import encode_chat
from tests.counterpart import KEY, REQUEST, Counterpart, Json
from tests.unit.openai_words import CHAT_HELLO, chat, chat_call, chat_chunk, chunks_of, response_of

pytestmark = pytest.mark.anyio


@pytest.fixture
async def provider(server: Counterpart) -> AsyncIterator[OpenAIProvider]:
    provider = OpenAIProvider(api_key=KEY, base_url=f"{server.url}/v1", idle_seconds=5)
    yield provider
    await provider.close()
    await provider.close()


# ------------------------------------------------------------------------------------------------- answers


async def test_text_is_previewed_and_then_whole(server: Counterpart, provider: OpenAIProvider) -> None:
    usage: Json = {"prompt_tokens": 70, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 64}}
    server.answers(chat(*CHAT_HELLO, chat_chunk("stop"), usage=usage))
    *previews, response = await chunks_of(provider)
    assert previews == [BlockStarted(0, "text"), TextDelta(0, "Hel"), TextDelta(0, "lo")]
    assert response == ModelResponse(
        content=(TextBlock(text="Hello"),),
        stop_reason="end_turn",
        usage=ModelUsage(input_tokens=6, output_tokens=3, cache_read_input_tokens=64),
    )
    assert server.paths == ["/v1/chat/completions"]
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"


async def test_tool_input_comes_in_any_number_of_pieces(server: Counterpart, provider: OpenAIProvider) -> None:
    whole = '{"command": "echo \\"ä\\""}'
    pieces = [chat_call(0, arguments=letter) for letter in whole]
    opening = chat_call(0, "x-1", name="bash", arguments="")
    server.answers(chat(*CHAT_HELLO, opening, *pieces, chat_chunk("tool_calls")))
    *previews, response = await chunks_of(provider)
    assert isinstance(response, ModelResponse)
    assert response.content[1] == ToolUseBlock(id="x-1", name="bash", input={"command": 'echo "ä"'})
    assert response.stop_reason == "tool_use"
    assert BlockStarted(1, "tool_use") in previews


CALLS = (
    ToolUseBlock(id="a", name="t", input={"n": 1}),
    ToolUseBlock(id="b", name="t", input={"n": 2}),
)


@pytest.mark.parametrize(
    "chunks",
    [
        pytest.param(
            (
                chat_call(0, "a", name="t", arguments='{"n"'),
                chat_call(1, "b", name="t", arguments='{"n":'),
                chat_call(0, arguments=": 1}"),
                chat_call(1, arguments=" 2}"),
            ),
            id="interleaved",
        ),
        pytest.param(
            (
                chat_call(0, "a", name="t", arguments='{"n":1}'),
                chat_call(0, "b", name="t", arguments='{"n":2}'),
            ),
            id="all with the same index",
        ),
        pytest.param(
            (
                chat_call(None, "a", name="t", arguments='{"n":1}'),
                chat_call(None, "b", name="t", arguments={"n": 2}),
            ),
            id="without an index, and arguments that are an object",
        ),
        pytest.param(
            (
                chat_call(0, "a", name="t", arguments='{"n"'),
                chat_call(0, "a", name="t", arguments=":1}"),
                chat_call(1, "b", name="t", arguments='{"n":2}'),
            ),
            id="with id and name in every piece",
        ),
    ],
)
async def test_parallel_calls_are_told_apart(
    server: Counterpart, provider: OpenAIProvider, chunks: tuple[Json, ...]
) -> None:
    server.answers(chat(*chunks, chat_chunk("tool_calls")))
    assert (await response_of(provider)).content == CALLS


async def test_calls_without_ids_get_some(server: Counterpart, provider: OpenAIProvider) -> None:
    calls = (chat_call(name="t", arguments="{}"), chat_call(name="t"), chat_call(None, "", name="u", arguments=""))
    server.answers(chat(*calls, chat_chunk("stop")))
    response = await response_of(provider)
    blocks = [block for block in response.content if isinstance(block, ToolUseBlock)]
    assert [block.name for block in blocks] == ["t", "t", "u"]
    assert len({block.id for block in blocks}) == 3
    assert all(block.id and block.input == {} for block in blocks)
    assert response.stop_reason == "tool_use"


async def test_two_calls_never_share_an_id(server: Counterpart, provider: OpenAIProvider) -> None:
    calls = (chat_call(0, "a", name="t", arguments="{}"), chat_call(1, "a", name="u", arguments="{}"))
    server.answers(chat(*calls, chat_chunk("tool_calls")))
    first, second = (await response_of(provider)).content
    assert isinstance(first, ToolUseBlock) and isinstance(second, ToolUseBlock)
    assert (first.name, second.name) == ("t", "u")
    assert first.id != second.id


@pytest.mark.parametrize("arguments", ['{"command": "ec', "[1]", "nonsense", '"text"', "null"])
async def test_broken_tool_input_is_empty_and_noted(
    server: Counterpart, provider: OpenAIProvider, arguments: str
) -> None:
    server.answers(chat(chat_call(0, "a", name="bash", arguments=arguments), chat_chunk("tool_calls")))
    response = await response_of(provider)
    assert response.content == (ToolUseBlock(id="a", name="bash", input={}),)
    assert response.malformed_tool_inputs == ("a",)


@pytest.mark.parametrize(("reason", "malformed"), [("length", ("b",)), ("tool_calls", ())])
async def test_a_call_that_is_cut_before_its_input_is_not_one_without_input(
    server: Counterpart, provider: OpenAIProvider, reason: str, malformed: tuple[str, ...]
) -> None:
    calls = (chat_call(0, "a", name="t", arguments=""), chat_call(1, "b", name="t", arguments=""))
    server.answers(chat(*calls, chat_chunk(reason)))
    assert (await response_of(provider)).malformed_tool_inputs == malformed


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
async def test_thinking_is_kept_apart_from_the_text(server: Counterpart, provider: OpenAIProvider, name: str) -> None:
    server.answers(chat(chat_chunk(**{name: "let me"}), chat_chunk(**{name: " see"}), *CHAT_HELLO, chat_chunk("stop")))
    *previews, response = await chunks_of(provider)
    assert isinstance(response, ModelResponse)
    assert response.content == (ThinkingBlock(thinking="let me see"), TextBlock(text="Hello"))
    assert previews[:2] == [BlockStarted(0, "thinking"), BlockStarted(1, "text")]


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("stop", "end_turn"),
        ("length", "max_tokens"),
        ("content_filter", "refusal"),
        ("something_new", "end_turn"),
    ],
)
async def test_stop_reasons(server: Counterpart, provider: OpenAIProvider, sent: str, kept: str) -> None:
    server.answers(chat(*CHAT_HELLO, chat_chunk(sent)))
    assert (await response_of(provider)).stop_reason == kept


async def test_a_refusal_in_words_is_a_refusal(server: Counterpart, provider: OpenAIProvider) -> None:
    server.answers(chat(chat_chunk(refusal="I will "), chat_chunk(refusal="not."), chat_chunk("stop")))
    response = await response_of(provider)
    assert (response.stop_reason, response.refusal_explanation) == ("refusal", "I will not.")
    assert response.content == ()


async def test_usage_may_come_with_every_chunk_or_not_at_all(server: Counterpart, provider: OpenAIProvider) -> None:
    counted = [{**chunk, "usage": {"prompt_tokens": 9, "completion_tokens": n}} for n, chunk in enumerate(CHAT_HELLO)]
    server.answers(chat(*counted, chat_chunk("stop"), done=False))
    assert (await response_of(provider)).usage == ModelUsage(input_tokens=9, output_tokens=2)
    server.answers(chat(*CHAT_HELLO, chat_chunk("stop"), done=False))
    assert (await response_of(provider)).usage == ModelUsage()


async def test_unknown_fields_nulls_other_choices_and_comments_are_skipped(
    server: Counterpart, provider: OpenAIProvider
) -> None:
    strange: tuple[Json, ...] = (
        {"choices": None, "prompt_filter_results": []},
        {"choices": [{"index": 1, "delta": {"content": "the other answer"}, "finish_reason": "stop"}]},
        {"choices": [{"index": 0, "delta": None, "finish_reason": ""}], "usage": None},
        {"choices": [{"index": 0, "delta": {"content": "shown", "tool_calls": None, "audio": {}}}]},
    )
    after = chat_chunk(content=" after the end")
    server.answers(": ping\n\n" + chat(*strange, chat_chunk("stop"), after))
    assert (await response_of(provider)).content == (TextBlock(text="shown"),)


# ------------------------------------------------------------------------------------------------ requests


def body_of(request: ModelRequest, *, official: bool = False) -> Json:
    return msgspec.json.decode(encode_chat(request, official=official), type=Json)


def messages_of(*messages: PromptMessage, official: bool = False) -> object:
    return body_of(msgspec.structs.replace(REQUEST, messages=messages), official=official)["messages"]


def user(*content: PromptBlock) -> PromptMessage:
    return PromptMessage(role="user", content=content)


IMAGE = ImageBlock(source=Base64Source(media_type="image/png", data="QUJD"))
PDF = DocumentBlock(source=Base64Source(media_type="application/pdf", data="QUJD"), title="plan.pdf", context="Draft.")


def test_the_same_request_has_the_same_bytes() -> None:
    tool = ToolSpec(name="t", description="d", input_schema={"type": "object", "required": ["a"]})
    request = msgspec.structs.replace(REQUEST, tools=(tool,))
    again = msgspec.structs.replace(request, attempt=3)
    assert encode_chat(request, official=False) == encode_chat(again, official=False)
    assert body_of(request)["tools"] == [
        {"type": "function", "function": {"name": "t", "description": "d", "parameters": tool.input_schema}}
    ]


def test_a_plain_request_holds_what_every_server_knows_and_no_more() -> None:
    assert body_of(REQUEST) == {
        "model": "m",
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 100,
        "messages": [{"role": "user", "content": "hi"}],
    }


def test_system_prompt_effort_and_the_newer_name_of_the_limit() -> None:
    body = body_of(msgspec.structs.replace(REQUEST, system="be brief", effort="high"), official=True)
    assert body["reasoning_effort"] == "high"
    assert (body["max_completion_tokens"], "max_tokens" in body) == (100, False)
    assert body["messages"] == [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]


def test_calls_and_results_keep_their_ids_and_their_places() -> None:
    call = ToolUseBlock(id="sevt_1", name="bash", input={"command": "ls"})
    other = ToolUseBlock(id="sevt_2", name="bash", input={})
    results = (
        ToolResultBlock(tool_use_id="sevt_1", content=(TextBlock(text="a"), TextBlock(text="b"))),
        TextBlock(text="And now?"),
        ToolResultBlock(tool_use_id="sevt_2", content=(), is_error=True),
    )
    assistant = PromptMessage(role="assistant", content=(TextBlock(text="I look."), call, other))
    silent = PromptMessage(role="assistant", content=(call,))
    assert messages_of(assistant, user(*results), silent) == [
        {
            "role": "assistant",
            "content": "I look.",
            "tool_calls": [
                {"id": "sevt_1", "type": "function", "function": {"name": "bash", "arguments": '{"command":"ls"}'}},
                {"id": "sevt_2", "type": "function", "function": {"name": "bash", "arguments": "{}"}},
            ],
        },
        {"role": "tool", "tool_call_id": "sevt_1", "content": "a\n\nb"},
        {"role": "tool", "tool_call_id": "sevt_2", "content": "Error: (no output)"},
        {"role": "user", "content": "And now?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "sevt_1", "type": "function", "function": {"name": "bash", "arguments": '{"command":"ls"}'}}
            ],
        },
    ]


def test_pictures_in_results_follow_in_a_user_message() -> None:
    result = ToolResultBlock(tool_use_id="sevt_1", content=(TextBlock(text="a.png"), IMAGE))
    assert messages_of(user(result)) == [
        {"role": "tool", "tool_call_id": "sevt_1", "content": "a.png"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "The result of sevt_1 came with this:"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD"}},
            ],
        },
    ]


def test_documents_go_to_openai_and_are_named_to_others() -> None:
    assert messages_of(user(PDF), official=True) == [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "Draft."},
                {"type": "file", "file": {"filename": "plan.pdf", "file_data": "data:application/pdf;base64,QUJD"}},
            ],
        }
    ]
    assert messages_of(user(PDF)) == [
        {"role": "user", "content": "Draft.\n\n[A document, plan.pdf, which cannot be shown.]"}
    ]
    linked = DocumentBlock(source=UrlSource(url="https://example.com/a.pdf"))
    assert messages_of(user(linked), official=True) == [
        {
            "role": "user",
            "content": [{"type": "text", "text": "[A document, document.pdf, at https://example.com/a.pdf]"}],
        }
    ]


def test_everything_else_becomes_words_or_is_left_out() -> None:
    search = SearchResultBlock(
        source="https://example.com",
        title="Example",
        content=(SearchResultText(text="found"),),
        citations=SearchResultCitations(enabled=False),
    )
    blocks = (
        TextBlock(text=" "),
        DocumentBlock(source=PlainTextSource(data="notes"), title="Notes"),
        DocumentBlock(source=Base64Source(media_type="text/html", data="")),
        DocumentBlock(source=FileSource(file_id="file_1")),
        ImageBlock(source=FileSource(file_id="file_2")),
        search,
    )
    assert messages_of(user(*blocks)) == [
        {
            "role": "user",
            "content": "Notes\nnotes\n\n[A document of type text/html, which cannot be shown.]\n\n"
            "[A document that is not available.]\n\n[An image that is not available.]\n\n"
            "Example\nhttps://example.com\nfound",
        }
    ]
    thinking = (ThinkingBlock(thinking="hm", signature="s"), RedactedThinkingBlock(data="x"))
    told = PromptMessage(role="system", content=(TextBlock(text="From now on be brief."),))
    assert messages_of(PromptMessage(role="assistant", content=thinking), user(TextBlock(text="")), told) == [
        {"role": "user", "content": "<system>\nFrom now on be brief.\n</system>"}
    ]


@pytest.mark.parametrize("role", ["system", "developer"])
def test_system_messages_go_in_the_role_that_was_chosen(role: SystemRole) -> None:
    told = PromptMessage(role="system", content=(TextBlock(text="Be brief."),))
    request = msgspec.structs.replace(REQUEST, messages=(user(TextBlock(text="hi")), told))
    body = msgspec.json.decode(encode_chat(request, official=False, later_system=role), type=Json)
    assert body["messages"] == [{"role": "user", "content": "hi"}, {"role": role, "content": "Be brief."}]


def test_where_templates_want_turns_a_system_message_joins_the_users() -> None:
    told = PromptMessage(role="system", content=(TextBlock(text="Be brief."),))
    answer = PromptMessage(role="assistant", content=(TextBlock(text="Yes?"),))
    said = [user(TextBlock(text="hi")), answer, told, user(TextBlock(text="Who?"))]
    assert messages_of(*said) == [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "<system>\nBe brief.\n</system>\n\nWho?"},
    ]
