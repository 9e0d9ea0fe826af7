"""Fixtures that every kind of test shares."""

from __future__ import annotations

import pytest


@pytest.fixture
def anyio_backend() -> str:
    """Corral runs on asyncio (uvloop); async tests are marked `@pytest.mark.anyio`."""
    return "asyncio"
