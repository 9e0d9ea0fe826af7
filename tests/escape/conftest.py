"""Says at the end of a run how many attacks were tried and how many were blocked."""

from __future__ import annotations

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, value in getattr(report, "user_properties", ()):
                if name == "attacks" and getattr(report, "when", "") == "call":
                    terminalreporter.write_line(str(value))
