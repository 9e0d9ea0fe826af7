"""The search of OpenAI's Responses API, for sessions on any model.

A small model is asked to search and to say what each page is about; what it says before a citation is what that page's
result says. Pages that it saw and did not cite are results without a text. A server that speaks the Responses API and
has no search does not pass for one that found nothing.

Source: SDK types `web_search_tool_param`, `response_function_web_search`, `response_output_text`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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

URL = "https://api.openai.com/v1"
SOURCES = "web_search_call.action.sources"
LINK_BEGINS = " \t\n(["
"""What stands around a citation that is written as a link."""


class _Source(msgspec.Struct):
    url: str = ""


class _Action(msgspec.Struct):
    sources: list[_Source] | None = None


class _Call(msgspec.Struct, tag_field="type", tag="web_search_call"):
    status: str = ""
    action: _Action = msgspec.field(default_factory=_Action)


class _Annotation(msgspec.Struct):
    type: str = ""
    start_index: int = 0
    end_index: int = 0
    url: str = ""
    title: str | None = None


class _Part(msgspec.Struct):
    text: str = ""
    annotations: list[_Annotation] = []


class _Message(msgspec.Struct, tag_field="type", tag="message"):
    content: list[_Part] = []


class _Answer(msgspec.Struct):
    output: list[msgspec.Raw] = []


_Item: TypeAlias = _Call | _Message
KINDS = frozenset({"web_search_call", "message"})


class OpenAISearch:
    """See `SearchEngine`."""

    def __init__(self, key: str, model: str, url: str | None, seconds_max: float) -> None:
        self._key, self._model, self._url = key, model, f"{(url or URL).rstrip('/')}/responses"
        self._asker = Asker("openai", seconds_max)

    async def search(self, search: Search) -> Sequence[Found]:
        """See `SearchEngine.search`."""
        tool: dict[str, object] = {"type": "web_search"}
        if search.allowed is not None:
            # Without paths, and there is no list of blocked ones; what comes is held to the lists in any case.
            tool["filters"] = {"allowed_domains": sorted({each.partition("/")[0] for each in search.allowed})}
        if search.location is not None:
            tool["user_location"] = place_of(search.location)
        body: dict[str, object] = {
            "model": self._model,
            "max_output_tokens": TOKENS_MAX,
            "input": SEARCH_AND_SAY.format(query=search.query),
            "tools": [tool],
            "tool_choice": "required",
            "include": [SOURCES],
            "store": False,
        }
        headers = {"authorization": f"Bearer {self._key}"}
        answer = await self._asker.ask(_Answer, self._url, headers=headers, body=body)
        return _found(self._asker.parsed(_items, answer))

    async def close(self) -> None:
        """See `SearchEngine.close`."""
        await self._asker.close()


def _items(answer: _Answer) -> list[_Item]:
    return [msgspec.json.decode(raw, type=_Item) for raw in of_kinds(answer.output, KINDS)]


def _found(items: Sequence[_Item]) -> list[Found]:
    calls = [item for item in items if isinstance(item, _Call)]
    if not any(call.status == "completed" for call in calls):
        raise WebFailure("unavailable", "The model provider's search failed." if calls else NOT_SEARCHED)
    cited = [each for item in items if isinstance(item, _Message) for part in item.content for each in _cited(part)]
    seen = {found.url for found in cited}
    sources = [source.url for call in calls for source in call.action.sources or ()]
    return [*cited, *(Found(url, "", "") for url in dict.fromkeys(sources) if url not in seen)]


def _cited(part: _Part) -> Iterator[Found]:
    """What stands before each citation, from the end of the one before or the beginning of the line."""
    before = 0
    for note in sorted(part.annotations, key=lambda each: each.start_index):
        if note.type == "url_citation":
            passage = part.text[before : note.start_index].rstrip(LINK_BEGINS).rpartition("\n")[2]
            yield Found(note.url, note.title or "", passage.strip(f"{LINK_BEGINS})]"))
            before = note.end_index
