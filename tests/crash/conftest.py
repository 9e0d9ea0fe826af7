"""The crash tests kill the same real server that the end-to-end tests run against, and count what that cost."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.e2e.conftest import server

__all__ = ["server"]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what was killed, and what came of it."""
    noted = [
        (name, str(value))
        for reports in terminalreporter.stats.values()
        for report in reports
        if getattr(report, "when", "") == "call"
        for name, value in getattr(report, "user_properties", ())
    ]
    killed = Counter(value for name, value in noted if name == "killed")
    counts = Counter(name for name, _ in noted)
    seeds = [value for name, value in noted if name == "kill seed"]
    if seeds:
        kinds = ", ".join(f"{name} {times}" for name, times in sorted(killed.items()))
        line = f"kills {counts['killed']}, lost {counts['lost']}, repeated {counts['repeated']}"
        terminalreporter.write_line(f"{line} ({kinds}; seed {', '.join(seeds)})")
