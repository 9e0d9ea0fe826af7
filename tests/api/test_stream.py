"""Event streams, on the wire and through the SDK."""

from __future__ import annotations

import json
import socket
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import anthropic
import anyio
import httpx2
import msgspec
import pytest
from anthropic.types.beta.sessions import BetaManagedAgentsStreamSessionEvents

from corral.domain import event as ev
from corral.domain.content import TextBlock
from corral.domain.ids import new_id
from corral.domain.lifecycle import Append
from corral.interfaces.bus import Frame
from tests.api.live_server import WAIT_SECONDS, Serve, Server, World, headers, message
from tests.api.sdk_types import assert_is


class Wire:
    """A stream as bytes."""

    def __init__(self, response: httpx2.Response) -> None:
        self.response = response
        self._chunks = response.iter_bytes()
        self._buffer = b""

    def block(self) -> str | None:
        """The next block up to an empty line; None at the end."""
        while b"\n\n" not in self._buffer:
            chunk = next(self._chunks, None)
            if chunk is None:
                assert not self._buffer, f"the stream ended within a frame: {self._buffer!r}"
                return None
            self._buffer += chunk
        block, _, self._buffer = self._buffer.partition(b"\n\n")
        return block.decode()

    def frame(self) -> tuple[str, Any]:
        """The next frame's name and data; comments and pings are left out."""
        while (block := self.block()) is not None:
            if not block.startswith((":", "event: ping")):
                name, data = block.split("\n")
                return name.removeprefix("event: "), json.loads(data.removeprefix("data: "))
        raise EOFError


@contextmanager
def opened(server: Server, session: str, query: str = "") -> Generator[Wire]:
    with server.http.stream("GET", f"/v1/sessions/{session}/events/stream{query}") as response:
        assert response.status_code == 200
        yield Wire(response)


def readers(server: Server, session: str) -> int:
    """How many streams of the session the bus knows."""

    async def count() -> int:
        return len(server.bus._readers.get(session, ()))  # pyright: ignore[reportPrivateUsage]  # nothing else tells

    return server.run(count)


def publish(server: Server, *frames: Frame) -> None:
    async def now() -> None:
        server.bus.publish(frames)

    server.run(now)


def preview(session: str, kind: str, event_id: str = "sevt_1") -> Frame:
    data = json.dumps({"type": "event_start", "event": {"type": kind, "id": event_id}}).encode()
    return Frame(session, "event_start", data, preview_of=kind, preview_id=event_id)


def test_headers_come_at_once_and_keep_proxies_from_buffering(world: World) -> None:
    with opened(world.server, world.session()) as wire:
        assert wire.response.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert "no-cache" in wire.response.headers["cache-control"]
        assert wire.response.headers["x-accel-buffering"] == "no"
        assert wire.response.headers["request-id"].startswith("req_")
        assert "content-length" not in wire.response.headers
        assert wire.block() == ": open"


def test_frames_are_named_message_and_carry_the_event(world: World) -> None:
    session = world.session()
    with opened(world.server, session) as wire:
        assert wire.block() == ": open"
        world.client.beta.sessions.events.send(session, events=[message("two\nlines")])
        blocks = [wire.block() for _ in range(3)]
    assert all(block and block.startswith("event: message\ndata: {") and block.count("\n") == 1 for block in blocks)
    events = [json.loads(str(block).partition("data: ")[2]) for block in blocks]
    for event in events:
        assert_is(event, BetaManagedAgentsStreamSessionEvents)
    assert [event["type"] for event in events][-1] in ("user.message", "session.thread_status_running")


def test_nothing_is_replayed(world: World) -> None:
    session = world.session("before")
    with opened(world.server, session) as wire:
        world.client.beta.sessions.events.send(session, events=[message("after")])
        name, event = wire.frame()
    assert (name, event["content"][0]["text"]) == ("message", "after")


def test_a_waiting_message_appears_twice_with_one_id(world: World) -> None:
    session = world.session()
    with opened(world.server, session) as wire:
        sent = world.client.beta.sessions.events.send(session, events=[message("hi")])
        world.server.proceed(session)
        seen = [wire.frame()[1] for _ in range(5)]
    mine = [event for event in seen if event["type"] == "user.message"]
    assert sent.data is not None
    assert [event["id"] for event in mine] == [sent.data[0].id] * 2
    assert [event["processed_at"] is None for event in mine] == [True, False]


def test_two_readers_see_the_same_in_the_same_order(world: World) -> None:
    session = world.session()
    with opened(world.server, session) as one, opened(world.server, session) as two:
        for index in range(5):
            world.client.beta.sessions.events.send(session, events=[message(str(index))])
        world.server.proceed(session)
        world.server.interrupt_turn(session)
        assert [one.frame() for _ in range(10)] == [two.frame() for _ in range(10)]


def test_the_sdk_reads_a_whole_turn_from_its_stream(world: World) -> None:
    session = world.session()
    with world.client.beta.sessions.events.stream(session) as stream:
        world.client.beta.sessions.events.send(session, events=[message("hi")])
        world.server.proceed(session)
        world.server.interrupt_turn(session)
        types: list[str] = []
        for event in stream:
            types.append(event.type)
            if event.type == "session.status_idle":
                break
    assert types[-2] == "session.usage"
    assert types.count("session.status_running") == 1


def test_the_async_sdk_reads_the_same(world: World) -> None:
    session = world.session()

    async def read() -> str:
        http = httpx2.AsyncClient(timeout=WAIT_SECONDS, verify=False)
        async with (
            anthropic.AsyncAnthropic(api_key="key-one", base_url=world.server.base_url, http_client=http) as client,
            await client.beta.sessions.events.stream(session) as stream,
        ):
            await client.beta.sessions.update(session, title="new")
            async for event in stream:
                return event.type
        return "nothing"

    assert anyio.run(read) == "session.updated"


def test_pings_keep_a_quiet_stream_open(serve: Serve) -> None:
    world = World(serve(ping_seconds=0.02))
    session = world.session()
    with opened(world.server, session) as wire:
        assert wire.block() == ": open"
        for _ in range(5):
            assert wire.block() == 'event: ping\ndata: {"type":"ping"}'
        world.client.beta.sessions.update(session, title="new")
        assert wire.frame()[1]["type"] == "session.updated"
        assert wire.block() == 'event: ping\ndata: {"type":"ping"}'


def test_deleting_the_session_ends_its_streams(world: World) -> None:
    session = world.session()
    with opened(world.server, session) as wire, world.client.beta.sessions.events.stream(session) as stream:
        world.client.beta.sessions.delete(session)
        assert wire.frame()[1]["type"] == "session.deleted"
        assert wire.block() is None
        assert [event.type for event in stream] == ["session.deleted"]
    assert readers(world.server, session) == 0


def test_a_terminated_session_can_still_be_streamed(world: World) -> None:
    session = world.session()
    world.client.beta.sessions.archive(session)
    with opened(world.server, session) as wire:
        assert wire.block() == ": open"


def test_previews_come_only_to_readers_that_asked_for_their_type(world: World) -> None:
    session = world.session()
    with (
        opened(world.server, session) as without,
        opened(world.server, session, "?event_deltas[]=agent.message&event_deltas[]=agent.thinking") as both,
        opened(world.server, session, "?event_deltas=agent.thinking") as thinking,
    ):
        publish(world.server, preview(session, "agent.message"), preview(session, "agent.thinking", "sevt_2"))
        world.client.beta.sessions.update(session, title="new")
        assert without.frame()[1]["type"] == "session.updated"
        assert [both.frame()[1]["type"] for _ in range(3)] == ["event_start", "event_start", "session.updated"]
        assert thinking.frame()[1]["event"]["type"] == "agent.thinking"
        assert thinking.frame()[1]["type"] == "session.updated"


@pytest.mark.parametrize(
    "query",
    ["event_deltas[]=x", "event_deltas[]=agent.tool_use", "&".join(["event_deltas[]=agent.message"] * 101), "from=1"],
)
def test_bad_parameters_are_refused_before_the_stream_opens(world: World, query: str) -> None:
    session = world.session()
    response = world.server.http.get(f"/v1/sessions/{session}/events/stream?{query}")
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"
    assert readers(world.server, session) == 0


def test_a_stream_of_nothing_is_not_found_and_leaves_no_reader(world: World) -> None:
    with pytest.raises(anthropic.NotFoundError):
        world.client.beta.sessions.events.stream("sesn_none")
    assert readers(world.server, "sesn_none") == 0


def test_a_reader_that_leaves_is_noticed(serve: Serve) -> None:
    world = World(serve(ping_seconds=0.02))
    session = world.session()
    with raw(world.server, session):
        assert readers(world.server, session) == 1
        assert "corral_http_streams_open 1.0" in world.server.http.get("/metrics").text
    let_go(world.server, session)
    assert "corral_http_streams_open 0.0" in world.server.http.get("/metrics").text


def _until(reader: socket.socket, wanted: bytes) -> bytes:
    """Read up to `wanted` or the end; the last of what came."""
    received = b""
    while wanted not in received:
        chunk = reader.recv(1_000_000)
        if not chunk:
            break
        received = received[-1_000:] + chunk
    return received


@contextmanager
def raw(server: Server, session: str) -> Generator[socket.socket]:
    """A stream of a reader that reads only when it is told to, and takes little at a time."""
    with socket.socket() as reader:
        reader.settimeout(WAIT_SECONDS)
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        reader.connect(("127.0.0.1", server.port))
        sent = "".join(f"{name}: {value}\r\n" for name, value in headers().items())
        reader.sendall(f"GET /v1/sessions/{session}/events/stream HTTP/1.1\r\nhost: x\r\n{sent}\r\n".encode())
        assert b": open" in _until(reader, b": open")
        yield reader


def let_go(server: Server, session: str) -> None:
    """Wait until no stream of the session is open."""

    async def watch() -> None:
        with anyio.fail_after(WAIT_SECONDS):
            while server.bus.wants_previews(session):
                await anyio.lowlevel.checkpoint()

    server.run(watch)


def big(size: int) -> Append:
    return Append(ev.AgentMessage(id=new_id("sevt"), content=(TextBlock(text="x" * size),)))


def test_a_reader_that_falls_behind_is_told_and_cut_off(serve: Serve) -> None:
    world = World(serve(stream_buffer_frames_max=20, stream_buffer_bytes_max=1_000_000))
    session = world.session()
    with raw(world.server, session) as reader:
        for _ in range(120):  # far more than all buffers on the way hold
            world.server.commit(session, lambda session, state, now: [big(100_000)])
        end = _until(reader, b"event: error")
        if not end.endswith(b"0\r\n\r\n"):
            end += _until(reader, b"0\r\n\r\n")
    frame = end[end.index(b"event: error") :]
    data = json.loads(frame.partition(b"data: ")[2].partition(b"\n")[0])
    assert (data["type"], data["error"]["type"]) == ("error", "overloaded_error")
    assert frame.endswith(b"0\r\n\r\n")
    assert readers(world.server, session) == 0


def test_the_sdk_raises_when_it_is_cut_off(serve: Serve) -> None:
    world = World(serve(stream_buffer_frames_max=1))
    session = world.session()
    with world.client.beta.sessions.events.stream(session) as stream:

        async def flood() -> None:
            world.server.bus.publish([msgspec.structs.replace(preview(session, "agent.message"), preview_of=None)] * 5)

        world.server.run(flood)
        with pytest.raises(anthropic.APIStatusError, match="cut off"):
            list(stream)


def test_a_reader_that_takes_nothing_at_all_is_let_go(serve: Serve) -> None:
    world = World(serve(ping_seconds=0.02, stream_buffer_bytes_max=100_000_000))
    session = world.session()
    with raw(world.server, session):
        world.server.commit(session, lambda session, state, now: [big(10_000_000), big(10_000_000)])
        let_go(world.server, session)
