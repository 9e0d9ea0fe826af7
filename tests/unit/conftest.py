"""Fixtures of the tests of single parts."""

from __future__ import annotations

import pytest

from tests.counterpart import Counterpart


@pytest.fixture
def server(counterpart: Counterpart) -> Counterpart:
    """The one server that parts here talk to."""
    return counterpart
