"""A real model on this machine calls a tool and then answers. Skipped where its files are absent: they are large."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from importlib.util import find_spec

import anyio
import msgspec
import pytest

from corral.config import load
from corral.config_sections import LocalModelSettings
from corral.domain.content import TextBlock, ToolResultBlock, ToolUseBlock
from corral.domain.inference import ModelRequest, ModelResponse, PromptMessage, TextDelta
from corral.errors import ContextOverflow, ProviderRefused
from corral.providers.local import LocalProvider
from corral.providers.local_file import cached_file
from corral.tools import TOOLS

SETTINGS = load(overrides={"models": ()})
HAVE_FILE = SETTINGS.local_model.file is not None or cached_file(SETTINGS.cache_dir) is not None

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.local_model,
    pytest.mark.skipif(find_spec("xllamacpp") is None, reason="llama.cpp is not installed (corral[local])"),
    pytest.mark.skipif(not HAVE_FILE, reason="the local model has not been fetched"),
]

OFFERED = ("bash", "read", "write")
"""Half of the tools: what the model must read before it answers is most of the time that this takes."""
TASK = (
    "Step 1: write fib.py, a Python program with a loop that prints the first 20 Fibonacci numbers, starting with 0, "
    "one per line. Step 2: run python3 fib.py > fibonacci.txt with bash."
)


@pytest.fixture(scope="module")
async def provider(anyio_backend: str) -> AsyncGenerator[LocalProvider]:
    provider = LocalProvider(SETTINGS.local_model, SETTINGS.cache_dir)
    yield provider
    await provider.close()
    await provider.close()


def ask(*messages: PromptMessage) -> ModelRequest:
    return ModelRequest(
        model="local",
        system="You are a helpful coding assistant.",
        messages=messages,
        tools=tuple(TOOLS[name].spec for name in OFFERED),
        output_tokens_max=512,
    )


def user(text: str) -> PromptMessage:
    return PromptMessage(role="user", content=(TextBlock(text=text),))


async def answer(provider: LocalProvider, request: ModelRequest) -> ModelResponse:
    with anyio.fail_after(300):
        chunks = [chunk async for chunk in provider.stream(request)]
    last = chunks[-1]
    assert isinstance(last, ModelResponse)
    return last


async def test_the_model_writes_runs_and_reports(provider: LocalProvider) -> None:
    messages = [user(TASK)]
    calls: list[ToolUseBlock] = []
    for result in ("wrote 99 bytes to fib.py", "(no output)"):
        response = await answer(provider, ask(*messages))
        assert response.stop_reason == "tool_use"
        call = response.content[-1]
        assert isinstance(call, ToolUseBlock)
        calls.append(call)
        block = ToolResultBlock(tool_use_id=call.id, content=(TextBlock(text=result),))
        messages += [
            PromptMessage(role="assistant", content=response.content),
            PromptMessage(role="user", content=(block,)),
        ]
    assert [call.name for call in calls] == ["write", "bash"]
    assert "fibonacci.txt" in str(calls[1].input)
    last = await answer(provider, ask(*messages))
    assert last.stop_reason == "end_turn"
    assert last.usage.output_tokens > 0


async def test_closing_early_leaves_the_model_free_for_the_next(provider: LocalProvider) -> None:
    with anyio.fail_after(300):
        # Without tools, whose descriptions take the model long to read.
        chunks = provider.stream(msgspec.structs.replace(ask(user("Tell me a long story.")), tools=()))
        async for chunk in chunks:
            if isinstance(chunk, TextDelta):
                break
        await chunks.aclose()
        assert (await answer(provider, msgspec.structs.replace(ask(user("Say hello.")), tools=()))).content


async def test_a_prompt_that_does_not_fit_is_an_overflow(provider: LocalProvider) -> None:
    with pytest.raises(ContextOverflow):
        await answer(provider, ask(user("word " * 20_000)))


async def test_a_file_that_is_no_model_is_refused(tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("model") / "broken.gguf"
    file.write_bytes(b"GGUF" + bytes(20))
    provider = LocalProvider(LocalModelSettings(file=str(file)), SETTINGS.cache_dir)
    with pytest.raises(ProviderRefused, match="cannot be run"):
        await answer(provider, ask(user("Hello?")))
    await provider.close()
