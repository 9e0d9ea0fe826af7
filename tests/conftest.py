"""Fixtures that every kind of test shares, and the account of the features that the tests cover."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import postgres_server, temporal_server
from tests.counterpart import Counterpart
from tests.places import open_place
from tests.requirements import REQUIREMENTS


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Corral runs on asyncio (uvloop); async tests are marked `@pytest.mark.anyio`."""
    return "asyncio"


@pytest.fixture
def root() -> Iterator[Path]:
    """A directory for a server with sandboxes."""
    with open_place() as place:
        yield place


@pytest.fixture(scope="session")
def _counterpart() -> Iterator[Counterpart]:
    counterpart = Counterpart()
    yield counterpart
    counterpart.stop()


@pytest.fixture
def counterpart(_counterpart: Counterpart) -> Counterpart:
    """A model server that answers what the test tells it to."""
    _counterpart.forget()
    return _counterpart


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Note beside each test what it covers, so that its report knows."""
    for item in items:
        for marker in item.iter_markers("requirement"):
            if unknown := set(marker.args) - REQUIREMENTS.keys():
                raise pytest.UsageError(f"{item.nodeid} names unknown requirements: {', '.join(sorted(unknown))}")
            item.user_properties += [("requirement", requirement) for requirement in marker.args]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """After a full run, say how many features have a passing test and none that fails."""
    if ran := _stores(terminalreporter):
        terminalreporter.write_line(f"stores: {', '.join(ran)}")
    if ran := _engines(terminalreporter):
        terminalreporter.write_line(f"engines: {', '.join(ran)}")
    if config.args_source is not pytest.Config.ArgsSource.TESTPATHS or config.option.keyword or config.option.markexpr:
        return
    passed, failed = (_covered(terminalreporter, *kinds) for kinds in (("passed",), ("failed", "error")))
    built = {name for name, requirement in REQUIREMENTS.items() if not requirement.deferred}
    terminalreporter.write_line(
        f"requirements: {len(passed - failed)} covered of {len(built)}, {len(REQUIREMENTS) - len(built)} deferred"
    )
    if missing := built - (passed - failed):
        terminalreporter.write_line(f"not covered: {', '.join(sorted(missing))}")


def _stores(reporter: pytest.TerminalReporter) -> list[str]:
    """The stores on which tests of the storage contract passed; PostgreSQL's with its version."""
    passed = " ".join(report.nodeid for report in reporter.getreports("passed") if "test_storage" in report.nodeid)
    ran = [backend for backend in ("ephemeral", "sqlite", "postgresql") if f"[{backend}" in passed]
    return [f"postgresql {asyncio.run(postgres_server.version())}" if name == "postgresql" else name for name in ran]


def _engines(reporter: pytest.TerminalReporter) -> list[str]:
    """The engines on which tests of their contract passed; Temporal's with its server's version."""
    passed = " ".join(report.nodeid for report in reporter.getreports("passed") if "test_engines" in report.nodeid)
    ran = [backend for backend in ("local", "temporal") if f"[{backend}" in passed]
    return [f"temporal {temporal_server.version()}" if name == "temporal" else name for name in ran]


def _covered(reporter: pytest.TerminalReporter, *kinds: str) -> set[str]:
    """Requirements that tests with these outcomes name."""
    reports = [report for kind in kinds for report in reporter.getreports(kind)]
    return {str(value) for report in reports for name, value in report.user_properties if name == "requirement"}
