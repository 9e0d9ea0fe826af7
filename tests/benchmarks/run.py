"""`make bench`: runs every benchmark and prints one table.

Claims are ratios and medians measured in one run, because machines are noisy. Nothing here asserts: a benchmark that
gets slower is for a reader to see, and tests must not depend on speed.
"""

from __future__ import annotations

import importlib
import logging
import sys
from pathlib import Path

import structlog
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[2]))

BENCHMARKS = (
    "store_appends",
    "postgres_store",
    "page_reads",
    "turn_latency",
    "history_cost",
    "cache_share",
    "http_cost",
    "streams",
    "sandbox_latency",
    "proxy_cost",
    "docker_latency",
    "mcp_cost",
    "web_fetch",
    "checkpoint",
    "idle_sessions",
    "recovery",
    "cluster",
)


def main() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    out = Console(highlight=False)
    wanted = sys.argv[1:] or BENCHMARKS
    for name in wanted:
        benchmark = importlib.import_module(f"tests.benchmarks.{name}")
        out.print(f"[dim]running {name} …[/]")
        table = Table("measure", "value", "unit", "note", title=benchmark.NAME, title_justify="left", box=None)
        for label, value, unit, note in benchmark.run():
            table.add_row(label, f"{value:,.2f}" if value < 100 else f"{value:,.0f}", unit, note)
        out.print(table)
        out.print()


if __name__ == "__main__":
    main()
