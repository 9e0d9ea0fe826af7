"""Whatever LiteLLM reaches: it takes OpenAI's Chat requests and answers in OpenAI's chunks, whoever is behind it.

So the request is that of `openai_chat.py`, the answer is read by `openai_chat_answer.py`, and the errors, which LiteLLM
derives from those of OpenAI's SDK, by `openai_errors.py`. The model id is LiteLLM's own, like `mistral/<a model>`, and
keys are found where LiteLLM looks for them, in the environment. Retries are the harness's, not LiteLLM's. The library
takes seconds to import; that happens in a thread, on the first request.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Protocol, cast

import anyio
import anyio.to_thread
import msgspec

from corral.config import set_default
from corral.domain.inference import ModelChunk, ModelRequest
from corral.errors import MachineUnfit, ProviderError, ProviderUnreachable
from corral.providers.messages_errors import clean, unreachable
from corral.providers.openai_answer import ServerFault
from corral.providers.openai_chat import encode_chat
from corral.providers.openai_chat_answer import ChatAnswer
from corral.providers.openai_errors import http_error, stream_error

if TYPE_CHECKING:
    from openai import APIError, APIStatusError

CLOSE_SECONDS_MAX = 2.0
CAUSES_MAX = 10


class Chunk(Protocol):
    """One of LiteLLM's chunks."""

    def model_dump(self, *, exclude_none: bool) -> dict[str, object]:
        """The chunk as data."""
        ...


class Chunks(Protocol):
    """LiteLLM's stream, around the stream of whichever client it used."""

    completion_stream: object

    def __aiter__(self) -> Chunks: ...

    async def __anext__(self) -> Chunk: ...


class LiteLLMProvider:
    """Asks through LiteLLM. One instance serves any number of requests at once."""

    def __init__(self, *, api_base: str | None = None, api_key: str | None = None, idle_seconds: float = 600.0) -> None:
        """Raises `MachineUnfit` when LiteLLM is not installed."""
        if find_spec("litellm") is None:
            raise MachineUnfit("A route goes through LiteLLM, which needs `pip install 'corral[litellm]'`.")
        self._place = {name: value for name, value in (("api_base", api_base), ("api_key", api_key)) if value}
        self._idle_seconds = idle_seconds
        self._secrets = [api_key] if api_key and len(api_key) >= 8 else []

    async def stream(self, request: ModelRequest) -> AsyncGenerator[ModelChunk]:
        """Ask the model; see `Provider.stream`. `speed` means nothing here."""
        answer = ChatAnswer()
        async with self._exchange(request) as chunks:
            async for chunk in chunks:
                for each in answer.read(chunk.model_dump(exclude_none=True)):
                    yield each
        if not answer.complete:
            raise ProviderUnreachable("The model server ended its answer in the middle.")
        yield answer.response()

    async def close(self) -> None:
        """Nothing is kept open between requests that is ours to close."""

    @asynccontextmanager
    async def _exchange(self, request: ModelRequest) -> AsyncGenerator[Chunks]:
        litellm, openai, transport = await anyio.to_thread.run_sync(_import_library)
        try:
            chunks = await self._send(litellm, request)
            try:
                yield chunks
            finally:
                # A cancelled reader must still cut the connection, or the server goes on generating.
                with anyio.move_on_after(CLOSE_SECONDS_MAX, shield=True):
                    await _hang_up(chunks.completion_stream)
        except ServerFault as error:
            raise stream_error(error.body, self._secrets) from error
        except openai.APIError as error:
            raise self._failure(openai, error) from error
        except (transport.HTTPError, transport.StreamError, transport.InvalidURL) as error:
            raise unreachable(error, self._secrets) from error
        except (openai.OpenAIError, ValueError) as error:
            words = f"The model server's answer cannot be read: {error}"
            raise ProviderUnreachable(clean(words, self._secrets)) from error

    def _failure(self, openai: ModuleType, error: APIError) -> ProviderError:
        """LiteLLM wraps what it caught, and says less than that did."""
        found = _first_cause(openai, error)
        if isinstance(found, openai.APIStatusError):
            status = cast("APIStatusError", found)
            status.body = status.body or {"message": status.message}
            return http_error(status, self._secrets)
        if isinstance(found, openai.APIConnectionError):
            return unreachable(found, self._secrets)
        return stream_error(found.body or {"message": found.message}, self._secrets)

    async def _send(self, litellm: ModuleType, request: ModelRequest) -> Chunks:
        body = msgspec.json.decode(encode_chat(request, official=False), type=dict[str, object])
        ask = cast("Callable[..., Awaitable[Chunks]]", litellm.acompletion)
        # Parameters that a model does not know, such as an effort, are dropped by LiteLLM instead of refused.
        return await ask(
            **body, **self._place, timeout=self._idle_seconds, num_retries=0, max_retries=0, drop_params=True
        )


def _first_cause(openai: ModuleType, error: APIError) -> APIError:
    """The error of OpenAI's SDK that is behind LiteLLM's, else LiteLLM's own, where another client was at work."""
    cause: BaseException | None = error
    for _ in range(CAUSES_MAX):
        if cause is None:
            break
        if isinstance(cause, openai.APIError) and not type(cause).__module__.startswith("litellm"):
            return cast("APIError", cause)
        cause = getattr(cause, "original_exception", None) or cause.__cause__ or cause.__context__
    return error


async def _hang_up(stream: object) -> None:
    close = getattr(stream, "aclose", None) or getattr(stream, "close", None)
    if close is not None:
        closing = close()
        if isinstance(closing, Awaitable):
            await closing


def _import_library() -> tuple[ModuleType, ModuleType, ModuleType]:
    # Importing it would fetch a list of prices from the network; ours are in `model_prices.json`.
    set_default("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    import httpx2
    import litellm  # pyright: ignore[reportMissingImports]  # an extra that is not in the development environment
    import openai

    return cast(ModuleType, litellm), openai, httpx2
