"""What operators see of a store: how long commits take, how much they take at once, and what waits for them.

The writers of all databases share these series. They count once for each commit, never for each event.
"""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Gauge, Histogram

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
OPERATIONS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000)


class StoreSeries:
    """Series of one store, for Prometheus."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        registry = registry or CollectorRegistry()
        self._seconds = Histogram(
            "corral_store_commit_seconds", "Time to commit a batch.", buckets=SECONDS, registry=registry
        )
        self._operations = Histogram(
            "corral_store_commit_operations", "Operations in a batch.", buckets=OPERATIONS, registry=registry
        )
        self._waiting = Gauge("corral_store_writes_waiting", "Operations not yet committed.", registry=registry)

    def watch(self, waiting: Callable[[], int]) -> None:
        """Ask `waiting` for the operations that are not committed yet, whenever somebody looks."""
        self._waiting.set_function(waiting)

    def committed(self, operations: int, seconds: float) -> None:
        """A batch is durable, or failed. From any thread."""
        self._seconds.observe(seconds)
        self._operations.observe(operations)
