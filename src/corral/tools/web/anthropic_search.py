"""The search of Anthropic's API, for sessions on any model.

A small model is asked to search once and to say, with citations, what each page is about. Pages come sealed for that
model, so what a result says is what was cited and what the model said of it; pages that it did not cite have a title
only. A server that speaks the Messages API and has no search does not pass for one that found nothing.

Source: SDK types `web_search_tool_20250305_param`, `web_search_tool_result_block`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import msgspec

from corral.tools.web.failure import WebFailure
from corral.tools.web.searching import (
    NOT_SEARCHED,
    SEARCH_AND_SAY,
    TOKENS_MAX,
    Asker,
    Found,
    Search,
    of_kinds,
    place_of,
)

URL = "https://api.anthropic.com"
VERSION = "2023-06-01"
TOOL = "web_search_20250305"


class _Citation(msgspec.Struct):
    url: str = ""
    cited_text: str | None = None


class _Text(msgspec.Struct, tag_field="type", tag="text"):
    text: str = ""
    citations: list[_Citation] | None = None


class _Page(msgspec.Struct, tag_field="type", tag="web_search_result"):
    url: str = ""
    title: str | None = None


class _Refused(msgspec.Struct, tag_field="type", tag="web_search_tool_result_error"):
    error_code: str = ""


class _Results(msgspec.Struct, tag_field="type", tag="web_search_tool_result"):
    content: list[_Page] | _Refused


class _Answer(msgspec.Struct):
    content: list[msgspec.Raw] = []


_Block: TypeAlias = _Text | _Results
KINDS = frozenset({"text", "web_search_tool_result"})


class AnthropicSearch:
    """See `SearchEngine`."""

    def __init__(self, headers: Mapping[str, str], model: str, url: str | None, seconds_max: float) -> None:
        """`headers` say who asks."""
        self._headers, self._model = {**headers, "anthropic-version": VERSION}, model
        self._url = f"{(url or URL).rstrip('/')}/v1/messages"
        self._asker = Asker("anthropic", seconds_max)

    async def search(self, search: Search) -> Sequence[Found]:
        """See `SearchEngine.search`."""
        tool: dict[str, object] = {"type": TOOL, "name": "web_search", "max_uses": 1}
        if search.allowed is not None:
            tool["allowed_domains"] = list(search.allowed)
        if search.blocked is not None:
            tool["blocked_domains"] = list(search.blocked)
        if search.location is not None:
            tool["user_location"] = place_of(search.location)
        body: dict[str, object] = {
            "model": self._model,
            "max_tokens": TOKENS_MAX,
            "messages": [{"role": "user", "content": SEARCH_AND_SAY.format(query=search.query)}],
            "tools": [tool],
        }
        answer = await self._asker.ask(_Answer, self._url, headers=self._headers, body=body)
        return _found(self._asker.parsed(_blocks, answer))

    async def close(self) -> None:
        """See `SearchEngine.close`."""
        await self._asker.close()


def _blocks(answer: _Answer) -> list[_Block]:
    return [msgspec.json.decode(raw, type=_Block) for raw in of_kinds(answer.content, KINDS)]


def _found(blocks: Sequence[_Block]) -> list[Found]:
    pages: dict[str, str] = {}
    refused: list[str] = []
    said: defaultdict[str, dict[str, None]] = defaultdict(dict)
    searched = False
    for block in blocks:
        match block:
            case _Results(content=_Refused(error_code=code)):
                refused.append(code)
            case _Results(content=list(content)):
                searched = True
                pages |= {page.url: page.title or "" for page in content}
            case _Text():
                for citation in block.citations or ():
                    said[citation.url] |= dict.fromkeys(filter(None, (block.text.strip(), citation.cited_text)))
            case _:
                pass
    if not searched and refused:
        code = "too_many_requests" if "too_many_requests" in refused else "unavailable"
        raise WebFailure(code, "The model provider's search failed.")
    if not searched:
        raise WebFailure("unavailable", NOT_SEARCHED)
    return [Found(url, title, "\n".join(said[url])) for url, title in pages.items()]
