"""The server's end of the line to the daemon inside a sandbox; implements `Sandbox`.

It knows the daemon's frames (`daemon/__init__.py`) and nothing about how a sandbox is made (`local.py`). Calls share
one connection. A connection that breaks is made again and unanswered requests are repeated, which is safe because
the daemon runs no call twice; when the daemon itself is gone, all that wait raise `SandboxLost`.

Whatever comes out of a sandbox may have been written by hostile code: replies are limited in size and parsed
strictly, and an answer that does not fit ends the connection. Only inline content is accepted: a URL in a block
would be fetched by the model's provider, which is a way out of a sandbox that has none.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import anyio.to_thread
import msgspec

from corral.config_sections import SandboxSettings
from corral.domain.content import Base64Source, DocumentBlock, ImageBlock, ResultBlock, TextBlock
from corral.errors import SandboxLost
from corral.interfaces.sandbox import SandboxCall, SandboxReply
from corral.sandboxes.hosts import MOVES

PROTOCOL = 1
RECONNECTIONS_MAX = 3
"""In a row, without an answer between them."""
DECODE_INLINE_BYTES_MAX = 256 * 1024

PREDECESSOR_LOST = (
    "The sandbox stopped while this call may have been running, so it is unknown whether it took effect. "
    "A new sandbox with the same files is running; check the state of things before repeating the call."
)
LOST = (
    "The sandbox stopped while this call was running, so it is unknown whether it took effect. "
    "Its files are kept; check the state of things before repeating the call."
)
ENDED = "The sandbox had stopped before this call, and the call was not run. Its files are kept."
SILENT = "The sandbox did not answer in time; the call was cancelled and may or may not have taken effect."


class Hello(NamedTuple):
    """Who answers on a socket."""

    instance: str
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


class News(NamedTuple):
    """What the agent is to be told of its sandbox, once, together with the next result."""

    text: str
    told: Callable[[], None]
    """Called when it has been, or no longer needs to be."""


class _InlineImage(msgspec.Struct, tag_field="type", tag="image", forbid_unknown_fields=True):
    source: Base64Source


class _InlineDocument(msgspec.Struct, tag_field="type", tag="document", forbid_unknown_fields=True):
    source: Base64Source


class _Result(msgspec.Struct, forbid_unknown_fields=True):
    content: list[TextBlock | _InlineImage | _InlineDocument]
    is_error: bool


class _Answer(msgspec.Struct, forbid_unknown_fields=True):
    n: int
    reply: _Result | None = None
    unknown: bool = False
    done: bool = False
    protocol: int | None = None
    instance: str = ""


_decoder = msgspec.json.Decoder(_Answer)
_encode = msgspec.json.Encoder().encode


class _Waiting(NamedTuple):
    frame: bytes
    answer: asyncio.Future[_Answer]


class Connection:
    """A sandbox that runs, seen from outside."""

    def __init__(self, socket_path: Path, settings: SandboxSettings, hello: Hello, *, has_predecessor: bool) -> None:
        self._socket_path, self._settings = socket_path, settings
        self._instance, self._reader, self._writer = hello
        self._has_predecessor = has_predecessor
        self._predecessor_lost = PREDECESSOR_LOST
        """What is said of a call that an instance before this one may have run."""
        self._waiting: dict[int, _Waiting] = {}
        self._number = 0
        self._silent_reconnections = 0
        self.news: News | None = None
        self.lost_told = False
        """True when a call has said that the sandbox stopped."""
        self.on_idle: Callable[[], None] = self.hang_up
        """Called when it has not been used for `checkpoint_seconds`; hangs up, unless somebody knows better."""
        self.leaving = False
        """True when the server stops: calls that are cancelled then go on inside, for the next server to collect."""
        self._idle: asyncio.TimerHandle | None = None
        self._rests = False
        self.touch()
        # The connection outlives every request, so no request's task group can own its reader; `close` awaits it.
        self._serving = asyncio.create_task(self._serve(), name="sandbox connection")

    @property
    def lost(self) -> bool:
        """True once the daemon is gone; a new sandbox must be opened."""
        return self._serving.done()

    def announce(self, news: News) -> None:
        """Tell the agent with the next result, and if that is an error."""
        self.news = news
        self._predecessor_lost = MOVES.get(news.text, PREDECESSOR_LOST)

    def touch(self) -> None:
        """It is used: count the idle time from now."""
        if self._idle is not None:
            self._idle.cancel()
        self._rests = False
        settings = self._settings
        seconds = min(settings.pause_seconds, settings.checkpoint_seconds)
        self._idle = asyncio.get_running_loop().call_later(seconds, self._pause)

    @property
    def idle(self) -> bool:
        """Whether it has said so, by `on_idle`, and was not used since. Never by the clock: it is said once, and a
        clock that goes in milliseconds may show a hair less than `checkpoint_seconds` when the time is over."""
        return self._rests and not self._waiting

    def _pause(self) -> None:
        """Stop what runs in the background, unless somebody waits. The next call lets it go on."""
        if self._waiting:
            self.touch()
            return
        self._number += 1
        self._writer.write(_frame({"n": self._number, "do": "pause"}))
        more = self._settings.checkpoint_seconds - self._settings.pause_seconds
        self._idle = asyncio.get_running_loop().call_later(max(0.0, more), self._rest)

    def _rest(self) -> None:
        if self._waiting:
            self.touch()
        else:
            self._rests = True
            self.on_idle()

    def hang_up(self) -> None:
        """Hang up. The daemon ends when nobody comes back; until then it can be found again."""
        self._serving.cancel()

    async def call(self, call: SandboxCall) -> SandboxReply:
        """See `Sandbox.call`."""
        try:
            reply = await self._call(call)
        except SandboxLost:
            self.lost_told = True
            self._take_news()
            raise
        news = self._take_news()
        return reply if news is None else msgspec.structs.replace(reply, content=(TextBlock(text=news), *reply.content))

    def _take_news(self) -> str | None:
        news, self.news = self.news, None
        if news is None:
            return None
        news.told()
        return news.text

    async def _call(self, call: SandboxCall) -> SandboxReply:
        if self.lost:
            raise SandboxLost(self._predecessor_lost if call.resumed else ENDED)
        known_only = call.resumed and self._has_predecessor
        request = {"do": "call", "call_id": call.call_id, "operation": call.operation, "known_only": known_only}
        try:
            with anyio.fail_after(self._seconds_max(call)):
                answer = await self._ask({**request, "arguments": call.arguments})
        except TimeoutError:
            await self._cancel(call.call_id)
            raise SandboxLost(SILENT) from None
        except asyncio.CancelledError:
            if not self.leaving:
                await self._cancel(call.call_id)
            raise
        if answer.unknown and known_only:
            raise SandboxLost(self._predecessor_lost)
        if answer.reply is None:
            raise SandboxLost(LOST)
        return SandboxReply(content=tuple(map(_block, answer.reply.content)), is_error=answer.reply.is_error)

    async def forget(self, call_ids: Sequence[str]) -> None:
        """See `Sandbox.forget`."""
        if call_ids and not self.lost:
            await self._tell({"do": "forget", "call_ids": list(call_ids)})

    async def purge(self) -> bool:
        """Have everything in the sandbox killed but the daemon; whether the daemon said it was done. Never raises."""
        return await self._tell({"do": "purge"})

    async def end(self) -> None:
        """Ask the daemon to kill what it started and to end. Never raises."""
        await self._tell({"do": "end"})

    async def close(self) -> None:
        """Hang up; the sandbox goes on. Idempotent."""
        if self._idle is not None:
            self._idle.cancel()
        self._serving.cancel()
        await asyncio.wait([self._serving])
        # A task that is cancelled before its first step does not get to do this.
        self._writer.close()

    def _seconds_max(self, call: SandboxCall) -> float:
        seconds = self._settings.command_seconds
        timeout_ms = call.arguments.get("timeout_ms")
        if isinstance(timeout_ms, int):
            seconds = min(timeout_ms / 1000, self._settings.command_seconds_max)
        return seconds + self._settings.answer_seconds_max

    async def _cancel(self, call_id: str) -> None:
        await self._tell({"do": "cancel", "call_id": call_id})

    async def _tell(self, request: dict[str, Any]) -> bool:
        """Have the daemon do what needs no answer, as long as it is there; done even while being cancelled."""
        with anyio.move_on_after(self._settings.cancel_seconds_max, shield=True):
            try:
                return (await self._ask(request)).done
            except SandboxLost:
                return False
        return False

    async def _ask(self, request: dict[str, Any]) -> _Answer:
        if self.lost:
            raise SandboxLost(ENDED)
        self._number += 1
        number = self._number
        waiting = _Waiting(_frame({"n": number, **request}), asyncio.get_running_loop().create_future())
        self._waiting[number] = waiting
        try:
            await self._send(waiting.frame)
            return await waiting.answer
        finally:
            self._waiting.pop(number, None)
            waiting.answer.cancel()
            self.touch()

    async def _send(self, frame: bytes) -> None:
        try:
            self._writer.write(frame)
            await self._writer.drain()
        except OSError:
            # The reader notices too, and repeats the request on the next connection.
            return

    async def _serve(self) -> None:
        """Read answers until the daemon is gone or talks nonsense; then fail all who wait."""
        try:
            while True:
                try:
                    await self._read_answers()
                except (OSError, EOFError):
                    self._writer.close()
                if not await self._reconnect():
                    return
                for waiting in list(self._waiting.values()):
                    await self._send(waiting.frame)
        except msgspec.DecodeError:
            return
        finally:
            self._writer.close()
            for waiting in self._waiting.values():
                if not waiting.answer.done():
                    waiting.answer.set_exception(SandboxLost(LOST))

    async def _read_answers(self) -> None:
        while True:
            answer = await _read(self._reader, self._settings.reply_bytes_max)
            self._silent_reconnections = 0
            waiting = self._waiting.get(answer.n)
            if waiting is not None and not waiting.answer.done():
                waiting.answer.set_result(answer)

    async def _reconnect(self) -> bool:
        self._silent_reconnections += 1
        if self._silent_reconnections > RECONNECTIONS_MAX:
            return False
        hello = await greet(self._socket_path, self._settings)
        if hello is None:
            return False
        instance, self._reader, self._writer = hello
        return instance == self._instance


async def greet(socket_path: Path, settings: SandboxSettings) -> Hello | None:
    """Connect and exchange hellos; None when no daemon answers there in time."""
    try:
        with anyio.fail_after(settings.start_seconds_max):
            reader, writer = await _connect(socket_path)
            try:
                writer.write(_frame({"n": 0, "do": "hello"}))
                answer = await _read(reader, settings.reply_bytes_max)
            except BaseException:
                writer.close()
                raise
    except (OSError, EOFError, msgspec.DecodeError):
        return None
    if answer.protocol != PROTOCOL:
        writer.close()
        return None
    return Hello(answer.instance, reader, writer)


async def _connect(socket_path: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with short_socket_path(socket_path) as short:
            connection.setblocking(False)
            await asyncio.get_running_loop().sock_connect(connection, short)
        return await asyncio.open_unix_connection(sock=connection)
    except BaseException:
        connection.close()
        raise


def listen(path: Path, waiting_max: int) -> socket.socket:
    """A new socket at `path` that listens, in place of what was there; only this user can connect."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with short_socket_path(path) as short:
            listener.bind(short)
        path.chmod(0o600)
        listener.listen(waiting_max)
    except BaseException:
        listener.close()
        raise
    return listener


@contextmanager
def short_socket_path(path: Path) -> Generator[str]:
    """A name for the socket that fits into the 108 bytes the kernel allows, valid inside the `with`."""
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


async def _read(reader: asyncio.StreamReader, limit: int) -> _Answer:
    size = int.from_bytes(await reader.readexactly(4), "big")
    if size > limit:
        raise msgspec.DecodeError("a reply over the limit")
    data = await reader.readexactly(size)
    if size > DECODE_INLINE_BYTES_MAX:
        return await anyio.to_thread.run_sync(_decoder.decode, data)
    return _decoder.decode(data)


def _frame(request: dict[str, Any]) -> bytes:
    data = _encode(request)
    return len(data).to_bytes(4, "big") + data


def _block(block: TextBlock | _InlineImage | _InlineDocument) -> ResultBlock:
    match block:
        case TextBlock():
            return block
        case _InlineImage():
            return ImageBlock(source=block.source)
        case _InlineDocument():
            return DocumentBlock(source=block.source)
