"""`GET /metrics`: what the API does, for Prometheus.

Labels are route templates, never paths, so that ids do not grow the series without end.
Other parts may put their own series into the same registry (`Services.registry`).
"""

from __future__ import annotations

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.responses import Response

from corral.api.call import Call


class Metrics:
    """The API's own series."""

    def __init__(self, registry: CollectorRegistry) -> None:
        labels = ("method", "route", "status")
        self.requests = Counter("corral_http_requests", "Requests answered.", labels, registry=registry)
        self.seconds = Histogram(
            "corral_http_request_seconds", "Time to answer, streams left out.", ("method", "route"), registry=registry
        )
        self.streams = Gauge("corral_http_streams_open", "Event streams open now.", registry=registry)


async def show(call: Call) -> Response:
    """All series of this process."""
    return Response(generate_latest(call.services.registry), media_type=CONTENT_TYPE_LATEST)
