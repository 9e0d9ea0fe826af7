"""A collector of traces as OpenTelemetry has them: a real HTTP server that decodes what it is sent."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span as WireSpan


class Span(NamedTuple):
    """One span that arrived."""

    name: str
    trace: str
    id: str
    parent: str
    failed: bool
    attributes: dict[str, str]
    seconds: float


class Collector:
    """What has arrived so far."""

    def __init__(self) -> None:
        self.raw = b""
        self.spans: list[Span] = []
        self.resources: list[dict[str, str]] = []
        self.url = ""

    def take(self, path: str, body: bytes) -> None:
        assert path == "/v1/traces", path
        self.raw += body
        request = ExportTraceServiceRequest()
        request.ParseFromString(body)
        for resource in request.resource_spans:
            self.resources.append({each.key: each.value.string_value for each in resource.resource.attributes})
            self.spans += [_read(span) for scope in resource.scope_spans for span in scope.spans]

    def named(self, name: str) -> list[Span]:
        return [span for span in self.spans if span.name == name]


def _read(span: WireSpan) -> Span:
    attributes: dict[str, str] = {}
    for each in span.attributes:
        kind = each.value.WhichOneof("value")
        attributes[each.key] = str(getattr(each.value, kind)) if kind else ""
    seconds = (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9
    failed = span.status.code == 2
    return Span(
        span.name, span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex(), failed, attributes, seconds
    )


@contextmanager
def collecting() -> Generator[Collector]:
    """A collector that listens on a free port while open."""
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            collector.take(self.path, body)
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(200)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        collector.url = f"http://127.0.0.1:{server.server_port}"
        os_thread = threading.Thread(target=server.serve_forever, daemon=True)
        os_thread.start()
        try:
            yield collector
        finally:
            server.shutdown()
            os_thread.join(30)
