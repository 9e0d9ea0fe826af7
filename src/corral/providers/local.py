"""A model on this machine, for when there is no key: llama.cpp in a child process, spoken to like any Messages server.

Good for a demonstration and for single, short tasks. Nothing happens until the first request (or `prepare`): then the
model file is fetched (`local_file.py`), its template adjusted (`local_template.py`) and the child started
(`local_server.py`). The child answers one request after the other. If it dies, the next request starts another.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from contextlib import ExitStack, aclosing
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple, cast

import anyio
import anyio.to_thread
import msgspec

from corral.config_sections import LocalModelSettings
from corral.domain.content import (
    DocumentBlock,
    ImageBlock,
    JsonObject,
    PromptBlock,
    TextBlock,
    ToolResultBlock,
    ToolUseBlock,
)
from corral.domain.inference import ModelChunk, ModelRequest, PromptMessage, ToolSpec
from corral.errors import MachineUnfit, ProviderRefused
from corral.providers.local_file import model_file
from corral.providers.local_gguf import chat_template
from corral.providers.local_server import ServerOrder
from corral.providers.local_template import ERROR_PREFIX, adjusted
from corral.providers.messages_request import WireRequest, encode_request
from corral.providers.messages_wire import MessagesClient

STOP_SECONDS_MAX = 5.0
LOG_BYTES_SHOWN = 500


class LocalProvider:
    """Runs the model of `settings` in a child process."""

    def __init__(self, settings: LocalModelSettings, cache_dir: Path, *, idle_seconds: float = 600.0) -> None:
        self._settings = settings
        self._cache_dir = cache_dir
        self._idle_seconds = idle_seconds
        self._starting = anyio.Lock()
        self._running: _Running | None = None

    async def prepare(self) -> None:
        """Fetch the model and start it, so that the first request need not wait. Raises `MachineUnfit`."""
        await self._client()

    async def stream(self, request: ModelRequest) -> AsyncGenerator[ModelChunk]:
        """Ask the model; see `Provider.stream`. Effort and speed mean nothing here."""
        try:
            client = await self._client()
        except MachineUnfit as error:
            raise ProviderRefused(error.message) from error
        async with aclosing(client.stream(wire_request(request, self._settings))) as chunks:
            async for chunk in chunks:
                yield chunk

    async def close(self) -> None:
        """End the child process. Idempotent."""
        async with self._starting:
            await self._stop()

    async def _client(self) -> MessagesClient:
        async with self._starting:
            if self._running is None or self._running.child.process.poll() is not None:
                await self._stop()
                self._running = await self._start()
            return self._running.client

    async def _start(self) -> _Running:
        order = await anyio.to_thread.run_sync(self._order, abandon_on_cancel=True)
        seconds = self._settings.start_seconds_max
        with ExitStack() as on_failure:
            child = _Child(order)
            on_failure.callback(child.stop)
            try:
                with anyio.fail_after(seconds):
                    url = await anyio.to_thread.run_sync(child.wait_for_url, abandon_on_cancel=True)
            except TimeoutError as error:
                raise MachineUnfit(f"The local model did not load within {seconds:.0f} seconds.") from error
            on_failure.pop_all()
        client = MessagesClient(base_url=url, api_key=order.key, idle_seconds=self._idle_seconds, proxies=False)
        return _Running(child, client)

    async def _stop(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            await running.client.close()
            await anyio.to_thread.run_sync(running.child.stop)

    def _order(self) -> ServerOrder:
        if find_spec("xllamacpp") is None:
            raise MachineUnfit("The local model needs `pip install 'corral[local]'`, or set ANTHROPIC_API_KEY.")
        file = model_file(self._settings.file, self._cache_dir)
        return ServerOrder(
            file=str(file),
            template=adjusted(chat_template(file)),
            key=secrets.token_hex(16),
            context_tokens=self._settings.context_tokens,
            threads=self._settings.threads or _cores(),
        )


def _cores() -> int:
    """The cores this process may use: in a container fewer than the machine has, and more threads would crawl."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _Running(NamedTuple):
    child: _Child
    client: MessagesClient


class _Child:
    """The process of `local_server.py`. It ends when this one ends, because its standard input closes then."""

    def __init__(self, order: ServerOrder) -> None:
        self._log = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "corral.providers.local_server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            # Ctrl-C in the terminal is for the server; it ends this process in its own time.
            start_new_session=True,
        )
        self._order = order

    def wait_for_url(self) -> str:
        """Where the model answers. Raises `MachineUnfit` when the process ends instead."""
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(msgspec.json.encode(self._order) + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass
        url = self.process.stdout.readline().decode().strip()
        if not url:
            raise MachineUnfit(f"The local model cannot be run: {self._last_words()}")
        return url

    def stop(self) -> None:
        """End the process and wait for it."""
        self.process.kill()
        self.process.wait(STOP_SECONDS_MAX)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        self._log.close()

    def _last_words(self) -> str:
        self._log.seek(max(0, self._log.seek(0, os.SEEK_END) - LOG_BYTES_SHOWN))
        return " ".join(self._log.read().decode(errors="replace").split()) or "it ended without a word"


def wire_request(request: ModelRequest, settings: LocalModelSettings) -> WireRequest:
    """The request as a small model can take it: plain text, few parameters, no chance, a short answer."""
    request = msgspec.structs.replace(
        request,
        messages=tuple(map(_plain_message, request.messages)),
        # What it does for the second time it would do for ever; without tools it can only answer.
        tools=() if repeats(request.messages) else tuple(map(_short_tool, request.tools)),
        output_tokens_max=min(request.output_tokens_max, settings.output_tokens_max),
    )
    return WireRequest(encode_request(request, extras={"temperature": 0}), {}, request.answer_bytes_max)


def _short_tool(tool: ToolSpec) -> ToolSpec:
    """Small models fill in every optional parameter they are shown, with nonsense; show the required ones."""
    schema = tool.input_schema
    properties = schema.get("properties")
    if not isinstance(properties, Mapping) or not properties:
        return tool
    known = cast("Mapping[str, object]", properties)
    required = schema.get("required") or list(known)[:1]
    kept = {name: known[name] for name in known if name in cast("list[str]", required)}
    return msgspec.structs.replace(tool, input_schema={**schema, "properties": kept, "required": list(kept)})


def _plain_message(message: PromptMessage) -> PromptMessage:
    return msgspec.structs.replace(message, content=tuple(_plain_blocks(message.content)))


def _plain_blocks(blocks: tuple[PromptBlock, ...]) -> Generator[PromptBlock]:
    for block in blocks:
        if isinstance(block, ImageBlock):
            yield TextBlock(text="[An image, which this model cannot see.]")
        elif isinstance(block, DocumentBlock):
            yield TextBlock(text="[A document, which this model cannot read.]")
        elif isinstance(block, ToolResultBlock):
            yield _plain_result(block)
        else:
            yield block


def _plain_result(result: ToolResultBlock) -> ToolResultBlock:
    """llama.cpp does not tell the model that a result is an error, so its text has to."""
    content = tuple(_plain_blocks(result.content))
    texts = [block.text for block in content if isinstance(block, TextBlock)]
    text = "\n".join(texts) or "(no output)"
    if result.is_error:
        text = f"{ERROR_PREFIX}{text}"
    return msgspec.structs.replace(result, content=(TextBlock(text=text),))


def repeats(messages: Sequence[PromptMessage]) -> bool:
    """Whether the latest tool calls were all made before, in the same turn."""
    made: list[tuple[str, JsonObject]] = []
    latest: list[tuple[str, JsonObject]] = []
    for message in messages:
        if message.role == "user" and any(isinstance(block, TextBlock) for block in message.content):
            made, latest = [], []
        elif message.role == "assistant":
            made += latest
            latest = [(block.name, block.input) for block in message.content if isinstance(block, ToolUseBlock)]
    return bool(latest) and all(call in made for call in latest)
