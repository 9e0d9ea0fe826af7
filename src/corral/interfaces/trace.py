"""Where time goes, for operators."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Protocol, TypeAlias

Attributes: TypeAlias = Mapping[str, str | int | float | bool]
"""What is noted of a span, by dotted names. Contents only where `Tracer.content` allows them; never secrets."""


class Span(Protocol):
    """Something that takes time, as a trace shows it."""

    def note(self, attributes: Attributes) -> None:
        """Add to what is known of it."""
        ...

    def fail(self, kind: str) -> None:
        """It failed; `kind` is the name of the error, not its text."""
        ...


class Tracer(Protocol):
    """Takes down spans. Cheap, never blocks, and never raises."""

    @property
    def content(self) -> bool:
        """Whether spans may hold what was said."""
        ...

    def trace(self, name: str, attributes: Attributes) -> AbstractContextManager[Span]:
        """A trace of its own; steps that begin inside, in tasks that are started there too, are under it."""
        ...

    def step(self, name: str, attributes: Attributes) -> AbstractContextManager[Span]:
        """A span under the trace that is open here. May be left in another task than it was entered in."""
        ...
