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


def with_breakpoint(body: Body) -> Body:
    """The body with the breakpoint behind tools and system prompt."""
    if "system" in body:
        return {**body, "system": [{"type": "text", "text": body["system"], **BREAKPOINT}]}
    if body.get("tools"):
        return {**body, "tools": last_marked(cast(Sequence[Body], body["tools"]))}
    return body


def request_ends(roles: Sequence[str]) -> Iterator[int]:
    """Where this request ends and where the one before it ended: the last user messages around the last answer."""
    users = (position for position in range(len(roles) - 1, -1, -1) if roles[position] == "user")
    answers = (position for position in range(len(roles) - 1, -1, -1) if roles[position] == "assistant")
    last = next(users, None)
    if last is None:
        return
    yield last
    answer = next(answers, -1)
    before = next((position for position in users if position < answer), None)
    if before is not None:
        yield before


def last_marked(blocks: Sequence[Body]) -> list[Body]:
    """The blocks, with a breakpoint behind the last."""
    return [*blocks[:-1], {**blocks[-1], **BREAKPOINT}]
