"""A Messages API server that keeps prompts as the real one is documented to, and says what was read, written, neither.

The prompt is a row of blocks: tools, then system, then the blocks of the messages. A breakpoint (`cache_control`)
writes the row up to it, if that is long enough for the model; a later request reads the longest row that was written
before and that ends at one of its breakpoints or at most twenty blocks earlier. Rows live five minutes from their last
use, or an hour. A token is four bytes here.

Its model works: in each turn it thinks, runs commands for some rounds, and answers. It also holds the client to what it
must send back: each of its own messages, thinking and signatures included, as it was.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.counterpart import ServerThread

Json = dict[str, Any]

BREAKPOINTS_MAX = 4
LOOK_BACK_BLOCKS = 20
TOKENS_MIN: Mapping[str, int] = {"*haiku*": 4_096, "*opus-4-[5-9]*": 4_096, "*": 1_024}
"""The shortest row that is kept, by model; the first pattern that matches."""
LIFE_SECONDS: Mapping[str, float] = {"5m": 300.0, "1h": 3_600.0}
BYTES_PER_TOKEN = 4


class Block(NamedTuple):
    """A block of a prompt, with everything before it."""

    row: bytes
    """What stands here and before, as a hash."""
    tokens: int
    """Of the whole row."""
    keeps: str | None
    """How long it is to be kept, if it is a breakpoint."""


class Counted(NamedTuple):
    """How one prompt was taken in, in tokens."""

    read: int
    written: Mapping[str, int]
    whole: int
    ideal: int
    """What could have been read: all that it has in common with the request before, if that was still alive."""
    extends: bool
    """Whether the request before is the beginning of this one, to the byte."""


class Cache:
    """Rows of blocks, and until when they are kept."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._kept: dict[bytes, tuple[float, str]] = {}
        self._before: tuple[float, Sequence[Block]] = (0.0, ())

    def take(self, body: Json) -> Counted:
        """Read and write what this request asks for. Raises `ValueError` when it has too many breakpoints."""
        blocks, now = list(_blocks(body)), self._clock()
        marks = [place for place, block in enumerate(blocks) if block.keeps]
        if len(marks) > BREAKPOINTS_MAX:
            raise ValueError(f"{len(marks)} breakpoints")
        least = next(tokens for pattern, tokens in TOKENS_MIN.items() if fnmatchcase(body["model"], pattern))
        found = max((place for mark in marks for place in self._hits(blocks, mark, now)), default=None)
        read = 0 if found is None else blocks[found].tokens
        if found is not None:
            self._keep(blocks[found].row, self._kept[blocks[found].row][1], now)
        written, reached = {"5m": 0, "1h": 0}, read
        for mark in marks:
            block = blocks[mark]
            if block.tokens < least or block.keeps is None:
                continue
            written[block.keeps] += max(0, block.tokens - reached)
            reached = max(reached, block.tokens)
            self._keep(block.row, block.keeps, now)
        ideal, before = self._ideal(blocks, least, now), self._before[1]
        extends = [block.row for block in before] == [block.row for block in blocks[: len(before)]]
        self._before = (now, blocks)
        return Counted(read, written, blocks[-1].tokens if blocks else 0, ideal, extends)

    def _hits(self, blocks: Sequence[Block], mark: int, now: float) -> Iterator[int]:
        for place in range(mark, max(-1, mark - LOOK_BACK_BLOCKS - 1), -1):
            until, _ = self._kept.get(blocks[place].row, (0.0, ""))
            if until > now:
                yield place

    def _keep(self, row: bytes, life: str, now: float) -> None:
        self._kept[row] = (now + LIFE_SECONDS[life], life)

    def _ideal(self, blocks: Sequence[Block], least: int, now: float) -> int:
        at, before = self._before
        common = 0
        for one, other in zip(before, blocks, strict=False):
            if one.row != other.row:
                break
            common = other.tokens
        return common if common >= least and at + LIFE_SECONDS["5m"] > now else 0


def _blocks(body: Json) -> Iterator[Block]:
    digest, size = hashlib.sha256(body["model"].encode()), 0
    system = body.get("system", [])
    pieces: list[tuple[str, Json]] = [("tool", tool) for tool in body.get("tools", [])]
    pieces += [("system", each) for each in ([{"type": "text", "text": system}] if isinstance(system, str) else system)]
    for number, message in enumerate(body["messages"]):
        pieces += [(f"{message['role']} {number}", block) for block in message["content"]]
    for place, piece in pieces:
        control = piece.get("cache_control")
        plain = {name: value for name, value in piece.items() if name != "cache_control"}
        encoded = msgspec.json.encode([place, plain])
        digest.update(encoded)
        size += len(encoded)
        yield Block(digest.digest(), size // BYTES_PER_TOKEN, control and control.get("ttl", "5m"))


# ------------------------------------------------------------------------------------------------- the server


class CacheServer(ServerThread):
    """The server, in a thread."""

    def __init__(self, cache: Cache | None = None) -> None:
        self.cache = cache or Cache()
        self.counted: list[Counted] = []
        self.condensed = 0
        """Requests for a summary: they have no tools, and nothing of them is counted."""
        self.problems: list[str] = []
        """What the client sent that the API would refuse."""
        self._said: list[list[Json]] = []
        super().__init__(Route("/v1/messages", self._answer, methods=["POST"]))

    async def _answer(self, request: Request) -> Response:
        body: Json = msgspec.json.decode(await request.body())
        if "tools" not in body:
            self.condensed += 1
            summary: list[Json] = [{"type": "text", "text": "Parts were done."}]
            return Response(b"".join(_events(summary, {})), media_type="text/event-stream")
        try:
            counted = self.cache.take(body)
        except ValueError as error:
            self.problems.append(str(error))
            return JSONResponse({"error": {"type": "invalid_request_error", "message": str(error)}}, 400)
        self.counted.append(counted)
        self._check(body["messages"])
        content = _work(body["messages"], len(self._said))
        self._said.append(content)
        usage = {
            "input_tokens": counted.whole - counted.read - sum(counted.written.values()),
            "cache_read_input_tokens": counted.read,
            "cache_creation_input_tokens": sum(counted.written.values()),
            "cache_creation": {f"ephemeral_{life}_input_tokens": count for life, count in counted.written.items()},
            "output_tokens": len(msgspec.json.encode(content)) // BYTES_PER_TOKEN,
        }
        return Response(b"".join(_events(content, usage)), media_type="text/event-stream")

    def _check(self, messages: Sequence[Json]) -> None:
        """What we said must come back as it was, but for the ids of calls, which the client may choose."""
        came = [message["content"] for message in messages if message["role"] == "assistant"]
        newest = self._said[len(self._said) - len(came) :]
        for said, back in zip(newest, came, strict=False):
            if [_plain(block) for block in said] != [_plain(block) for block in back]:
                self.problems.append(f"said {said}, came back as {back}")
        if len(came) != len(self._said) and not self.condensed:
            self.problems.append(f"{len(self._said)} answers were given, {len(came)} came back")


def _plain(block: Json) -> Json:
    return {name: value for name, value in block.items() if name not in ("cache_control", "id")}


def _work(messages: Sequence[Json], number: int) -> list[Json]:
    """The next answer: after each of the user's texts, one to three rounds of commands, then words."""
    texts = [
        place
        for place, message in enumerate(messages)
        if message["role"] == "user" and any(block["type"] == "text" for block in message["content"])
    ]
    turn = len(texts)
    rounds = sum(message["role"] == "assistant" for message in messages[texts[-1] :])
    thinking = {
        "type": "thinking",
        "thinking": f"Round {rounds} of turn {turn}. " * 5,
        "signature": f"c2ln{number:04}=",
    }
    hidden = {"type": "redacted_thinking", "data": f"b3BhcXVl{number:04}"}
    if rounds > turn % 3:
        return [thinking, {"type": "text", "text": f"Turn {turn} is done. " * 10}]
    if turn % 7 == 6:  # more calls at once than a server looks back over
        calls = [_call(number, each, "glob", {"pattern": f"*.{each}"}) for each in range(25)]
        return [thinking, *calls]
    command = _call(number, 0, "bash", {"command": f"seq {turn} {turn + 200 + 40 * rounds}"})
    return [thinking, *([hidden] if turn % 4 == 0 else []), {"type": "text", "text": "I look."}, command]


def _call(number: int, place: int, name: str, arguments: Json) -> Json:
    return {"type": "tool_use", "id": f"toolu_{number}_{place}", "name": name, "input": arguments}


def _events(content: Sequence[Json], usage: Json) -> Iterator[bytes]:
    yield _sse({"type": "message_start", "message": {"usage": usage}})
    for index, block in enumerate(content):
        start, delta = _taken_apart(block)
        yield _sse({"type": "content_block_start", "index": index, "content_block": start})
        for each in delta:
            yield _sse({"type": "content_block_delta", "index": index, "delta": each})
        yield _sse({"type": "content_block_stop", "index": index})
    stop = "tool_use" if content[-1]["type"] == "tool_use" else "end_turn"
    yield _sse({"type": "message_delta", "delta": {"stop_reason": stop}, "usage": {}})
    yield _sse({"type": "message_stop"})


def _taken_apart(block: Json) -> tuple[Json, list[Json]]:
    match block["type"]:
        case "text":
            return {"type": "text", "text": ""}, [{"type": "text_delta", "text": block["text"]}]
        case "thinking":
            deltas: list[Json] = [
                {"type": "thinking_delta", "thinking": block["thinking"]},
                {"type": "signature_delta", "signature": block["signature"]},
            ]
            return {"type": "thinking", "thinking": "", "signature": ""}, deltas
        case "tool_use":
            text = msgspec.json.encode(block["input"]).decode()
            return {**block, "input": {}}, [{"type": "input_json_delta", "partial_json": text}]
        case _:
            return block, []


def _sse(event: Json) -> bytes:
    return f"event: {event['type']}\ndata: ".encode() + msgspec.json.encode(event) + b"\n\n"
