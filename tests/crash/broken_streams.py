"""One answer on each of the three wires, taken apart into its events, and every way in which it may go wrong.

The answer thinks, says something and calls the client's tool. A `Fault` is what a server does instead; `outcome` is
what the session must show for it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import msgspec

from corral.interfaces.provider import Provider
from corral.providers.anthropic import AnthropicProvider
from corral.providers.openai import OpenAIProvider
from tests.contracts.raw_server import Play, http

Json = dict[str, Any]
Outcome: TypeAlias = Literal["answer", "retry", "either", "legal"]
"""The answer at once; one failure and then the answer; one of these two; or whatever can be made of it, once."""

KEY = "sk-of-the-broken-streams"
SAID, THOUGHT, ARGUMENTS = ("Let me ", "look."), "The user asks about Bergen.", '{"city": "Bergen"}'
WHOLE = ARGUMENTS[:4], ARGUMENTS[4:12], ARGUMENTS[12:]


class Fault(NamedTuple):
    """An answer that is not as it should be."""

    name: str
    play: Play
    outcome: Outcome


class Wire(NamedTuple):
    """One wire: its good answer, event by event, and who asks."""

    events: tuple[bytes, ...]
    complete_after: int
    """Events after which nothing that matters is missing; what follows is usage, if anything."""
    done: bytes
    """Another answer: "Done.", without a call."""
    error: bytes
    """An event that says that the server is overloaded."""
    make: Callable[[str], Provider]
    has_result: Callable[[Json], bool]
    """Whether a request holds the result of the tool call."""

    @property
    def body(self) -> bytes:
        return b"".join(self.events)

    def clean(self) -> Play:
        return Play(http(self.body))


def sse(event: Json) -> bytes:
    name = f"event: {event['type']}\n" if "type" in event else ""
    return f"{name}data: {msgspec.json.encode(event).decode()}\n\n".encode()


# ------------------------------------------------------------------------------------------------ the answers


def _block(index: int, start: Json, *deltas: Json) -> list[Json]:
    return [
        {"type": "content_block_start", "index": index, "content_block": start},
        *({"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": index},
    ]


def _message(stop: str, *blocks: list[Json]) -> list[Json]:
    usage = {"input_tokens": 10, "output_tokens": 1}
    return [
        {"type": "message_start", "message": {"id": "msg_1", "role": "assistant", "content": [], "usage": usage}},
        *(event for block in blocks for event in block),
        {"type": "message_delta", "delta": {"stop_reason": stop}, "usage": {"output_tokens": 20}},
        {"type": "message_stop"},
    ]


def _text_block(index: int, *pieces: str) -> list[Json]:
    return _block(index, {"type": "text", "text": ""}, *({"type": "text_delta", "text": piece} for piece in pieces))


MESSAGES = _message(
    "tool_use",
    _block(
        0,
        {"type": "thinking", "thinking": "", "signature": ""},
        {"type": "thinking_delta", "thinking": THOUGHT},
        {"type": "signature_delta", "signature": "c2lnbmVk"},
    ),
    _text_block(1, *SAID),
    _block(
        2,
        {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {}},
        *({"type": "input_json_delta", "partial_json": piece} for piece in WHOLE),
    ),
)


def _chunk(reason: str | None = None, **delta: object) -> Json:
    return {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}


CHAT = [
    _chunk(role="assistant", reasoning_content=THOUGHT),
    *(_chunk(content=piece) for piece in SAID),
    _chunk(tool_calls=[{"index": 0, "id": "call_1", "function": {"name": "weather", "arguments": ""}}]),
    *(_chunk(tool_calls=[{"index": 0, "function": {"arguments": piece}}]) for piece in WHOLE),
    _chunk("tool_calls"),
]
CHAT_USAGE: Json = {"choices": [], "usage": {"prompt_tokens": 10, "completion_tokens": 20}}

_CALL = {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "weather", "arguments": ""}
RESPONSES: list[Json] = [
    {"type": "response.created", "response": {}},
    {"type": "response.output_item.added", "output_index": 0, "item": {"type": "reasoning", "id": "rs_1"}},
    {"type": "response.reasoning_summary_text.delta", "output_index": 0, "summary_index": 0, "delta": THOUGHT},
    {"type": "response.output_item.added", "output_index": 1, "item": {"type": "message", "id": "m", "content": []}},
    *({"type": "response.output_text.delta", "output_index": 1, "content_index": 0, "delta": piece} for piece in SAID),
    {"type": "response.output_item.added", "output_index": 2, "item": _CALL},
    *({"type": "response.function_call_arguments.delta", "output_index": 2, "delta": piece} for piece in WHOLE),
    {"type": "response.completed", "response": {"usage": {"input_tokens": 10, "output_tokens": 20}}},
]
_DONE: list[Json] = [
    {"type": "response.output_item.added", "output_index": 0, "item": {"type": "message", "id": "m", "content": []}},
    {"type": "response.output_text.delta", "output_index": 0, "content_index": 0, "delta": "Done."},
    {"type": "response.completed", "response": {}},
]


def _joined(events: Sequence[Json]) -> bytes:
    return b"".join(map(sse, events))


def _told_messages(body: Json) -> bool:
    return any(block["type"] == "tool_result" for message in body["messages"] for block in message["content"])


def _told_chat(body: Json) -> bool:
    return any(message["role"] == "tool" for message in body["messages"])


def _told_responses(body: Json) -> bool:
    return any(item.get("type") == "function_call_output" for item in body["input"])


def _anthropic(url: str) -> Provider:
    return AnthropicProvider(api_key=KEY, base_url=url)


def _openai_chat(url: str) -> Provider:
    return OpenAIProvider(api_key=KEY, base_url=f"{url}/v1", wire="chat")


def _openai_responses(url: str) -> Provider:
    return OpenAIProvider(api_key=KEY, base_url=f"{url}/v1", wire="responses")


BUSY: Json = {"type": "overloaded_error", "code": "overloaded", "message": "busy"}
WIRES: Mapping[str, Wire] = {
    "messages": Wire(
        tuple(map(sse, MESSAGES)),
        len(MESSAGES),
        _joined(_message("end_turn", _text_block(0, "Done."))),
        sse({"type": "error", "error": BUSY}),
        _anthropic,
        _told_messages,
    ),
    "chat": Wire(
        (*map(sse, [*CHAT, CHAT_USAGE]), b"data: [DONE]\n\n"),
        len(CHAT),
        _joined([_chunk(content="Done."), _chunk("stop")]) + b"data: [DONE]\n\n",
        sse({"error": BUSY}),
        _openai_chat,
        _told_chat,
    ),
    "responses": Wire(
        tuple(map(sse, RESPONSES)),
        len(RESPONSES),
        _joined(_DONE),
        sse({"type": "error", "error": BUSY}),
        _openai_responses,
        _told_responses,
    ),
}


# ------------------------------------------------------------------------------------------------- the faults


def at_every_event(wire: Wire) -> Generator[Fault]:
    """Before each event, and after the last: the connection ends, or something is there that should not be."""
    for place in range(len(wire.events) + 1):
        before, after = b"".join(wire.events[:place]), b"".join(wire.events[place:])
        cut: Outcome = "retry" if place < wire.complete_after else "answer"

        def broken(kind: str, play: Play, outcome: Outcome, place: int = place) -> Fault:
            return Fault(f"{kind} at event {place}", play, outcome)

        def within(text: bytes, before: bytes = before, after: bytes = after) -> Play:
            return Play(http(before + text + after))

        yield broken("closed", Play(http(before)), cut)
        yield broken("cut off", Play(http(before, length=99_999)), cut)
        # A reset may overtake bytes that were sent before it.
        yield broken("reset", Play(http(before), "reset"), "either" if cut == "answer" else cut)
        yield broken("bad chunk", Play(_chunked(before) + b"nonsense\r\n"), cut)
        yield broken("error event", within(wire.error), cut)
        yield broken("broken JSON", within(b'event: content_block_delta\ndata: {"broken": \n\n'), cut)
        yield broken("not text", within(b"data: \xff\xfe\n\n"), cut)
        yield broken("a page", within(b"<html>\nBad gateway\n</html>\n\n"), "answer")
        yield broken("comment", within(b": keep-alive\n\n"), "answer")
        yield broken("unknown event", within(b'event: telepathy\ndata: {"type": "telepathy", "x": 1}\n\n'), "answer")
        # On the Responses wire it opens a call, which never gets a name; the model is told that there is no such tool.
        yield broken("unknown index", within(_stray(wire)), "legal" if wire is WIRES["responses"] else "answer")


def at_bytes(wire: Wire, stride: int) -> Generator[Fault]:
    """The connection ends after every `stride`-th byte of the body."""
    enough = len(b"".join(wire.events[: wire.complete_after]))
    for place in range(1, len(wire.body), stride):
        outcome: Outcome = "retry" if place < enough else "answer"
        play = Play(http(wire.body[:place])) if place % 2 else Play(http(wire.body[:place], length=len(wire.body)))
        yield Fault(f"ends at byte {place}", play, outcome)


def in_disorder(wire: Wire) -> Generator[Fault]:
    """An event is missing, comes twice, or in the wrong place. What can be told is told; nothing is told twice."""
    for place, event in enumerate(wire.events):
        others = [*wire.events[:place], *wire.events[place + 1 :]]
        yield Fault(f"without event {place}", Play(http(b"".join(others))), "legal")
        others.insert(max(0, place - 1), event)
        yield Fault(f"event {place} too early", Play(http(b"".join(others))), "legal")
        twice = [*wire.events[: place + 1], *wire.events[place:]]
        yield Fault(f"event {place} twice", Play(http(b"".join(twice))), "legal")


def in_odd_pieces(wire: Wire) -> Generator[Fault]:
    """The right bytes in strange portions."""
    for size in (1, 2, 3, 7, 64):
        yield Fault(f"in pieces of {size}", Play(http(wire.body), piece_bytes=size), "answer")
    yield Fault("chunked", Play(_chunked(wire.body) + b"0\r\n\r\n"), "answer")
    yield Fault("with CRLF", Play(http(wire.body.replace(b"\n", b"\r\n"))), "answer")


def instead(wire: Wire) -> Generator[Fault]:
    """Something else than an event stream, with status 200."""
    failed = msgspec.json.encode({"type": "error", "error": BUSY})
    for name, play in {
        "nothing": Play(http(b"")),
        "no HTTP": Play(b"SSH-2.0-OpenSSH_9.6\r\n"),
        "no answer": Play(b""),
        "a reset": Play(b"", "reset"),
        "half a head": Play(b"HTTP/1.1 200 OK\r\ncontent-ty"),
        "a page": Play(http(b"<html>Welcome</html>", kind="text/html")),
        "the wrong type": Play(http(wire.body, kind="application/octet-stream")),
        "an error body": Play(http(failed, kind="application/json")),
        "another object": Play(http(b'{"hello": 1}', kind="application/json")),
        "lies about gzip": Play(http(wire.body, more="content-encoding: gzip\r\n")),
        "a list": Play(http(b"data: []\n\ndata: 5\n\n")),
    }.items():
        yield Fault(name, play, "retry")


def silences(wire: Wire) -> Generator[Fault]:
    """The stream stops before each event, and the connection stays."""
    for place in range(wire.complete_after):
        yield Fault(f"silent at event {place}", Play(http(b"".join(wire.events[:place])), "hang"), "retry")


def floods(wire: Wire) -> Generator[Fault]:
    """A hundred megabytes: of text, in one line, in one event, of an error page."""
    text = next(event for event in wire.events if SAID[0].encode() in event)
    yield Fault(
        "text", Play(http(wire.body[: wire.body.index(text)]), flood=text * 300, floods=_times(text * 300)), "retry"
    )
    line = b"x" * 65_536
    yield Fault("one line", Play(http(b"data: {"), flood=line, floods=_times(line)), "retry")
    lines = b"data: " + b"x" * 1_000 + b"\n"
    yield Fault("one event", Play(http(b""), flood=lines * 60, floods=_times(lines * 60)), "retry")
    page = http(b"<html>", status="502 Bad Gateway", kind="text/html")
    yield Fault("an error page", Play(page, flood=line, floods=_times(line)), "retry")


def _times(flood: bytes) -> int:
    return 100 * 1024 * 1024 // len(flood)


def _chunked(body: bytes) -> bytes:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    return head + (f"{len(body):x}\r\n".encode() + body + b"\r\n" if body else b"")


def _stray(wire: Wire) -> bytes:
    """More of something that was never begun."""
    if wire is WIRES["messages"]:
        delta = {"type": "text_delta", "text": "stray"}
        return sse({"type": "content_block_delta", "index": 9, "delta": delta})
    if wire is WIRES["chat"]:
        return sse({"choices": []})
    return sse({"type": "response.function_call_arguments.delta", "output_index": 9, "delta": "stray"})
