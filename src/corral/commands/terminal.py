"""What commands print with.

Names, errors and what agents say come from anywhere, and a terminal does what it reads: it changes its title, its
clipboard, or what was shown before. So nothing but rich itself sends it control characters.
"""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from corral.domain.visible import visible


class Terminal(Console):
    """A console of rich's that shows control characters rather than to send them."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """See `Console.render`."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=visible(segment.text))
