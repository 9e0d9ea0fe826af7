"""The URLs that a conversation has shown, and where: what `url_sources` of `web_fetch` chooses from.

Built with the context, event by event, so asking costs nothing that grows with the history. Only digests are kept, and
of the most recent URLs only: an agent that follows a link follows one that it has seen lately.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from hashlib import blake2b

from corral.domain.content import ResultBlock, SearchResultBlock, TextBlock
from corral.domain.url import Url, urls_in
from corral.domain.web import Source

URLS_MAX = 4_096
"""Of one conversation."""
DIGEST_BYTES = 16


class ShownUrls:
    """See the module."""

    def __init__(self) -> None:
        self._sources: dict[bytes, frozenset[Source]] = {}

    def add(self, text: str, source: Source) -> None:
        """Take in a text that the model saw."""
        for url in urls_in(text):
            key = _digest(url)
            # Taken out and put back, so that the order is that of the last time each was shown.
            self._sources[key] = self._sources.pop(key, frozenset()) | {source}
            if len(self._sources) > URLS_MAX:
                del self._sources[next(iter(self._sources))]

    def add_blocks(self, blocks: Iterable[ResultBlock], source: Source) -> None:
        """Take in a tool's result."""
        for block in blocks:
            match block:
                case TextBlock():
                    self.add(block.text, source)
                case SearchResultBlock():
                    self.add(block.source, source)
                    for passage in block.content:
                        self.add(passage.text, source)
                case _:
                    pass

    def sources(self, url: Url) -> Collection[Source]:
        """Where this URL was shown."""
        return self._sources.get(_digest(str(url)), frozenset())


def _digest(url: str) -> bytes:
    return blake2b(url.encode(), digest_size=DIGEST_BYTES).digest()
