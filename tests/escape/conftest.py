"""Counts attacks: how many were tried and how many were blocked, said in one line at the end of a run."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager

import pytest

Attack = Callable[[str], AbstractContextManager[None]]


@pytest.fixture
def attack(record_property: Callable[[str, object], None]) -> Attack:
    """`with attack("name"):` is one attack; it was blocked if nothing is raised."""

    @contextmanager
    def one(name: str) -> Generator[None]:
        record_property("attack tried", name)
        yield
        record_property("attack blocked", name)

    return one


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    counts = {"attack tried": 0, "attack blocked": 0}
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, _ in getattr(report, "user_properties", ()):
                if name in counts and getattr(report, "when", "") == "call":
                    counts[name] += 1
    if counts["attack tried"]:
        terminalreporter.write_line(f"attacks {counts['attack tried']}, blocked {counts['attack blocked']}")
