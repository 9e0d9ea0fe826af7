"""Where requests to servers that others name may go: addresses are judged when the connection is made."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import anyio
import httpx2
import pytest

from corral.config_sections import McpSettings
from corral.outbound.transport import OutboundTransport
from corral.vaults.probing import Prober

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"


class Host:
    """Answers each connection once, with what it is told."""

    def __init__(self, answer: bytes) -> None:
        self.connections = 0
        self._answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            with connection:
                connection.recv(65_536)
                connection.sendall(self._answer)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


@pytest.fixture
def host() -> Iterator[Host]:
    running = Host(ANSWER)
    yield running
    running.close()


@pytest.mark.anyio
async def test_a_name_that_leads_to_a_denied_address_is_refused(host: Host) -> None:
    async with httpx2.AsyncClient(transport=OutboundTransport(McpSettings(denied=("127.0.0.0/8", "::1")))) as client:
        for name in ("localhost", "127.0.0.1", "[::ffff:127.0.0.1]"):
            with pytest.raises(httpx2.ConnectError, match="denied"):
                await client.get(f"http://{name}:{host.port}/")
    assert host.connections == 0


@pytest.mark.anyio
async def test_a_name_is_tried_at_each_address_that_is_not_denied(host: Host) -> None:
    async with httpx2.AsyncClient(transport=OutboundTransport(McpSettings(denied=("::1", "10.0.0.0/8")))) as client:
        assert (await client.get(f"http://localhost:{host.port}/")).text == "hello"


@pytest.mark.anyio
async def test_token_endpoints_may_not_be_there_either(host: Host) -> None:
    prober = Prober(10.0, McpSettings(denied=("127.0.0.0/8",)))
    with pytest.raises(httpx2.ConnectError):
        await prober.post(f"http://127.0.0.1:{host.port}/token", headers={}, form={"refresh_token": "x"})
    await prober.close()
    assert host.connections == 0


@pytest.mark.anyio
async def test_an_answer_that_never_ends_is_cut_in_time() -> None:
    running = Host(b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\nsome")
    listener = socket.create_server(("127.0.0.1", 0))
    prober = Prober(0.5, McpSettings(denied=()))
    with pytest.raises(httpx2.ReadTimeout):
        await prober.post(f"http://127.0.0.1:{listener.getsockname()[1]}/", headers={})
    with pytest.raises(httpx2.RemoteProtocolError):
        await prober.post(f"http://127.0.0.1:{running.port}/", headers={})
    await prober.close()
    listener.close()
    running.close()


@pytest.mark.anyio
async def test_as_many_requests_at_once_as_an_agent_makes_calls() -> None:
    count = 32
    together = threading.Barrier(count)
    listener = socket.create_server(("127.0.0.1", 0), backlog=count)

    def answer(connection: socket.socket) -> None:
        with connection:
            connection.recv(65_536)
            together.wait(30)
            connection.sendall(ANSWER)

    def serve() -> None:
        threads: list[threading.Thread] = []
        for _ in range(count):
            threads.append(threading.Thread(target=answer, args=(listener.accept()[0],)))
            threads[-1].start()
        for thread in threads:
            thread.join()

    serving = threading.Thread(target=serve)
    serving.start()
    said: list[str] = []

    async def get(client: httpx2.AsyncClient) -> None:
        said.append((await client.get(f"http://127.0.0.1:{listener.getsockname()[1]}/")).text)

    async with (
        httpx2.AsyncClient(transport=OutboundTransport(McpSettings(denied=())), timeout=30) as client,
        anyio.create_task_group() as tg,
    ):
        for _ in range(count):
            tg.start_soon(get, client)
    serving.join()
    listener.close()
    assert said == ["hello"] * count


@pytest.mark.anyio
async def test_an_answer_of_many_lines_is_looked_at_once() -> None:
    """Looking at all of it whenever some has come would keep the whole server busy."""
    lines = b"".join(b"data: %d\n" % number for number in range(100_000)) + b"{}"
    running = Host(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(lines) + lines)
    prober = Prober(30.0, McpSettings(denied=()))
    looked_at: list[bytes] = []

    def enough(body: bytes) -> bool:
        looked_at.append(body)
        return False

    reply = await prober.post(f"http://127.0.0.1:{running.port}/", headers={}, enough=enough)
    assert reply.body == lines
    assert b"".join(looked_at) == lines.removesuffix(b"{}")
    await prober.close()
    running.close()
