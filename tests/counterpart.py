"""Real HTTP servers in a thread, for tests of whatever talks to model servers."""

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
from starlette.routing import BaseRoute, Route

from corral.domain.content import TextBlock
from corral.domain.inference import ModelRequest, PromptMessage

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


class ServerThread:
    """These routes at `url`, until it is stopped."""

    def __init__(self, *routes: BaseRoute) -> None:
        # The protocol is named because asyncio turns Nagle's delay off only for sockets that name it.
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._socket.bind(("127.0.0.1", 0))
        self._socket.listen()
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        config = uvicorn.Config(
            Starlette(routes=routes),
            lifespan="off",
            log_level="critical",
            date_header=False,
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
        self._os_thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]})
        self._os_thread.start()

    def stop(self) -> None:
        self._server.should_exit = True
        self._os_thread.join(30)
        self._socket.close()
        assert not self._os_thread.is_alive()


class Counterpart(ServerThread):
    """A model server that answers every path with hand-written bytes; `handler` decides with which."""

    def __init__(self) -> None:
        self.handler: Handler = _not_set
        self.paths: list[str] = []
        self.bodies: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        super().__init__(Route("/{path:path}", self._answer, methods=["POST"]))

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
