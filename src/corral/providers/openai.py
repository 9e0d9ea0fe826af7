"""OpenAI's models, or any server that speaks one of its two wires: vLLM, Ollama, llama.cpp and many more.

The official SDK brings transport, authentication and the splitting of the stream; body and answer are ours, for each
wire a pair of files: `openai_chat.py` and `openai_chat_answer.py`, `openai_responses.py` and
`openai_responses_answer.py`. Nothing is retried here: the harness owns retries. The SDK takes seconds to import, so
that happens in a thread, on the first request.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple, cast
from urllib.parse import urlsplit

import anyio
import anyio.to_thread

from corral.config_sections import OpenAIWire, SystemRole
from corral.domain.inference import ModelChunk, ModelRequest
from corral.errors import MachineUnfit, ProviderError, ProviderRefused, ProviderUnreachable
from corral.providers.messages_body import Bounded, cut_at_the_end, instead_of_events, shorten_error
from corral.providers.messages_errors import clean, unreachable
from corral.providers.openai_answer import Answer, ServerFault
from corral.providers.openai_chat import encode_chat
from corral.providers.openai_chat_answer import ChatAnswer
from corral.providers.openai_errors import http_error, stream_error
from corral.providers.openai_responses import encode_responses
from corral.providers.openai_responses_answer import ResponsesAnswer

if TYPE_CHECKING:
    import httpx2
    from openai import AsyncOpenAI, AsyncStream

BASE_URL = "https://api.openai.com/v1"
NOT_SEALED = re.compile(r"encrypted|\binclude\b", re.I)
USAGE_SECONDS_MAX = 5.0
"""How long a finished answer waits for its usage, and for the end of the stream."""


class Question(NamedTuple):
    """A request in the words of a wire, and what its answer is read into."""

    path: str
    body: bytes
    answer: Answer
    answer_bytes_max: int


class OpenAIProvider:
    """Asks the server at `base_url`, which ends in `/v1`, as for OpenAI's own SDKs.

    One instance serves any number of requests at once.
    """

    def __init__(
        self,
        *,
        api_key: str | None = None,
        base_url: str | None = None,
        wire: OpenAIWire | None = None,
        system_role: SystemRole | None = None,
        idle_seconds: float = 600.0,
        connect_seconds: float = 10.0,
    ) -> None:
        """Raises `MachineUnfit` when OpenAI itself is to be asked and there is no key."""
        if not (api_key or base_url):
            raise MachineUnfit("There is no key for OpenAI. Set OPENAI_API_KEY, or OPENAI_BASE_URL.")
        self._base_url = base_url or BASE_URL
        self._official = (urlsplit(self._base_url).hostname or "").endswith("api.openai.com")
        self._wire: OpenAIWire = wire or ("responses" if self._official else "chat")
        self._system_role: SystemRole = system_role or ("system" if self._official else "user")
        self._unsealed: set[str] = set()
        """Models that have refused to give their reasoning away, mostly because they have none."""
        self._api_key = api_key
        self._idle_seconds = idle_seconds
        self._connect_seconds = connect_seconds
        self._client: AsyncOpenAI | None = None
        self._secrets = [api_key] if api_key and len(api_key) >= 8 else []

    async def stream(self, request: ModelRequest) -> AsyncGenerator[ModelChunk]:
        """Ask the model; see `Provider.stream`. `speed` means something to OpenAI itself only."""
        try:
            async with aclosing(self._answered(self.question(request))) as chunks:
                async for chunk in chunks:
                    yield chunk
            return
        except ProviderRefused as error:
            if self._wire == "chat" or request.model in self._unsealed or not NOT_SEALED.search(error.message):
                raise
        self._unsealed.add(request.model)
        async with aclosing(self._answered(self.question(request))) as chunks:
            async for chunk in chunks:
                yield chunk

    async def _answered(self, question: Question) -> AsyncGenerator[ModelChunk]:
        answer = question.answer
        try:
            async with self._exchange(question) as events:
                async for event in events:
                    for chunk in answer.read(event):
                        yield chunk
                    if answer.complete:
                        break
                await _read_rest(answer, events)
        except ProviderError:
            # A stream that breaks behind a whole answer has cost the usage, and is not worth a second answer.
            if not answer.complete:
                raise
        if not answer.complete:
            raise ProviderUnreachable("The model server ended its answer in the middle.")
        yield answer.response()

    async def close(self) -> None:
        """Drop all connections. Idempotent."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    def question(self, request: ModelRequest) -> Question:
        """The request in the words of this provider's wire."""
        most = request.answer_bytes_max
        if self._wire == "chat":
            body = encode_chat(request, official=self._official, later_system=self._system_role)
            return Question("/chat/completions", body, ChatAnswer(), most)
        body = encode_responses(
            request,
            official=self._official,
            sealed=request.model not in self._unsealed,
            later_system=self._system_role,
        )
        return Question("/responses", body, ResponsesAnswer(), most)

    @asynccontextmanager
    async def _exchange(self, question: Question) -> AsyncGenerator[AsyncGenerator[object]]:
        """The server's events. Leaving closes the connection; what the SDK or the transport raise becomes ours."""
        openai, transport = await anyio.to_thread.run_sync(_import_sdk)
        try:
            stream = await self._send(openai, question)
            async with cut_at_the_end(stream):
                await self._expect_events(stream)
                stream.response = cast("httpx2.Response", Bounded(stream.response, question.answer_bytes_max))
                async with aclosing(cast("AsyncGenerator[object]", aiter(stream))) as events:
                    yield events
        except openai.APIStatusError as error:
            raise http_error(error, self._secrets) from error
        except (openai.APIConnectionError, transport.HTTPError, transport.StreamError, transport.InvalidURL) as error:
            raise unreachable(error, self._secrets) from error
        except (openai.APIError, ServerFault) as error:
            raise stream_error(error.body, self._secrets) from error
        except openai.OpenAIError as error:
            raise unreachable(error, self._secrets) from error
        except ValueError as error:
            words = f"The model server's answer cannot be read: {error}"
            raise ProviderUnreachable(clean(words, self._secrets)) from error

    async def _send(self, openai: ModuleType, question: Question) -> AsyncStream[object]:
        if self._client is None:
            self._client = self._connect(openai)
        return await self._client.post(
            question.path,
            content=question.body,
            cast_to=object,
            options={"headers": {"content-type": "application/json"}},
            stream=True,
            stream_cls=cast("type[AsyncStream[object]]", openai.AsyncStream[object]),
        )

    def _connect(self, openai: ModuleType) -> AsyncOpenAI:
        timeout = openai.Timeout(self._idle_seconds, connect=self._connect_seconds)
        return openai.AsyncOpenAI(
            # Without one the SDK would look for a key in the environment, and refuse when there is none.
            api_key=self._api_key or "none",
            base_url=self._base_url,
            max_retries=0,
            timeout=timeout,
            http_client=openai.DefaultAsyncHttpxClient(timeout=timeout, event_hooks={"response": [shorten_error]}),
        )

    async def _expect_events(self, stream: AsyncStream[object]) -> None:
        instead = await instead_of_events(stream.response)
        if instead is None:
            return
        if instead.value is not None and ("error" in instead.value or instead.value.get("object") == "error"):
            raise stream_error(instead.value, self._secrets)
        raise ProviderUnreachable(clean(str(instead), self._secrets))


async def _read_rest(answer: Answer, events: AsyncGenerator[object]) -> None:
    """To the end, for the usage and because a connection that was read to its end can be used again."""
    with anyio.move_on_after(USAGE_SECONDS_MAX):
        async for event in events:
            list(answer.read(event))


def _import_sdk() -> tuple[ModuleType, ModuleType]:
    import httpx2
    import openai

    return openai, httpx2
