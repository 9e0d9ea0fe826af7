"""What operators see of a harness: series for Prometheus, and a trace of each turn with its requests and tool calls.

Nothing here decides anything, and nothing depends on it. Labels have few values: a model that the catalogue does not
know is `other`, and so is a tool that is not built in. Contents go into spans only where the tracer allows it, and
into series never.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Collection, Generator, Mapping
from contextlib import AbstractContextManager, aclosing, contextmanager, nullcontext

import anyio
import msgspec
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from corral.domain.inference import ModelChunk, ModelRequest, ModelResponse, ModelUsage
from corral.domain.session import Session
from corral.errors import CorralError
from corral.interfaces.provider import Provider
from corral.interfaces.trace import Attributes, Span, Tracer

MODEL_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600)
TOOL_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 600, 3_600)
TURN_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1_800, 3_600)
CONTENT_CHARACTERS_MAX = 32_768
"""Of one attribute that holds content."""
TOKENS: Mapping[str, Callable[[ModelUsage], int]] = {
    "input": lambda usage: usage.input_tokens,
    "output": lambda usage: usage.output_tokens,
    "cache_read": lambda usage: usage.cache_read_input_tokens,
    "cache_write": lambda usage: usage.cache_creation_5m_input_tokens + usage.cache_creation_1h_input_tokens,
}


class _NoSpan:
    """A span that nobody reads."""

    def note(self, attributes: Attributes) -> None:
        """Nothing."""

    def fail(self, kind: str) -> None:
        """Nothing."""


class Watch:
    """Counts what a harness does, and traces it if there is a tracer."""

    def __init__(
        self,
        registry: CollectorRegistry | None = None,
        tracer: Tracer | None = None,
        *,
        knows_model: Callable[[str], bool] = lambda model: False,
        tools: Collection[str] = (),
    ) -> None:
        registry = registry or CollectorRegistry()
        self._tracer, self._knows_model, self._tools = tracer, knows_model, frozenset(tools)
        self._running = Gauge("corral_sessions_running", "Sessions that are being advanced.", registry=registry)
        self._turns = Counter("corral_turns", "Turns that came to an end here.", ("outcome",), registry=registry)
        self._turn_seconds = Histogram(
            "corral_turn_seconds", "Time of turns, waiting included.", buckets=TURN_SECONDS, registry=registry
        )
        self._requests = Counter(
            "corral_model_requests", "Requests to models.", ("model", "outcome"), registry=registry
        )
        self._request_seconds = Histogram(
            "corral_model_request_seconds",
            "Time to the whole answer.",
            ("model",),
            buckets=MODEL_SECONDS,
            registry=registry,
        )
        self._first_seconds = Histogram(
            "corral_model_first_chunk_seconds",
            "Time until something came.",
            ("model",),
            buckets=MODEL_SECONDS,
            registry=registry,
        )
        self._retries = Counter("corral_model_retries", "Requests made anew.", ("model",), registry=registry)
        self._tokens = Counter("corral_model_tokens", "Tokens by kind.", ("model", "kind"), registry=registry)
        self._calls = Counter("corral_tool_calls", "Calls of tools.", ("tool", "outcome"), registry=registry)
        self._call_seconds = Histogram(
            "corral_tool_call_seconds",
            "Time of calls, a sandbox that is made first included.",
            ("tool",),
            buckets=TOOL_SECONDS,
            registry=registry,
        )
        self._compactions = Counter(
            "corral_compactions", "Conversations condensed, or not.", ("outcome",), registry=registry
        )

    @contextmanager
    def turn(self, session: Session, *, inherited: bool) -> Generator[None]:
        """A session is advanced inside."""
        began = time.perf_counter()
        attributes = {
            "gen_ai.operation.name": "invoke_agent",
            "gen_ai.agent.id": session.agent.id,
            "gen_ai.conversation.id": session.id,
            "session.id": session.id,
            "corral.inherited": inherited,
        }
        tracer, outcome = self._tracer, "cancelled"
        with self._running.track_inprogress():
            try:
                with tracer.trace("turn", attributes) if tracer else _untraced() as span:
                    try:
                        yield
                        outcome = "rested"
                    except BaseException as error:
                        outcome = _outcome(error)
                        span.fail(outcome)
                        raise
            finally:
                self._turns.labels(outcome).inc()
                self._turn_seconds.observe(time.perf_counter() - began)

    def compacted(self, outcome: str) -> None:
        """A conversation was condensed (`ok`), or could not be, because of this error."""
        self._compactions.labels(outcome).inc()

    @contextmanager
    def tool_call(
        self, call_id: str, name: str, arguments: object, *, server: str | None = None
    ) -> Generator[SeenCall]:
        """A tool is called inside; `server` is the MCP server that has it."""
        tool = "mcp" if server is not None else name if name in self._tools else "other"
        attributes = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": name, "gen_ai.tool.call.id": call_id}
        if server is not None:
            attributes["mcp.server"] = server
        began = time.perf_counter()
        with self._step(f"execute_tool {tool}", attributes) as span:
            seen = SeenCall(span, with_content=self._content)
            if self._content:
                span.note({"gen_ai.tool.call.arguments": _text(arguments)})
            try:
                yield seen
            except BaseException as error:
                seen.outcome = _outcome(error)
                span.fail(seen.outcome)
                raise
            finally:
                self._calls.labels(tool, seen.outcome).inc()
                self._call_seconds.labels(tool).observe(time.perf_counter() - began)

    @contextmanager
    def model_request(self, request: ModelRequest) -> Generator[SeenRequest]:
        """A model is asked inside."""
        model = request.model if self._knows_model(request.model) else "other"
        if request.attempt:
            self._retries.labels(model).inc()
        attributes: dict[str, str | int] = {"gen_ai.operation.name": "chat", "gen_ai.request.model": request.model}
        if request.attempt:
            attributes["corral.attempt"] = request.attempt
        with self._step(f"chat {request.model}", attributes) as span:
            seen = SeenRequest(span, with_content=self._content)
            if self._content:
                span.note({"gen_ai.input.messages": _text(request.messages)})
            try:
                yield seen
            except BaseException as error:
                # Whoever has the answer stops reading, which ends a generator by an exception.
                if seen.response is None:
                    seen.outcome = _outcome(error)
                    span.fail(seen.outcome)
                raise
            finally:
                self._count(model, request, seen)

    def _count(self, model: str, request: ModelRequest, seen: SeenRequest) -> None:
        self._requests.labels(model, seen.outcome).inc()
        self._request_seconds.labels(model).observe(seen.seconds())
        if seen.first_seconds is not None:
            self._first_seconds.labels(model).observe(seen.first_seconds)
        for each in seen.response.used(request.model) if seen.response else ():
            label = each.model if self._knows_model(each.model) else "other"
            for kind, tokens in TOKENS.items():
                self._tokens.labels(label, kind).inc(tokens(each.usage))

    @property
    def _content(self) -> bool:
        return self._tracer is not None and self._tracer.content

    def _step(self, name: str, attributes: Attributes) -> AbstractContextManager[Span]:
        return self._tracer.step(name, attributes) if self._tracer else _untraced()


class SeenCall:
    """One tool call, as far as it has come."""

    def __init__(self, span: Span, *, with_content: bool) -> None:
        self._span, self._with_content = span, with_content
        self.outcome = "ok"

    def answered(self, content: object, *, is_error: bool) -> None:
        """It has a result."""
        if is_error:
            self.outcome = "error"
            self._span.fail("tool_error")
        if self._with_content:
            self._span.note({"gen_ai.tool.call.result": _text(content)})


class SeenRequest:
    """One request to a model, as far as it has come."""

    def __init__(self, span: Span, *, with_content: bool) -> None:
        self._span, self._with_content = span, with_content
        self._began = time.perf_counter()
        self._ended: float | None = None
        self.first_seconds: float | None = None
        self.response: ModelResponse | None = None
        self.outcome = "ok"

    def chunk(self, chunk: ModelChunk) -> None:
        """Something came."""
        if self.first_seconds is None:
            self.first_seconds = self.seconds()
        if isinstance(chunk, ModelResponse):
            self._ended = time.perf_counter()
            self.response = chunk
            self._note(chunk)

    def seconds(self) -> float:
        """From the beginning to the answer, or to now."""
        return (self._ended or time.perf_counter()) - self._began

    def _note(self, response: ModelResponse) -> None:
        usage = response.usage
        attributes: dict[str, str | int] = {
            "gen_ai.response.finish_reason": response.stop_reason,
            "gen_ai.usage.input_tokens": usage.input_tokens,
            "gen_ai.usage.output_tokens": usage.output_tokens,
            "gen_ai.usage.cache_read.input_tokens": usage.cache_read_input_tokens,
            "gen_ai.usage.cache_creation.input_tokens": TOKENS["cache_write"](usage),
        }
        if response.model:
            attributes["gen_ai.response.model"] = response.model
        if self._with_content:
            attributes["gen_ai.output.messages"] = _text(response.content)
        self._span.note(attributes)


class WatchedProvider:
    """A provider whose requests are counted and traced."""

    def __init__(self, provider: Provider, watch: Watch) -> None:
        self._provider, self._watch = provider, watch

    async def stream(self, request: ModelRequest) -> AsyncGenerator[ModelChunk]:
        """See `Provider.stream`."""
        with self._watch.model_request(request) as seen:
            async with aclosing(self._provider.stream(request)) as chunks:
                async for chunk in chunks:
                    seen.chunk(chunk)
                    yield chunk

    async def close(self) -> None:
        """See `Provider.close`."""
        await self._provider.close()


UNWATCHED = Watch()
"""Counts for nobody."""


def _untraced() -> AbstractContextManager[Span]:
    return nullcontext(_NoSpan())


def _outcome(error: BaseException) -> str:
    """A label for what ended something: few values, and never a text."""
    if isinstance(error, CorralError):
        return type(error).__name__
    return "cancelled" if isinstance(error, (GeneratorExit, anyio.get_cancelled_exc_class())) else "bug"


def _text(content: object) -> str:
    return msgspec.json.encode(content).decode()[:CONTENT_CHARACTERS_MAX]
