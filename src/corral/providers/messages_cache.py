"""Where a Messages API server may cache the prompt: breakpoints, put in as late as possible.

One stands behind tools and system prompt, which are the same for a whole session. Two move with the conversation: at
its end, so that the next request finds everything up to here, and at the end of the request before, in case an answer
had more blocks than a server looks back over. That is three of the four that the API allows. A breakpoint is not part
of what is compared, so moving it changes no prefix.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import cast

Body = dict[str, object]

BREAKPOINT: Mapping[str, object] = {"cache_control": {"type": "ephemeral"}}


def with_breakpoints(body: Body) -> Body:
    """The body with its breakpoints; messages that have none are shared, not copied."""
    marked = dict(body)
    if "system" in body:
        marked["system"] = [{"type": "text", "text": body["system"], **BREAKPOINT}]
    elif body.get("tools"):
        marked["tools"] = _last_marked(cast(Sequence[Body], body["tools"]))
    messages = list(cast(Sequence[Body], body["messages"]))
    for position in _request_ends(messages):
        content = cast(Sequence[Body], messages[position]["content"])
        messages[position] = {**messages[position], "content": _last_marked(content)}
    marked["messages"] = messages
    return marked


def _request_ends(messages: Sequence[Body]) -> Iterator[int]:
    """Where this request ends and where the one before it ended: the last user messages around the last answer."""
    users = (position for position in range(len(messages) - 1, -1, -1) if messages[position]["role"] == "user")
    answers = [position for position, message in enumerate(messages) if message["role"] == "assistant"]
    last = next(users, None)
    if last is None:
        return
    yield last
    before = next((position for position in users if answers and position < answers[-1]), None)
    if before is not None:
        yield before


def _last_marked(blocks: Sequence[Body]) -> list[Body]:
    return [*blocks[:-1], {**blocks[-1], **BREAKPOINT}]
