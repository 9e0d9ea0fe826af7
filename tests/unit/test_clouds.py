"""Claude through Bedrock and Vertex: the SDK's own clients against real HTTP servers that speak as the clouds do."""

from __future__ import annotations

import base64
import binascii
import gc
import json
import struct
import warnings
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import cast

import anyio
import anyio.to_thread
import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from corral.app.providers import make_provider
from corral.config import load
from corral.domain.content import TextBlock, ToolUseBlock
from corral.domain.inference import BlockStarted, ModelChunk, ModelResponse, ModelUsage, TextDelta
from corral.errors import (
    ContextOverflow,
    MachineUnfit,
    ProviderError,
    ProviderOverloaded,
    ProviderRateLimited,
    ProviderRefused,
    ProviderUnreachable,
)
from corral.providers.anthropic import AnthropicProvider
from corral.providers.messages_clouds import LIBRARIES, Cloud, CloudName
from tests.counterpart import REQUEST, Counterpart, Hanging, Json, data

pytestmark = pytest.mark.anyio

AMAZON = "application/vnd.amazon.eventstream"
ANSWER: tuple[Json, ...] = (
    {"type": "message_start", "message": {"usage": {"input_tokens": 7, "cache_read_input_tokens": 3}}},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hel"}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "lo"}},
    {"type": "content_block_start", "index": 1, "content_block": {"type": "tool_use", "id": "t1", "name": "bash"}},
    {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": '{"a": '}},
    {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": "1}"}},
    {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 2}},
    {"type": "message_stop"},
)


def frame(payload: bytes, **headers: str) -> bytes:
    """A frame of AWS's event streams: lengths, headers of type string, payload, and two checksums."""
    packed = b"".join(
        bytes([len(name)]) + name.encode() + b"\x07" + struct.pack("!H", len(value)) + value.encode()
        for name, value in ((f":{name.replace('_', '-')}", value) for name, value in headers.items())
    )
    prelude = struct.pack("!II", 16 + len(packed) + len(payload), len(packed))
    whole = prelude + struct.pack("!I", binascii.crc32(prelude)) + packed + payload
    return whole + struct.pack("!I", binascii.crc32(whole))


def chunk(event: Json) -> bytes:
    payload = json.dumps({"bytes": base64.b64encode(msgspec.json.encode(event)).decode()}).encode()
    return frame(payload, event_type="chunk", content_type="application/json", message_type="event")


def exception(kind: str, message: str) -> bytes:
    payload = json.dumps({"message": message}).encode()
    return frame(payload, exception_type=kind, content_type="application/json", message_type="exception")


@pytest.fixture
def server(counterpart: Counterpart, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Counterpart:
    """The server, and credentials for it alone: whatever this machine has is out of reach."""
    for name in ("AWS_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_BEARER_TOKEN_BEDROCK", "CLOUD_ML_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDOFTHETEST")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-of-the-test")
    return counterpart


@pytest.fixture
async def bedrock(server: Counterpart) -> AsyncIterator[AnthropicProvider]:
    provider = AnthropicProvider(cloud=Cloud("bedrock", "eu-north-1", url=server.url), idle_seconds=10)
    yield provider
    await provider.close()


async def chunks_of(provider: AnthropicProvider) -> list[ModelChunk]:
    with anyio.fail_after(60):
        return [chunk async for chunk in provider.stream(REQUEST)]


def check(chunks: list[ModelChunk]) -> None:
    assert chunks[:3] == [BlockStarted(0, "text"), TextDelta(0, "Hel"), TextDelta(0, "lo")]
    assert chunks[-1] == ModelResponse(
        content=(TextBlock(text="Hello"), ToolUseBlock(id="t1", name="bash", input={"a": 1})),
        stop_reason="tool_use",
        usage=ModelUsage(input_tokens=7, cache_read_input_tokens=3, output_tokens=2),
    )


# ------------------------------------------------------------------------------------------------ bedrock


async def test_bedrock_is_sent_a_signed_request_and_its_frames_are_read(
    server: Counterpart, bedrock: AnthropicProvider
) -> None:
    server.answers(b"".join(map(chunk, ANSWER)), kind=AMAZON)
    check(await chunks_of(bedrock))
    assert server.paths == ["/model/m/invoke-with-response-stream"]
    body = msgspec.json.decode(server.bodies[0], type=Json)
    assert "model" not in body and "stream" not in body
    assert body["anthropic_version"] and body["max_tokens"] == 100
    signature = server.headers[0]["authorization"]
    assert signature.startswith("AWS4-HMAC-SHA256 Credential=AKIDOFTHETEST/")
    assert "/eu-north-1/bedrock/aws4_request" in signature and "Signature=" in signature


async def test_the_same_request_is_sent_to_bedrock_in_the_same_bytes(
    server: Counterpart, bedrock: AnthropicProvider
) -> None:
    server.answers(b"".join(map(chunk, ANSWER)), kind=AMAZON)
    await chunks_of(bedrock)
    await chunks_of(bedrock)
    assert server.bodies[0] == server.bodies[1]


async def test_a_bedrock_key_goes_as_a_bearer_token_and_never_into_an_error(server: Counterpart) -> None:
    server.answers('{"message": "bedrock-key-of-the-test is wrong"}', status=403, kind="application/json")
    cloud = Cloud("bedrock", "eu-north-1", url=server.url, token="bedrock-key-of-the-test")
    provider = AnthropicProvider(cloud=cloud)
    with pytest.raises(ProviderRefused) as caught:
        await chunks_of(provider)
    await provider.close()
    assert server.headers[0]["authorization"] == "Bearer bedrock-key-of-the-test"
    assert "bedrock-key-of-the-test" not in caught.value.message


@pytest.mark.parametrize(
    ("status", "message", "error"),
    [
        (429, "Too many tokens, please wait", ProviderRateLimited),
        (503, "busy", ProviderOverloaded),
        (500, "oops", ProviderUnreachable),
        (400, "Input is too long: prompt is too long", ContextOverflow),
        (403, "not allowed", ProviderRefused),
    ],
)
async def test_bedrocks_http_errors_are_ours(
    server: Counterpart, bedrock: AnthropicProvider, status: int, message: str, error: type[ProviderError]
) -> None:
    server.answers(json.dumps({"message": message}), status=status, kind="application/json")
    with pytest.raises(ProviderError, match=message) as caught:
        await chunks_of(bedrock)
    assert type(caught.value) is error
    assert len(server.bodies) == 1


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("throttlingException", ProviderRateLimited),
        ("serviceUnavailableException", ProviderOverloaded),
        ("modelStreamErrorException", ProviderUnreachable),
        ("validationException", ProviderRefused),
        ("somethingNewException", ProviderUnreachable),
    ],
)
async def test_bedrocks_exceptions_inside_a_stream_are_ours(
    server: Counterpart, bedrock: AnthropicProvider, kind: str, error: type[ProviderError]
) -> None:
    server.answers(b"".join(map(chunk, ANSWER[:4])) + exception(kind, "as it is"), kind=AMAZON)
    with pytest.raises(ProviderError) as caught:
        await chunks_of(bedrock)
    assert type(caught.value) is error
    # AWS's own parser says nothing about an exception that it does not know.
    assert "as it is" in caught.value.message or kind == "somethingNewException"


@pytest.mark.parametrize(
    "body",
    [
        b"".join(map(chunk, ANSWER[:-1])),
        b"".join(map(chunk, ANSWER))[:-200],
        b"".join(map(chunk, ANSWER[:3])) + b"\x00" * 64,
        b"event: message_start\ndata: {}\n\n" * 20,
        b"",
    ],
    ids=["no end", "cut in a frame", "zeros", "not frames", "nothing"],
)
async def test_broken_frames_are_no_answer(server: Counterpart, bedrock: AnthropicProvider, body: bytes) -> None:
    server.answers(body, kind=AMAZON)
    with pytest.raises(ProviderUnreachable):
        await chunks_of(bedrock)


async def test_a_page_in_place_of_frames_is_no_answer(server: Counterpart, bedrock: AnthropicProvider) -> None:
    server.answers("<html>", kind="text/html")
    with pytest.raises(ProviderUnreachable, match="text/html"):
        await chunks_of(bedrock)


async def test_closing_early_cuts_the_connection_to_bedrock(server: Counterpart, bedrock: AnthropicProvider) -> None:
    server.handler = hanging = Hanging(b"".join(map(chunk, ANSWER[:4])), kind=AMAZON)
    with anyio.fail_after(60):
        async with aclosing(bedrock.stream(REQUEST)) as chunks:
            assert await anext(chunks) == BlockStarted(0, "text")
        assert await anyio.to_thread.run_sync(hanging.gone.wait, 30)


@pytest.mark.parametrize("missing", ["credentials", "region"])
async def test_what_bedrock_lacks_is_said_and_not_tried_again(
    server: Counterpart, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    # The SDK remembers credentials by region, so this is one that no other test uses.
    region = "eu-south-1" if missing == "credentials" else None
    if missing == "credentials":
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    provider = AnthropicProvider(cloud=Cloud("bedrock", region, url=server.url))
    with pytest.raises(ProviderRefused, match="no access to bedrock"):
        await chunks_of(provider)
    await provider.close()
    assert server.bodies == []


async def test_there_is_no_fast_mode_in_a_cloud(bedrock: AnthropicProvider) -> None:
    with pytest.raises(ProviderRefused, match="fast mode"):
        bedrock.stream(msgspec.structs.replace(REQUEST, speed="fast"))
    with pytest.raises(ProviderRefused, match="inference_geo"):
        bedrock.stream(msgspec.structs.replace(REQUEST, inference_geo="eu"))


# ------------------------------------------------------------------------------------------------- vertex


@pytest.fixture
def vertex_account(server: Counterpart, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Counterpart]:
    """A service account whose tokens come from the server, which then answers with a stream."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    account = tmp_path / "account.json"
    fields = {"client_email": "a@b.c", "private_key": pem, "token_uri": f"{server.url}/token"}
    account.write_text(json.dumps({"type": "service_account", "project_id": "its-own", **fields}))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(account))

    async def handler(request: Request) -> Response:
        if request.url.path == "/token":
            return JSONResponse({"access_token": "token-of-the-test", "expires_in": 3600, "token_type": "Bearer"})
        return Response("".join(map(data, ANSWER)), 200, {"content-type": "text/event-stream"})

    server.handler = handler
    yield server
    with warnings.catch_warnings():
        # Google's library leaves its connection to the collector.
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


async def test_vertex_is_asked_with_a_token_of_the_account(vertex_account: Counterpart) -> None:
    cloud = Cloud("vertex", "europe-west1", "herd", f"{vertex_account.url}/v1")
    provider = AnthropicProvider(cloud=cloud)
    check(await chunks_of(provider))
    await provider.close()
    assert vertex_account.paths == [
        "/token",
        "/v1/projects/herd/locations/europe-west1/publishers/anthropic/models/m:streamRawPredict",
    ]
    assert vertex_account.headers[1]["authorization"] == "Bearer token-of-the-test"
    body = msgspec.json.decode(vertex_account.bodies[1], type=Json)
    assert "model" not in body
    assert body["anthropic_version"] and body["stream"] is True


async def test_vertex_without_credentials_is_said_and_not_tried_again(
    server: Counterpart, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "nothing.json"))
    provider = AnthropicProvider(cloud=Cloud("vertex", "europe-west1", "herd", f"{server.url}/v1"))
    with pytest.raises(ProviderRefused, match="no access to vertex"):
        await chunks_of(provider)
    await provider.close()


async def test_vertex_errors_are_ours(vertex_account: Counterpart) -> None:
    granted = vertex_account.handler

    async def handler(request: Request) -> Response:
        busy = {"error": {"code": 429, "message": "Quota exceeded", "status": "RESOURCE_EXHAUSTED"}}
        return await granted(request) if request.url.path == "/token" else JSONResponse(busy, 429)

    vertex_account.handler = handler
    provider = AnthropicProvider(cloud=Cloud("vertex", "europe-west1", "herd", f"{vertex_account.url}/v1"))
    with pytest.raises(ProviderRateLimited, match="Quota exceeded"):
        await chunks_of(provider)
    await provider.close()


# ----------------------------------------------------------------------------------------------- settings


async def test_the_cloud_is_chosen_in_corral_toml(server: Counterpart, tmp_path: Path) -> None:
    file = tmp_path / "corral.toml"
    file.write_text(
        f'[anthropic]\nplatform = "bedrock"\nregion = "eu-north-1"\nplatform_url = "{server.url}"\n'
        '[[models]]\npattern = "claude-*"\nprovider = "anthropic"\nmodel = "eu.anthropic.claude-opus-5-v1:0"\n'
    )
    server.answers(b"".join(map(chunk, ANSWER)), kind=AMAZON)
    provider = make_provider(load(environ={"HOME": str(tmp_path)}, file=file))
    with anyio.fail_after(60):
        check([chunk async for chunk in provider.stream(msgspec.structs.replace(REQUEST, model="claude-opus-5"))])
    await provider.close()
    assert server.paths == ["/model/eu.anthropic.claude-opus-5-v1:0/invoke-with-response-stream"]


@pytest.mark.parametrize("name", ["bedrock", "vertex"])
def test_a_cloud_whose_library_is_missing_says_what_to_install(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    cloud = cast(CloudName, name)
    monkeypatch.setitem(cast("dict[CloudName, tuple[str, ...]]", LIBRARIES), cloud, ("a_library.nobody.has",))
    with pytest.raises(MachineUnfit, match=rf"corral\[{name}\]"):
        AnthropicProvider(cloud=Cloud(cloud, "somewhere"))
