"""What operators see of sandboxes: how many run, how they came up and how fast, and what was put away.

All backends share these series, which stand beside those of the way out (`egress/outlet.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Start:
    """How a sandbox came up."""

    warm = False


class SandboxSeries:
    """Series of one backend, for Prometheus."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._running = Gauge("corral_sandboxes_running", "Sandboxes in use by this process.", registry=registry)
        self._warm = Gauge("corral_sandboxes_warm", "Blank sandboxes that wait for sessions.", registry=registry)
        self._starts = Counter(
            "corral_sandbox_starts",
            "Sandboxes made (cold), taken blank (warm), found running after a restart (found), or that did not start "
            "(failed).",
            ("outcome",),
            registry=registry,
        )
        self._seconds = Histogram(
            "corral_sandbox_start_seconds",
            "Time of cold starts, files that are brought back included, packages not.",
            buckets=SECONDS,
            registry=registry,
        )
        self._checkpoints = Counter(
            "corral_sandbox_checkpoints", "What became of the files of sandboxes.", ("outcome",), registry=registry
        )

    def watch(self, running: Callable[[], int]) -> None:
        """Ask `running` for the sandboxes in use, whenever somebody looks."""
        self._running.set_function(running)

    def watch_warm(self, warm: Callable[[], int]) -> None:
        """Ask `warm` for the blank ones, too."""
        self._warm.set_function(warm)

    def found(self) -> None:
        """A sandbox that an earlier server had made goes on."""
        self._starts.labels("found").inc()

    @contextmanager
    def starting(self) -> Generator[Start]:
        """A start happens inside; it failed if this raises."""
        began, start = time.perf_counter(), Start()
        try:
            yield start
        except BaseException:
            self._starts.labels("failed").inc()
            raise
        self._starts.labels("warm" if start.warm else "cold").inc()
        if not start.warm:
            self._seconds.observe(time.perf_counter() - began)

    def checkpoint(self, outcome: Literal["put_away", "brought_back", "expired", "failed"]) -> None:
        """The files of a sandbox went to the blob store, or came back, or grew too old, or could not be put away."""
        self._checkpoints.labels(outcome).inc()
