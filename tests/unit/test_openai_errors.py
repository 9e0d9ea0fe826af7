"""What can go wrong with an OpenAI-style server, on both wires, against a real HTTP server."""

from __future__ import annotations

import socket
import threading
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import NamedTuple

import anyio
import anyio.to_thread
import msgspec
import pytest
from starlette.requests import Request
from starlette.responses import Response

from corral.config_sections import OpenAIWire
from corral.domain.inference import BlockStarted, ModelChunk, ModelRequest, ModelResponse
from corral.errors import (
    ContextOverflow,
    MachineUnfit,
    ProviderBilling,
    ProviderError,
    ProviderOverloaded,
    ProviderRateLimited,
    ProviderRefused,
    ProviderUnreachable,
)
from corral.providers.openai import OpenAIProvider
from tests.counterpart import KEY, REQUEST, Counterpart, Hanging, data
from tests.unit.openai_words import CHAT_HELLO, RESPONSES_HELLO, chat, chat_chunk, chunks_of, event, responses

pytestmark = pytest.mark.anyio


class Wire(NamedTuple):
    """One of the two, with a beginning of an answer and a whole one."""

    name: OpenAIWire
    beginning: str
    whole: str


WIRES = {
    "chat": Wire("chat", chat(*CHAT_HELLO, done=False), chat(*CHAT_HELLO, chat_chunk("stop"))),
    "responses": Wire("responses", "".join(map(data, RESPONSES_HELLO)), responses(*RESPONSES_HELLO)),
}


@pytest.fixture(params=list(WIRES))
def wire(request: pytest.FixtureRequest) -> Wire:
    return WIRES[str(request.param)]


@pytest.fixture
async def provider(server: Counterpart, wire: Wire) -> AsyncIterator[OpenAIProvider]:
    provider = OpenAIProvider(api_key=KEY, base_url=f"{server.url}/v1", wire=wire.name, idle_seconds=5)
    yield provider
    await provider.close()


async def failure_of(provider: OpenAIProvider, request: ModelRequest = REQUEST) -> ProviderError:
    """The error that ends the stream, having made sure that no answer came before it."""
    seen: list[ModelChunk] = []
    with anyio.fail_after(20), pytest.raises(ProviderError) as caught:
        async for chunk in provider.stream(request):
            seen.append(chunk)  # noqa: PERF401  # what came before the error is the point
    assert not any(isinstance(chunk, ModelResponse) for chunk in seen)
    assert KEY not in caught.value.message
    return caught.value


@pytest.mark.parametrize(
    "added",
    [
        "",
        "data: {broken\n\n",
        "data: [1, 2]\n\n",
        "data: null\n\n",
        'data: {"type": "response.output_text.delta", "choices": 5, "delta": []}\n\n',
        b"data: \xff\xfe\n\n",
        "data: [DONE]\n\n",
    ],
)
async def test_a_stream_that_breaks_off_has_no_response(
    server: Counterpart, provider: OpenAIProvider, wire: Wire, added: str | bytes
) -> None:
    server.answers(wire.beginning.encode() + (added.encode() if isinstance(added, str) else added))
    assert type(await failure_of(provider)) is ProviderUnreachable


async def test_a_connection_cut_in_the_middle_is_unreachable(
    server: Counterpart, provider: OpenAIProvider, wire: Wire
) -> None:
    async def handler(_: Request) -> Response:
        return Response(wire.beginning, headers={"content-type": "text/event-stream", "content-length": "99999"})

    server.handler = handler
    assert type(await failure_of(provider)) is ProviderUnreachable


async def test_every_place_to_break_off_is_an_error(server: Counterpart, provider: OpenAIProvider, wire: Wire) -> None:
    events = wire.whole.split("\n\n")
    ends = next(number for number, each in enumerate(events) if '"stop"' in each or "response.completed" in each)
    for number in range(ends + 1):
        server.answers("\n\n".join(events[:number]) + "\n\n" * bool(number))
        assert type(await failure_of(provider)) is ProviderUnreachable


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({"error": {"message": "later", "type": "server_error"}}, ProviderUnreachable),
        ({"error": {"message": "later", "type": "overloaded_error"}}, ProviderOverloaded),
        ({"error": {"message": "slow", "code": "rate_limit_exceeded"}}, ProviderRateLimited),
        ({"error": {"message": "slow", "code": 429}}, ProviderRateLimited),
        ({"error": {"message": "pay", "code": "insufficient_quota", "type": "insufficient_quota"}}, ProviderBilling),
        ({"error": {"message": "no", "type": "invalid_request_error"}}, ProviderRefused),
        ({"error": {"message": "long", "code": "context_length_exceeded"}}, ContextOverflow),
        ({"error": {"message": "the maximum context length is 9", "code": 400}}, ContextOverflow),
        ({"error": "out of order"}, ProviderUnreachable),
        ({"error": {"message": "no reason", "code": None}}, ProviderUnreachable),
    ],
)
async def test_errors_inside_a_stream_raise_their_own_error(
    server: Counterpart, provider: OpenAIProvider, wire: Wire, body: object, error: type[ProviderError]
) -> None:
    server.answers(wire.beginning + data(body))
    assert type(await failure_of(provider)) is error


@pytest.mark.parametrize(
    ("name", "added"),
    [
        ("chat", {"object": "error", "message": "too fast", "type": "x", "code": 429}),
        ("responses", {"type": "error", "code": "rate_limit_exceeded", "message": "too fast", "param": None}),
        ("responses", event("failed", response={"error": {"code": "rate_limit_exceeded", "message": "too fast"}})),
    ],
)
async def test_each_wire_has_errors_of_its_own(server: Counterpart, name: str, added: object) -> None:
    wire = WIRES[name]
    server.answers(wire.beginning + data(added))
    provider = OpenAIProvider(api_key=KEY, base_url=f"{server.url}/v1", wire=wire.name)
    failure = await failure_of(provider)
    assert type(failure) is ProviderRateLimited
    assert "too fast" in failure.message
    await provider.close()


@pytest.mark.parametrize(
    ("status", "fields", "error"),
    [
        (400, {"message": "messages: bad"}, ProviderRefused),
        (400, {"message": "too long", "code": "context_length_exceeded"}, ContextOverflow),
        (400, {"message": "This model's maximum context length is 8192 tokens.", "code": 400}, ContextOverflow),
        (400, {"message": "exceeds the size", "type": "exceed_context_size_error", "code": 400}, ContextOverflow),
        (400, {"message": "insufficient credits"}, ProviderBilling),
        (401, {"message": f"Incorrect API key provided: {KEY}", "code": "invalid_api_key"}, ProviderRefused),
        (402, {"message": "pay"}, ProviderBilling),
        (403, {"message": "no"}, ProviderRefused),
        (404, {"message": "no such model", "code": "model_not_found"}, ProviderRefused),
        (408, {"message": "late"}, ProviderUnreachable),
        (413, {"message": "too large"}, ContextOverflow),
        (429, {"message": "slow", "code": "rate_limit_exceeded"}, ProviderRateLimited),
        (429, {"message": "check your plan", "code": "insufficient_quota"}, ProviderBilling),
        (500, {"message": "oops", "type": "server_error"}, ProviderUnreachable),
        (500, {"message": "the context size has been exceeded"}, ContextOverflow),
        (502, {"message": "gateway"}, ProviderUnreachable),
        (503, {"message": "Loading model", "type": "unavailable_error"}, ProviderOverloaded),
        (529, {"message": "overloaded"}, ProviderOverloaded),
    ],
)
async def test_http_errors_raise_their_own_error_after_one_try(
    server: Counterpart, provider: OpenAIProvider, status: int, fields: dict[str, object], error: type[ProviderError]
) -> None:
    server.answers(msgspec.json.encode({"error": fields}), status=status, kind="application/json")
    failure = await failure_of(provider)
    assert type(failure) is error
    assert str(status) in failure.message
    assert str(fields["message"]).replace(KEY, "***") in failure.message
    assert len(server.bodies) == 1


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ('{"detail": "Not here"}', "Not here"),
        ('{"object": "error", "message": "Not here", "code": 404}', "Not here"),
        ('{"error": "Not here"}', "Not here"),
        ("<html>Not here</html>", "HTTP 404"),
        ("", "HTTP 404"),
    ],
)
async def test_error_bodies_of_all_shapes_are_quoted(
    server: Counterpart, provider: OpenAIProvider, body: str, words: str
) -> None:
    server.answers(body, status=404, kind="application/json")
    failure = await failure_of(provider)
    assert type(failure) is ProviderRefused
    assert failure.message.endswith(words)


async def test_rate_limits_say_how_long_to_wait(server: Counterpart, provider: OpenAIProvider) -> None:
    server.answers("{}", status=429, kind="application/json", retry_after="12")
    assert (await failure_of(provider)).retry_after_seconds == 12.0


async def test_an_error_body_under_a_success_status_is_an_error(server: Counterpart, provider: OpenAIProvider) -> None:
    server.answers('{"error": {"type": "overloaded_error", "message": "later"}}', kind="application/json")
    failure = await failure_of(provider)
    assert type(failure) is ProviderOverloaded
    assert "later" in failure.message


async def test_a_page_instead_of_a_stream_is_an_error(server: Counterpart, provider: OpenAIProvider) -> None:
    server.answers("<html>Welcome</html>", kind="text/html; charset=utf-8")
    assert "text/html" in (await failure_of(provider)).message


async def test_an_endless_answer_is_cut_off(server: Counterpart, provider: OpenAIProvider, wire: Wire) -> None:
    server.answers(wire.whole)
    request = msgspec.structs.replace(REQUEST, answer_bytes_max=len(wire.whole) - 1)
    assert "answer has more than" in (await failure_of(provider, request)).message


async def test_errors_are_of_bounded_length(server: Counterpart, provider: OpenAIProvider) -> None:
    server.answers(msgspec.json.encode({"error": {"message": "!" * 9_000}}), status=401, kind="application/json")
    assert len((await failure_of(provider)).message) <= 500


async def test_nobody_listening_is_unreachable(wire: Wire) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    provider = OpenAIProvider(api_key=KEY, base_url=f"http://127.0.0.1:{port}/v1", wire=wire.name)
    assert type(await failure_of(provider)) is ProviderUnreachable
    await provider.close()


async def test_an_address_that_is_none_is_unreachable(wire: Wire) -> None:
    provider = OpenAIProvider(base_url="nowhere", wire=wire.name)
    assert type(await failure_of(provider)) is ProviderUnreachable
    await provider.close()


async def gone(signal: threading.Event) -> bool:
    return await anyio.to_thread.run_sync(signal.wait, 5)


async def test_a_silent_server_is_given_up_after_the_idle_time(server: Counterpart, wire: Wire) -> None:
    server.handler = hanging = Hanging(wire.beginning)
    provider = OpenAIProvider(api_key=KEY, base_url=f"{server.url}/v1", wire=wire.name, idle_seconds=0.2)
    failure = await failure_of(provider)
    assert type(failure) is ProviderUnreachable
    assert "Timeout" in failure.message
    assert await gone(hanging.gone)
    await provider.close()


async def test_a_server_that_stays_on_the_line_after_its_answer_is_not_waited_for(
    server: Counterpart, provider: OpenAIProvider, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("corral.providers.openai.USAGE_SECONDS_MAX", 0.2)
    server.handler = hanging = Hanging(wire.whole.replace("data: [DONE]\n\n", ""))
    assert isinstance((await chunks_of(provider))[-1], ModelResponse)
    assert await gone(hanging.gone)


async def test_closing_early_cuts_the_connection(server: Counterpart, provider: OpenAIProvider, wire: Wire) -> None:
    server.handler = hanging = Hanging(wire.beginning)
    with anyio.fail_after(10):
        async with aclosing(provider.stream(REQUEST)) as chunks:
            assert await anext(chunks) == BlockStarted(0, "text")
        assert await gone(hanging.gone)


async def test_cancelling_cuts_the_connection(server: Counterpart, provider: OpenAIProvider, wire: Wire) -> None:
    server.handler = hanging = Hanging(wire.beginning)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            chunks = provider.stream(REQUEST)
            assert await anext(chunks) == BlockStarted(0, "text")
            tasks.start_soon(_drain, chunks)
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
        assert await gone(hanging.gone)


async def _drain(chunks: AsyncIterator[ModelChunk]) -> None:
    async for _ in chunks:
        pass


async def test_one_connection_serves_request_after_request(
    server: Counterpart, provider: OpenAIProvider, wire: Wire
) -> None:
    ports: set[int] = set()

    async def handler(request: Request) -> Response:
        assert request.client is not None
        ports.add(request.client.port)
        return Response(wire.whole, headers={"content-type": "text/event-stream"})

    server.handler = handler
    for _ in range(3):
        await chunks_of(provider)
    assert len(ports) == 1


@pytest.mark.parametrize(
    ("base_url", "wire", "path"),
    [
        (None, None, "/responses"),
        ("https://eu.api.openai.com/v1", None, "/responses"),
        ("http://127.0.0.1:8000/v1", None, "/chat/completions"),
        (None, "chat", "/chat/completions"),
        ("http://127.0.0.1:8000/v1", "responses", "/responses"),
    ],
)
def test_openai_itself_is_asked_through_responses_and_others_through_chat(
    base_url: str | None, wire: OpenAIWire | None, path: str
) -> None:
    provider = OpenAIProvider(api_key=KEY, base_url=base_url, wire=wire)
    assert provider.question(REQUEST).path == path


def test_without_a_key_and_an_address_there_is_nobody_to_ask() -> None:
    with pytest.raises(MachineUnfit, match="OPENAI_API_KEY"):
        OpenAIProvider()
