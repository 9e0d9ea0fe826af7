"""What time it is."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol


class Clock(Protocol):
    """The only source of time, so that tests can move it."""

    def now(self) -> datetime:
        """The current moment, timezone-aware, in UTC."""
        ...
