"""Traces by OpenTelemetry, sent over HTTP to where the standard OTEL_* variables say.

Spans leave in batches from a thread of their own; a collector that is slow or gone costs spans, never a turn. What is
in a span is the business of whoever makes it (`harness/watching.py`). The packages come with `corral[otel]`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
from opentelemetry.context import Context
from opentelemetry.trace import Span as OtelSpan
from opentelemetry.trace import SpanKind, StatusCode

from corral.config_sections import OtelSettings
from corral.errors import MachineUnfit
from corral.interfaces.trace import Attributes, Tracer

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

FLUSH_SECONDS_MAX = 5.0
SERVICE = "corral"


class _Span:
    """A span of OpenTelemetry in the shape of `interfaces.trace.Span`."""

    def __init__(self, span: OtelSpan) -> None:
        self._span = span

    def note(self, attributes: Attributes) -> None:
        """See `Span`."""
        self._span.set_attributes(attributes)

    def fail(self, kind: str) -> None:
        """See `Span`."""
        self._span.set_attribute("error.type", kind)
        self._span.set_status(StatusCode.ERROR)


class OtelTracer:
    """Implements `interfaces.trace.Tracer`."""

    def __init__(self, provider: TracerProvider, *, content: bool) -> None:
        self._tracer = provider.get_tracer("corral")
        self._content = content

    @property
    def content(self) -> bool:
        """See `Tracer`."""
        return self._content

    @contextmanager
    def trace(self, name: str, attributes: Attributes) -> Generator[_Span]:
        """See `Tracer`."""
        # Exceptions are not recorded: their texts may hold what was said.
        with self._tracer.start_as_current_span(
            name, Context(), attributes=attributes, record_exception=False, set_status_on_exception=False
        ) as span:
            yield _Span(span)

    @contextmanager
    def step(self, name: str, attributes: Attributes) -> Generator[_Span]:
        """See `Tracer`."""
        kind = SpanKind.CLIENT if attributes.get("gen_ai.operation.name") == "chat" else SpanKind.INTERNAL
        span = self._tracer.start_span(name, kind=kind, attributes=attributes)
        try:
            yield _Span(span)
        finally:
            span.end()


@asynccontextmanager
async def open_tracer(settings: OtelSettings) -> AsyncGenerator[Tracer | None]:
    """A tracer, or None when no traces are asked for. What waits is sent at the end, for a few seconds at most.

    Raises `MachineUnfit` when traces are asked for and the packages are not there.
    """
    if not settings.traces:
        yield None
        return
    provider = _provider()
    try:
        yield OtelTracer(provider, content=settings.content)
    finally:
        with anyio.move_on_after(FLUSH_SECONDS_MAX, shield=True):
            await anyio.to_thread.run_sync(provider.shutdown, abandon_on_cancel=True)


def _provider() -> TracerProvider:
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise MachineUnfit(
            "OTEL_* asks for traces, which need `corral[otel]`; install it, or set OTEL_SDK_DISABLED=true."
        ) from error
    resource = Resource({SERVICE_NAME: SERVICE}).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider
