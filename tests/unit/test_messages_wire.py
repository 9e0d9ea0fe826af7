"""The Messages API client against a real HTTP server that answers with hand-written bytes, through the official SDK."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import aclosing

import anyio
import anyio.to_thread
import msgspec
import pytest
from starlette.requests import Request
from starlette.responses import Response

from corral.domain.content import (
    RedactedThinkingBlock,
    TextBlock,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
)
from corral.domain.inference import (
    BlockStarted,
    ModelChunk,
    ModelRequest,
    ModelResponse,
    ModelUsage,
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
from corral.providers.anthropic import AnthropicProvider
from corral.providers.messages_request import WireRequest, encode_request
from corral.providers.messages_wire import MessagesClient
from tests.counterpart import KEY, REQUEST, Counterpart, Hanging, Json, data

pytestmark = pytest.mark.anyio


@pytest.fixture
async def client(server: Counterpart) -> AsyncIterator[MessagesClient]:
    client = MessagesClient(base_url=server.url, api_key=KEY, idle_seconds=5)
    yield client
    await client.close()


WIRE = WireRequest(encode_request(REQUEST), {})


def sse(*events: Json) -> str:
    return "".join(map(data, events))


def start(index: int, **block: object) -> Json:
    return {"type": "content_block_start", "index": index, "content_block": block}


def delta(index: int, kind: str, **fields: object) -> Json:
    return {"type": "content_block_delta", "index": index, "delta": {"type": kind, **fields}}


def end(reason: str | None = "end_turn", **fields: object) -> tuple[Json, ...]:
    return {"type": "message_delta", "delta": {"stop_reason": reason}, **fields}, {"type": "message_stop"}


HELLO = (start(0, type="text", text=""), delta(0, "text_delta", text="Hel"), delta(0, "text_delta", text="lo"))


async def chunks_of(client: MessagesClient) -> list[ModelChunk]:
    with anyio.fail_after(20):
        return [chunk async for chunk in client.stream(WIRE)]


async def response_of(client: MessagesClient) -> ModelResponse:
    last = (await chunks_of(client))[-1]
    assert isinstance(last, ModelResponse)
    return last


async def test_text_is_previewed_and_then_whole(server: Counterpart, client: MessagesClient) -> None:
    opening: Json = {"type": "message_start", "message": {"usage": {"input_tokens": 7}}}
    server.answers(sse(opening, {"type": "ping"}, *HELLO, *end(usage={"output_tokens": 3})))
    *previews, response = await chunks_of(client)
    assert previews == [BlockStarted(0, "text"), TextDelta(0, "Hel"), TextDelta(0, "lo")]
    assert response == ModelResponse(
        content=(TextBlock(text="Hello"),),
        stop_reason="end_turn",
        usage=ModelUsage(input_tokens=7, output_tokens=3),
    )
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"


async def test_tool_input_comes_in_any_number_of_pieces(server: Counterpart, client: MessagesClient) -> None:
    whole = '{"command": "echo \\"ä\\""}'
    pieces = [delta(1, "input_json_delta", partial_json=letter) for letter in whole]
    server.answers(sse(*HELLO, start(1, type="tool_use", id="x-1", name="bash"), *pieces, *end("tool_use")))
    *previews, response = await chunks_of(client)
    assert isinstance(response, ModelResponse)
    assert response.content[1] == ToolUseBlock(id="x-1", name="bash", input={"command": 'echo "ä"'})
    assert response.stop_reason == "tool_use"
    assert BlockStarted(1, "tool_use") in previews


async def test_a_tool_call_without_input_has_an_empty_one(server: Counterpart, client: MessagesClient) -> None:
    server.answers(sse(start(0, type="tool_use", id="a", name="t"), *end(None)))
    response = await response_of(client)
    assert response.content == (ToolUseBlock(id="a", name="t", input={}),)
    assert response.malformed_tool_inputs == ()
    assert response.stop_reason == "tool_use"


async def test_input_given_whole_at_the_start_is_used(server: Counterpart, client: MessagesClient) -> None:
    server.answers(sse(start(0, type="tool_use", id="a", name="t", input={"x": 1}), *end("tool_use")))
    assert (await response_of(client)).content == (ToolUseBlock(id="a", name="t", input={"x": 1}),)


@pytest.mark.parametrize("text", ['{"command": "l', "[1]", '"x"', "not json"])
async def test_broken_tool_input_is_empty_and_named(server: Counterpart, client: MessagesClient, text: str) -> None:
    call = start(0, type="tool_use", id="a", name="t", input={})
    server.answers(sse(call, delta(0, "input_json_delta", partial_json=text), *end("max_tokens")))
    response = await response_of(client)
    assert response.content == (ToolUseBlock(id="a", name="t", input={}),)
    assert response.malformed_tool_inputs == ("a",)
    assert response.stop_reason == "max_tokens"


@pytest.mark.parametrize("stop", ["max_tokens", "tool_use"])
async def test_a_call_that_is_cut_before_its_input_is_not_one_without_input(
    server: Counterpart, client: MessagesClient, stop: str
) -> None:
    calls = [start(index, type="tool_use", id=f"id{index}", name="t", input={}) for index in range(2)]
    server.answers(sse(*calls, delta(1, "input_json_delta", partial_json=""), *end(stop)))
    response = await response_of(client)
    assert response.malformed_tool_inputs == (("id1",) if stop == "max_tokens" else ())


async def test_calls_with_no_id_or_the_same_id_stay_apart(server: Counterpart, client: MessagesClient) -> None:
    calls = [start(index, type="tool_use", name="t", id=call_id) for index, call_id in enumerate(("a", "a", None))]
    server.answers(sse(*calls, *end("tool_use")))
    ids = [block.id for block in (await response_of(client)).content if isinstance(block, ToolUseBlock)]
    assert len(set(ids)) == 3


async def test_thinking_keeps_its_signature_and_redacted_thinking_its_data(
    server: Counterpart, client: MessagesClient
) -> None:
    thinking = (
        start(0, type="thinking", thinking="", signature=""),
        delta(0, "thinking_delta", thinking="let "),
        delta(0, "thinking_delta", thinking="me see"),
        delta(0, "signature_delta", signature="SIG=="),
        start(1, type="redacted_thinking", data="opaque"),
    )
    server.answers(sse(*thinking, *end()))
    *previews, response = await chunks_of(client)
    assert isinstance(response, ModelResponse)
    assert response.content == (
        ThinkingBlock(thinking="let me see", signature="SIG=="),
        RedactedThinkingBlock(data="opaque"),
    )
    assert previews == [BlockStarted(0, "thinking"), BlockStarted(1, "thinking")]


async def test_unknown_events_blocks_and_deltas_are_skipped(server: Counterpart, client: MessagesClient) -> None:
    strange: tuple[Json, ...] = (
        {"type": "telepathy", "delta": "not an object"},
        start(0, type="hologram", pixels=[1]),
        delta(0, "text_delta", text="not shown"),
        start(1, type="text", text=""),
        delta(1, "citations_delta", citation={}),
        delta(1, "text_delta", text="shown"),
        delta(9, "text_delta", text="no such block"),
    )
    server.answers(sse(*strange, *end()))
    *previews, response = await chunks_of(client)
    assert isinstance(response, ModelResponse)
    assert response.content == (TextBlock(text="shown"),)
    assert previews == [BlockStarted(0, "text"), TextDelta(0, "shown")]


async def test_text_blocks_that_stay_empty_are_no_blocks(server: Counterpart, client: MessagesClient) -> None:
    call = start(1, type="tool_use", id="a", name="t")
    server.answers(sse(start(0, type="text", text=""), call, *end("tool_use")))
    *previews, response = await chunks_of(client)
    assert isinstance(response, ModelResponse)
    assert response.content == (ToolUseBlock(id="a", name="t", input={}),)
    assert previews == [BlockStarted(0, "tool_use")]


async def test_usage_is_counted_by_cache_and_never_shrinks(server: Counterpart, client: MessagesClient) -> None:
    usage: Json = {
        "input_tokens": 10,
        "output_tokens": 1,
        "cache_read_input_tokens": 30,
        "cache_creation_input_tokens": 12,
        "cache_creation": {"ephemeral_5m_input_tokens": 5, "ephemeral_1h_input_tokens": 7},
    }
    later = {"input_tokens": 0, "output_tokens": 20, "cache_read_input_tokens": None}
    server.answers(sse({"type": "message_start", "message": {"usage": usage}}, *HELLO, *end(usage=later)))
    assert (await response_of(client)).usage == ModelUsage(
        input_tokens=10,
        output_tokens=20,
        cache_read_input_tokens=30,
        cache_creation_5m_input_tokens=5,
        cache_creation_1h_input_tokens=7,
    )


async def test_cache_writes_without_a_breakdown_are_the_short_ones(server: Counterpart, client: MessagesClient) -> None:
    server.answers(sse(*HELLO, *end(usage={"cache_creation_input_tokens": 12})))
    assert (await response_of(client)).usage == ModelUsage(cache_creation_5m_input_tokens=12)


async def test_a_refusal_tells_category_and_explanation(server: Counterpart, client: MessagesClient) -> None:
    details = {"type": "refusal", "category": "cyber", "explanation": "No."}
    ending: Json = {
        "type": "message_delta",
        "delta": {"stop_reason": "refusal", "stop_details": details},
    }
    server.answers(sse(*HELLO, ending, {"type": "message_stop"}))
    response = await response_of(client)
    assert response.stop_reason == "refusal"
    assert (response.refusal_category, response.refusal_explanation) == ("cyber", "No.")


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("stop_sequence", "stop_sequence"),
        ("pause_turn", "pause_turn"),
        ("model_context_window_exceeded", "max_tokens"),
        ("something_new", "end_turn"),
        (None, "end_turn"),
    ],
)
async def test_stop_reasons(server: Counterpart, client: MessagesClient, sent: str | None, kept: str) -> None:
    server.answers(sse(*HELLO, *end(sent)))
    assert (await response_of(client)).stop_reason == kept


@pytest.mark.parametrize(
    "body",
    [
        sse(*HELLO),
        sse(*HELLO, *end())[:-20],
        "",
        "event: content_block_start\ndata: {broken\n\n",
        'event: content_block_start\ndata: {"content_block": 5}\n\n',
        b"event: content_block_start\ndata: \xff\xfe\n\n",
    ],
)
async def test_a_stream_that_breaks_off_has_no_response(
    server: Counterpart, client: MessagesClient, body: str | bytes
) -> None:
    server.answers(body)
    seen: list[ModelChunk] = []
    with anyio.fail_after(20), pytest.raises(ProviderUnreachable):
        async for chunk in client.stream(WIRE):
            seen.append(chunk)  # noqa: PERF401  # what came before the error is the point
    assert not any(isinstance(chunk, ModelResponse) for chunk in seen)


async def test_a_connection_cut_in_the_middle_is_unreachable(server: Counterpart, client: MessagesClient) -> None:
    async def handler(_: Request) -> Response:
        return Response(sse(*HELLO), headers={"content-type": "text/event-stream", "content-length": "99999"})

    server.handler = handler
    with pytest.raises(ProviderUnreachable):
        await chunks_of(client)


@pytest.mark.parametrize(
    ("kind", "message", "error"),
    [
        ("overloaded_error", "Overloaded", ProviderOverloaded),
        ("rate_limit_error", "slow down", ProviderRateLimited),
        ("api_error", "oops", ProviderUnreachable),
        ("billing_error", "pay", ProviderBilling),
        ("invalid_request_error", "bad", ProviderRefused),
        ("invalid_request_error", "prompt is too long: 9 tokens > 5", ContextOverflow),
        ("something_new", "?", ProviderUnreachable),
    ],
)
async def test_error_events_raise_their_own_error(
    server: Counterpart, client: MessagesClient, kind: str, message: str, error: type[ProviderError]
) -> None:
    server.answers(sse(*HELLO, {"type": "error", "error": {"type": kind, "message": message}}))
    with pytest.raises(ProviderError, match=message.partition(":")[0].replace("?", r"\?")) as caught:
        await chunks_of(client)
    assert type(caught.value) is error


@pytest.mark.parametrize(
    ("status", "message", "error"),
    [
        (400, "messages: bad", ProviderRefused),
        (400, "prompt is too long: 210000 tokens > 200000 maximum", ContextOverflow),
        (400, "the request exceeds the available context size", ContextOverflow),
        (400, "Your credit balance is too low", ProviderBilling),
        (401, "invalid x-api-key", ProviderRefused),
        (402, "pay", ProviderBilling),
        (403, "no", ProviderRefused),
        (404, "model: m", ProviderRefused),
        (413, "too large", ContextOverflow),
        (429, "slow", ProviderRateLimited),
        (500, "oops", ProviderUnreachable),
        (502, "gateway", ProviderUnreachable),
        (503, "busy", ProviderOverloaded),
        (504, "late", ProviderUnreachable),
        (529, "Overloaded", ProviderOverloaded),
    ],
)
async def test_http_errors_raise_their_own_error_after_one_try(
    server: Counterpart, client: MessagesClient, status: int, message: str, error: type[ProviderError]
) -> None:
    body = msgspec.json.encode({"type": "error", "error": {"type": "x", "message": message}})
    server.answers(body, status=status, kind="application/json")
    with pytest.raises(ProviderError, match=str(status)) as caught:
        await chunks_of(client)
    assert type(caught.value) is error
    assert message in caught.value.message
    assert len(server.bodies) == 1


async def test_an_error_page_is_told_by_its_status(server: Counterpart, client: MessagesClient) -> None:
    server.answers("<html>Bad gateway</html>", status=502, kind="text/html")
    with pytest.raises(ProviderUnreachable, match="502"):
        await chunks_of(client)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry_after": "12"}, 12.0),
        ({"retry_after_ms": "1500", "retry_after": "12"}, 1.5),
        ({"retry_after": "Thu, 01 Jan 2026 00:00:30 GMT", "date": "Thu, 01 Jan 2026 00:00:00 GMT"}, 30.0),
        ({"retry_after": "soon"}, None),
        ({}, None),
    ],
)
async def test_rate_limits_say_how_long_to_wait(
    server: Counterpart, client: MessagesClient, headers: dict[str, str], seconds: float | None
) -> None:
    server.answers("{}", status=429, kind="application/json", **headers)
    with pytest.raises(ProviderRateLimited) as caught:
        await chunks_of(client)
    assert caught.value.retry_after_seconds == seconds


async def test_an_error_body_under_a_success_status_is_an_error(server: Counterpart, client: MessagesClient) -> None:
    server.answers('{"error": {"type": "overloaded_error", "message": "later"}}', kind="application/json")
    with pytest.raises(ProviderOverloaded, match="later"):
        await chunks_of(client)


async def test_a_page_instead_of_a_stream_is_an_error(server: Counterpart, client: MessagesClient) -> None:
    server.answers("<html>Welcome</html>", kind="text/html; charset=utf-8")
    with pytest.raises(ProviderUnreachable, match="text/html"):
        await chunks_of(client)


async def test_errors_never_repeat_the_key(server: Counterpart, client: MessagesClient) -> None:
    body = msgspec.json.encode({"error": {"type": "authentication_error", "message": f"{KEY} is wrong" + "!" * 9_000}})
    server.answers(body, status=401, kind="application/json")
    with pytest.raises(ProviderRefused) as caught:
        await chunks_of(client)
    assert KEY not in caught.value.message
    assert len(caught.value.message) <= 500


async def test_nobody_listening_is_unreachable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    client = MessagesClient(base_url=f"http://127.0.0.1:{port}", api_key=KEY)
    with pytest.raises(ProviderUnreachable):
        await chunks_of(client)
    await client.close()


async def test_a_silent_server_is_given_up_after_the_idle_time(server: Counterpart) -> None:
    server.handler = hanging = Hanging(sse(*HELLO))
    client = MessagesClient(base_url=server.url, api_key=KEY, idle_seconds=0.2)
    with pytest.raises(ProviderUnreachable, match="Timeout"):
        await chunks_of(client)
    assert await anyio.to_thread.run_sync(hanging.gone.wait, 5)
    await client.close()


async def test_closing_early_cuts_the_connection(server: Counterpart, client: MessagesClient) -> None:
    server.handler = hanging = Hanging(sse(*HELLO))
    with anyio.fail_after(5):
        async with aclosing(client.stream(WIRE)) as chunks:
            assert await anext(chunks) == BlockStarted(0, "text")
        assert await anyio.to_thread.run_sync(hanging.gone.wait, 5)


async def test_cancelling_cuts_the_connection(server: Counterpart, client: MessagesClient) -> None:
    server.handler = hanging = Hanging(sse(*HELLO))
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            chunks = client.stream(WIRE)
            assert await anext(chunks) == BlockStarted(0, "text")
            tasks.start_soon(_drain, chunks)
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
        assert await anyio.to_thread.run_sync(hanging.gone.wait, 5)


async def _drain(chunks: AsyncIterator[ModelChunk]) -> None:
    async for _ in chunks:
        pass


def body_of(request: ModelRequest) -> Json:
    return msgspec.json.decode(encode_request(request), type=Json)


def test_the_same_request_has_the_same_bytes() -> None:
    tool = ToolSpec(name="t", description="d", input_schema={"type": "object", "required": ["a"]})
    request = msgspec.structs.replace(REQUEST, tools=(tool,))
    assert encode_request(request) == encode_request(msgspec.structs.replace(request, attempt=3))
    # A schema keeps its order: models fill in parameters in the order in which they are shown.
    assert encode_request(request).index(b'"type":"object"') < encode_request(request).index(b'"required"')


def test_an_empty_system_prompt_and_no_tools_are_left_out() -> None:
    body = body_of(REQUEST)
    assert body == {"model": "m", "max_tokens": 100, "stream": True, "messages": body["messages"]}
    assert body_of(msgspec.structs.replace(REQUEST, system="be brief"))["system"] == "be brief"


def test_tool_results_are_encoded_with_and_without_content() -> None:
    results = (
        ToolResultBlock(tool_use_id="a", content=()),
        ToolResultBlock(tool_use_id="b", content=(TextBlock(text=""),), is_error=True),
        ToolResultBlock(tool_use_id="c", content=(TextBlock(text="ok"),)),
    )
    request = msgspec.structs.replace(REQUEST, messages=(PromptMessage(role="user", content=results),))
    assert body_of(request)["messages"] == [
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "a"},
                {"type": "tool_result", "tool_use_id": "b", "is_error": True},
                {"type": "tool_result", "tool_use_id": "c", "content": [{"type": "text", "text": "ok"}]},
            ],
        }
    ]


def test_what_the_api_refuses_is_left_out() -> None:
    messages = (
        PromptMessage(role="user", content=(TextBlock(text="hi"), TextBlock(text=" \n"))),
        PromptMessage(role="assistant", content=(ThinkingBlock(thinking="unsigned"), TextBlock(text=""))),
        PromptMessage(
            role="assistant",
            content=(
                ThinkingBlock(thinking="hm", signature="s"),
                TextBlock(text="yes"),
                ThinkingBlock(thinking="cut off", signature="s"),
                RedactedThinkingBlock(data="x"),
            ),
        ),
        PromptMessage(role="system", content=(TextBlock(text="From now on be brief."),)),
    )
    assert body_of(msgspec.structs.replace(REQUEST, messages=messages))["messages"] == [
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
        {
            "role": "assistant",
            "content": [{"type": "thinking", "thinking": "hm", "signature": "s"}, {"type": "text", "text": "yes"}],
        },
        {"role": "system", "content": [{"type": "text", "text": "From now on be brief."}]},
    ]


async def test_effort_and_speed_are_sent_only_when_asked_for(server: Counterpart) -> None:
    server.answers(sse(*HELLO, *end()))
    provider = AnthropicProvider(api_key=KEY, base_url=server.url)
    with anyio.fail_after(20):
        plain = [chunk async for chunk in provider.stream(REQUEST)]
        eager = msgspec.structs.replace(REQUEST, effort="high", speed="fast", inference_geo="us")
        assert [chunk async for chunk in provider.stream(eager)] == plain
    await provider.close()
    await provider.close()
    first, second = (msgspec.json.decode(body, type=Json) for body in server.bodies)
    assert not {"output_config", "speed", "inference_geo"} & first.keys()
    assert second["inference_geo"] == "us"
    assert "anthropic-beta" not in server.headers[0]
    assert (second["output_config"], second["speed"]) == ({"effort": "high"}, "fast")
    assert "fast-mode" in server.headers[1]["anthropic-beta"]
