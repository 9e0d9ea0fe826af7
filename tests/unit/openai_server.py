"""A real HTTP server for the tests of the OpenAI wires: it answers every path with hand-written bytes."""

from __future__ import annotations

import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable

import anyio
import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from corral.domain.content import TextBlock
from corral.domain.inference import ModelChunk, ModelRequest, ModelResponse, PromptMessage
from corral.providers.openai import OpenAIProvider

KEY = "sk-secret-of-the-test"
Handler = Callable[[Request], Awaitable[Response]]
Json = dict[str, object]

REQUEST = ModelRequest(
    model="m",
    system="",
    messages=(PromptMessage(role="user", content=(TextBlock(text="hi"),)),),
    tools=(),
    output_tokens_max=100,
)


class Counterpart:
    """A model server in a thread; `handler` decides what it answers next."""

    def __init__(self) -> None:
        self.handler: Handler = _not_set
        self.paths: list[str] = []
        self.bodies: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/v1"
        app = Starlette(routes=[Route("/{path:path}", self._answer, methods=["POST"])])
        config = uvicorn.Config(
            app, lifespan="off", log_level="critical", date_header=False, timeout_graceful_shutdown=1
        )
        self._server = uvicorn.Server(config)
        self._os_thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]})
        self._os_thread.start()

    def stop(self) -> None:
        self._server.should_exit = True
        self._os_thread.join(5)
        self._socket.close()
        assert not self._os_thread.is_alive()

    def forget(self) -> None:
        self.handler = _not_set
        for seen in (self.paths, self.bodies, self.headers):
            seen.clear()

    def answers(self, body: str | bytes, *, status: int = 200, kind: str = "text/event-stream", **headers: str) -> None:
        names = {name.replace("_", "-"): value for name, value in headers.items()}

        async def handler(_: Request) -> Response:
            return Response(body, status, {"content-type": kind, **names})

        self.handler = handler

    async def _answer(self, request: Request) -> Response:
        self.paths.append(request.url.path)
        self.bodies.append(await request.body())
        self.headers.append(dict(request.headers))
        return await self.handler(request)


async def _not_set(_: Request) -> Response:
    return Response("the test has set no handler", 500)


class Hanging:
    """A handler that sends a beginning and then nothing, and notices when the client goes."""

    def __init__(self, beginning: str | bytes, kind: str = "text/event-stream") -> None:
        self.beginning = beginning
        self.kind = kind
        self.gone = threading.Event()

    async def __call__(self, _: Request) -> Response:
        return StreamingResponse(self._body(), media_type=self.kind)

    async def _body(self) -> AsyncIterator[str | bytes]:
        try:
            yield self.beginning
            await anyio.sleep_forever()
        finally:
            self.gone.set()


def data(event: object) -> str:
    """One event as both wires send it."""
    name = f"event: {event['type']}\n" if isinstance(event, dict) and "type" in event else ""
    return f"{name}data: {msgspec.json.encode(event).decode()}\n\n"


def chat_chunk(reason: str | None = None, **delta: object) -> Json:
    return {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}


def chat_call(index: int | None = None, call_id: str | None = None, **function: object) -> Json:
    call: Json = {"function": function}
    if index is not None:
        call["index"] = index
    if call_id is not None:
        call["id"] = call_id
    return chat_chunk(tool_calls=[call])


def chat(*chunks: Json, usage: Json | None = None, done: bool = True) -> str:
    """A whole stream of the Chat wire."""
    last: list[Json] = [] if usage is None else [{"object": "chat.completion.chunk", "choices": [], "usage": usage}]
    return "".join(map(data, [*chunks, *last])) + ("data: [DONE]\n\n" if done else "")


CHAT_HELLO = (chat_chunk(role="assistant", content=""), chat_chunk(content="Hel"), chat_chunk(content="lo"))


def event(kind: str, **fields: object) -> Json:
    return {"type": f"response.{kind}", **fields}


def added(index: int, **item: object) -> Json:
    return event("output_item.added", output_index=index, item=item)


def done(index: int, **item: object) -> Json:
    return event("output_item.done", output_index=index, item=item)


def text(index: int, words: str, part: int = 0) -> Json:
    return event("output_text.delta", output_index=index, content_index=part, delta=words)


def responses(*events: Json, **response: object) -> str:
    """A whole stream of the Responses wire."""
    created = event("created", response={"status": "in_progress"})
    return "".join(map(data, [created, *events, event("completed", response={"status": "completed", **response})]))


RESPONSES_HELLO = (added(0, type="message", id="msg_1"), text(0, "Hel"), text(0, "lo"))


async def chunks_of(provider: OpenAIProvider, request: ModelRequest = REQUEST) -> list[ModelChunk]:
    with anyio.fail_after(20):
        return [chunk async for chunk in provider.stream(request)]


async def response_of(provider: OpenAIProvider, request: ModelRequest = REQUEST) -> ModelResponse:
    last = (await chunks_of(provider, request))[-1]
    assert isinstance(last, ModelResponse)
    return last
