"""Imports that come with an optional extra, made when a backend that needs them is chosen."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from corral.errors import MachineUnfit


@contextmanager
def needing(extra: str) -> Generator[None]:
    """Around such an import. Raises `MachineUnfit`, naming the extra, when it is not installed."""
    try:
        yield
    except ImportError as error:
        raise MachineUnfit(f"{error.name} is not installed; install `corral[{extra}]`.") from error
