"""An MCP server that does what it should not: wherever a test says so, and properly everywhere else."""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Awaitable, Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import anyio
from starlette.types import Receive, Scope, Send

from tests.e2e.mcp_host import listening

Request: TypeAlias = Mapping[str, Any]
Oddity: TypeAlias = Callable[[Request, Receive, Send], Awaitable[None]]

HELLO: dict[str, object] = {
    "protocolVersion": "2025-06-18",
    "capabilities": {"tools": {}},
    "serverInfo": {"name": "odd", "version": "1"},
}
METHOD_NOT_FOUND = -32601


def tool(name: str, **fields: object) -> dict[str, object]:
    """A tool as servers list them."""
    return {"name": name, "description": "A tool.", "inputSchema": {"type": "object"}, **fields}


class OddServer:
    """Answers `initialize`, `tools/list` and `tools/call`; `odd` holds what does so instead, by method."""

    def __init__(self) -> None:
        self.port = 0
        self.odd: dict[str, Oddity] = {}
        self.tools: list[dict[str, object]] = [tool("good")]
        self.seen: list[tuple[str, str]] = []
        """Method and authorization of each request."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/mcp"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        token = dict(scope["headers"]).get(b"authorization", b"").decode()
        if scope["method"] != "POST":
            return await answer(send, b"", status=405)
        request: Request = json.loads(await _body(receive))
        self.seen.append((request["method"], token))
        odd = self.odd.get(request["method"])
        if odd is not None:
            return await odd(request, receive, send)
        results: dict[str, object] = {
            "initialize": HELLO,
            "tools/list": {"tools": self.tools},
            "tools/call": {"content": [{"type": "text", "text": "well done"}]},
        }
        if "id" not in request:
            return await answer(send, b"", status=202)
        result = results.get(request["method"])
        if result is None:
            error = {"code": METHOD_NOT_FOUND, "message": "unknown method"}
            return await answer(send, _encoded(request, error=error))
        await answer(send, _encoded(request, result=result))


def _encoded(request: Request, **fields: object) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": request["id"], **fields}).encode()


async def _body(receive: Receive) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    return body


async def answer(
    send: Send,
    body: bytes,
    *,
    status: int = 200,
    kind: str = "application/json",
    headers: Mapping[str, str] | None = None,
) -> None:
    """An answer in one piece."""
    every = {"content-type": kind, "content-length": str(len(body)), **(headers or {})}
    raw = [(name.encode(), value.encode()) for name, value in every.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


def saying(body: bytes, **how: Any) -> Oddity:
    """Says this, whatever was asked."""

    async def say(request: Request, receive: Receive, send: Send) -> None:
        await answer(send, body, **how)

    return say


def resulting(result: object) -> Oddity:
    """A proper answer with an odd result."""

    async def say(request: Request, receive: Receive, send: Send) -> None:
        await answer(send, _encoded(request, result=result))

    return say


def flowing(kind: str, piece: bytes, count: int | None = None) -> Oddity:
    """Says the same over and over: so many times, or until nobody listens."""

    async def flow(request: Request, receive: Receive, send: Send) -> None:
        left = count
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind.encode())]})
        while left is None or left > 0:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            if left is not None:
                left -= 1
            elif await _gone(receive):
                return
        await send({"type": "http.response.body", "body": b""})

    return flow


async def silent(request: Request, receive: Receive, send: Send) -> None:
    """Never answers."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _gone(receive: Receive) -> bool:
    with anyio.move_on_after(0.01):
        return (await receive())["type"] == "http.disconnect"
    return False


@contextmanager
def odd_server() -> Generator[OddServer]:
    """Such a server, running."""
    server = OddServer()
    with listening(server, lifespan=False) as port:
        server.port = port
        yield server


@contextmanager
def slamming() -> Generator[str]:
    """The URL of a port where connections are made and at once reset."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()

        def slam() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                connection.close()

        thread = threading.Thread(target=slam, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/mcp"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
