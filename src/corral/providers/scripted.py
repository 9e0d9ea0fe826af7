"""A model that does what it is told: it drives the tests, the benchmarks and the examples, offline.

Its answer is a pure function of the request, so it survives `kill -9`. The script is a JSON array of steps, written
after a line "```script" in the latest user message that has text, else in the system prompt. One step is one answer;
which one is counted from the assistant messages after that user message (for the system prompt: all of them). When
the script is exhausted the model says "Done."; without any script it says "You said: ...".

A step is a part, or an array of parts that make one answer. A part is an object; its keys act in this order:

    {"fail": kind, "attempts": n, "after": text, "retry_after": s}   say `after`, then raise; from request.attempt n on
                             carry on instead (without `attempts`: never). Kinds: overloaded, rate_limited, unreachable,
                             refused, billing, overflow
    {"think": text}          a thinking block
    {"say": text, "pieces": 3}                                       a text block, sent as that many deltas
    {"echo": "prompt"}       a text block: JSON about the request; "system" and "messages" say those back whole
    {"tool": name, "input": {...}}                                   a tool call; ids are toolu_<answer>_<call>
    {"malformed": name}      a tool call whose input is broken JSON
    {"hang": true}           say no more until cancelled
    {"parallel": [part, ...]}, {"then": [part, ...]}                 more parts, after the keys above
    {"stop": reason}, {"usage": {...}}, {"refuse": category, "explanation": text}      override the end of the answer

The judge of the `auto` policy asks about one call, and takes its answer from that call: "judge:DENY" anywhere in the
call's input makes it say DENY, any other word likewise; "judge:fail" breaks the request; without a word it says ALLOW.
Asked for a summary of a transcript (a system prompt that begins so), it says back the lines that hold "remember:".
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator, Generator, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Literal, TypeAlias, cast

import anyio
import anyio.lowlevel
import msgspec

from corral.domain.content import AssistantBlock, TextBlock, ThinkingBlock, ToolResultBlock, ToolUseBlock
from corral.domain.inference import (
    BlockStarted,
    ModelChunk,
    ModelRequest,
    ModelResponse,
    ModelUsage,
    PromptMessage,
    TextDelta,
)
from corral.errors import (
    ContextOverflow,
    ProviderBilling,
    ProviderError,
    ProviderOverloaded,
    ProviderRateLimited,
    ProviderRefused,
    ProviderUnreachable,
)

FENCE = "```script"
SUMMARY_ASKED = "Summarise the transcript"
SCRIPT_STEPS_MAX = 10_000
JUDGED_CALL = re.compile(r"<call>\n([^\n]*)\n</call>\Z")
"""How a request ends that puts a call to the judge. The call is JSON on one line, so what it holds cannot end it."""
JUDGEMENT = re.compile(r"judge:(\w+)")

Failure: TypeAlias = Literal["overloaded", "rate_limited", "unreachable", "refused", "billing", "overflow"]
StopReason: TypeAlias = Literal["end_turn", "tool_use", "max_tokens", "stop_sequence", "pause_turn", "refusal"]

FAILURES: Mapping[Failure, type[ProviderError]] = {
    "overloaded": ProviderOverloaded,
    "rate_limited": ProviderRateLimited,
    "unreachable": ProviderUnreachable,
    "refused": ProviderRefused,
    "billing": ProviderBilling,
    "overflow": ContextOverflow,
}


class Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of one scripted answer; the module's docstring says what each key does."""

    fail: Failure | None = None
    attempts: int | None = None
    after: str = ""
    retry_after: float | None = None
    think: str | None = None
    say: str | None = None
    pieces: int = 3
    echo: Literal["prompt", "system", "messages"] | None = None
    tool: str | None = None
    input: dict[str, object] = {}
    malformed: str | None = None
    hang: bool = False
    parallel: tuple[Part, ...] = ()
    then: tuple[Part, ...] = ()
    stop: StopReason | None = None
    usage: dict[str, int] = {}
    refuse: str | None = None
    explanation: str | None = None


Step: TypeAlias = Part | tuple[Part, ...]


class ScriptedProvider:
    """Plays the script it finds in the request. Holds no state, so any number of requests may run at once."""

    async def stream(self, request: ModelRequest) -> AsyncGenerator[ModelChunk]:
        """Play the step that the request has arrived at."""
        answer = _Answer(request)
        for part in _flat(_step(request)):
            for chunk in answer.play(part):
                # A cancelled or closed stream must stop between any two chunks, as over a network.
                await anyio.lowlevel.checkpoint()
                yield chunk
            if part.hang:
                await anyio.sleep_forever()
        yield answer.response()

    async def close(self) -> None:
        """Nothing to free."""


class _Answer:
    """The answer to one request, growing part by part."""

    def __init__(self, request: ModelRequest) -> None:
        self._request = request
        self._number = _assistant_messages(request.messages)
        self._content: list[AssistantBlock] = []
        self._malformed: list[str] = []
        self._stop: StopReason | None = None
        self._refusal: tuple[str, str | None] | None = None
        self._usage: dict[str, int] = {}

    def play(self, part: Part) -> Generator[ModelChunk]:
        """Act on the part's own keys and yield the previews; `parallel` and `then` are parts of their own by now."""
        if part.fail is not None and (part.attempts is None or self._request.attempt < part.attempts):
            yield from self._say(part.after, 1)
            raise FAILURES[part.fail](f"The script says: {part.fail}.", retry_after_seconds=part.retry_after)
        if part.think is not None:
            yield from self._put(ThinkingBlock(thinking=part.think, signature="scripted"), "thinking")
        yield from self._say(part.say, part.pieces)
        if part.echo is not None:
            yield from self._say(_echo(self._request, part.echo), part.pieces)
        if part.tool is not None:
            yield from self._call(part.tool, part.input)
        if part.malformed is not None:
            yield from self._call(part.malformed, {})
            self._malformed.append(self._last_call_id())
        self._stop = part.stop or self._stop
        self._usage |= part.usage
        if part.refuse is not None:
            self._refusal = (part.refuse, part.explanation)

    def response(self) -> ModelResponse:
        """The whole answer."""
        category, explanation = self._refusal or (None, None)
        return ModelResponse(
            content=tuple(self._content),
            stop_reason=self._stop or self._natural_stop(),
            usage=_usage(self._request, self._content, self._usage),
            refusal_category=category,
            refusal_explanation=explanation,
            malformed_tool_inputs=tuple(self._malformed),
        )

    def _natural_stop(self) -> StopReason:
        if self._refusal is not None:
            return "refusal"
        return "tool_use" if self._calls() else "end_turn"

    def _say(self, text: str | None, pieces: int) -> Generator[ModelChunk]:
        if not text:
            return
        yield from self._put(TextBlock(text=text), "text")
        for piece in _pieces(text, pieces):
            yield TextDelta(len(self._content) - 1, piece)

    def _call(self, name: str, arguments: Mapping[str, object]) -> Generator[ModelChunk]:
        call_id = f"toolu_{self._number}_{len(self._calls())}"
        yield from self._put(ToolUseBlock(id=call_id, name=name, input=arguments), "tool_use")

    def _put(self, block: AssistantBlock, kind: Literal["text", "thinking", "tool_use"]) -> Generator[ModelChunk]:
        self._content.append(block)
        yield BlockStarted(len(self._content) - 1, kind)

    def _calls(self) -> list[ToolUseBlock]:
        return [block for block in self._content if isinstance(block, ToolUseBlock)]

    def _last_call_id(self) -> str:
        return self._calls()[-1].id


def _step(request: ModelRequest) -> tuple[Part, ...]:
    """The parts of the answer that this request asks for."""
    if request.system.startswith(SUMMARY_ASKED):
        return (Part(say=_summary(request.messages)),)
    position, text = _latest_user_text(request.messages)
    if not request.tools and (judged := JUDGED_CALL.search(text)):
        return (_judgement(judged[1]),)
    if FENCE in text:
        script, index = parse_script(text), _assistant_messages(request.messages[position:])
    elif FENCE in request.system:
        script, index = parse_script(request.system), _assistant_messages(request.messages)
    else:
        return (Part(say=f"You said: {text}"),)
    if index >= len(script):
        return (Part(say="Done."),)
    step = script[index]
    return (step,) if isinstance(step, Part) else step


def _judgement(call: str) -> Part:
    """The judge's answer on a call."""
    word = JUDGEMENT.search(call)
    if word is not None and word[1] == "fail":
        return Part(fail="overloaded")
    return Part(say="ALLOW" if word is None else word[1])


def parse_script(text: str) -> tuple[Step, ...]:
    """The last script in `text`. Raises `ProviderRefused` naming what is wrong with it."""
    # The JSON decides where the script ends, so that its strings may hold fences of their own.
    source = text[text.rindex(FENCE) + len(FENCE) :].lstrip()
    try:
        value, _ = json.JSONDecoder().raw_decode(source)
        script = msgspec.convert(value, tuple[Step, ...])
        _check(script)
    except ValueError as error:
        raise ProviderRefused(f"The script cannot be played: {error}") from error
    return script


def _check(script: Sequence[Step]) -> None:
    if len(script) > SCRIPT_STEPS_MAX:
        raise ValueError(f"more than {SCRIPT_STEPS_MAX} steps")
    for step in script:
        for part in _flat((step,) if isinstance(step, Part) else step):
            if part.pieces < 1:
                raise ValueError("`pieces` must be at least 1")
            if unknown := part.usage.keys() - set(ModelUsage.__struct_fields__):
                raise ValueError(f"`usage` has no field {', '.join(sorted(unknown))}")


def _flat(parts: Iterable[Part]) -> Generator[Part]:
    for part in parts:
        yield part
        yield from _flat(part.parallel)
        yield from _flat(part.then)


def _latest_user_text(messages: Sequence[PromptMessage]) -> tuple[int, str]:
    """Where the latest user message with text is, and its text; tool results alone do not count."""
    for position in range(len(messages) - 1, -1, -1):
        message = messages[position]
        texts = [block.text for block in message.content if isinstance(block, TextBlock)]
        if message.role == "user" and texts:
            return position, texts[-1]  # messages that waited together are one; the last has the word
    return 0, ""


def _summary(messages: Sequence[PromptMessage]) -> str:
    """The lines of the transcript that say `remember:`, each once; a summary must say something."""
    _, text = _latest_user_text(messages)
    lines = dict.fromkeys(line.strip() for line in text.splitlines() if "remember:" in line and FENCE not in line)
    return "\n".join(lines) or "Nothing of note."


def _assistant_messages(messages: Sequence[PromptMessage]) -> int:
    return sum(message.role == "assistant" for message in messages)


def _pieces(text: str, count: int) -> Generator[str]:
    """Split into `count` parts of about the same length, fewer when there are not enough characters."""
    count = min(count, len(text))
    for start, end in pairwise(len(text) * number // count for number in range(count + 1)):
        yield text[start:end]


def _echo(request: ModelRequest, what: Literal["prompt", "system", "messages"]) -> str:
    if what == "system":
        return request.system
    if what == "messages":
        return msgspec.json.encode(request.messages).decode()
    results = [block for message in request.messages for block in message.content if isinstance(block, ToolResultBlock)]
    last = results[-1] if results else None
    digest = {
        "model": request.model,
        "messages": len(request.messages),
        "roles": [message.role for message in request.messages],
        "tools": [tool.name for tool in request.tools],
        "system_chars": len(request.system),
        "effort": request.effort,
        "speed": request.speed,
        "attempt": request.attempt,
        "last_result": _result_text(last) if last else None,
        "last_result_is_error": last.is_error if last else None,
    }
    return msgspec.json.encode(digest).decode()


def _result_text(result: ToolResultBlock) -> str:
    return "\n".join(block.text for block in result.content if isinstance(block, TextBlock))


def _usage(request: ModelRequest, content: Sequence[AssistantBlock], given: Mapping[str, int]) -> ModelUsage:
    """About four characters are a token, unless the script says otherwise."""
    prompt = len(request.system) + len(msgspec.json.encode((request.messages, request.tools)))
    usage = {"input_tokens": prompt // 4, "output_tokens": len(msgspec.json.encode(content)) // 4, **given}
    return ModelUsage(**cast("Mapping[str, int]", usage))
