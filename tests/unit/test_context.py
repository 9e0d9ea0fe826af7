"""The prompt as a fold over the log: the same log gives the same bytes, and between summaries only grows at its end."""

from __future__ import annotations

from itertools import pairwise

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from corral.domain import event as ev
from corral.domain.content import AssistantBlock, TextBlock, ToolResultBlock, ToolUseBlock
from corral.domain.ids import new_id
from corral.domain.query import LoggedEvent
from corral.harness.context import Condensed, Context
from tests.unit import builders as make


class Log:
    """A log of whole turns."""

    def __init__(self) -> None:
        self.events: list[LoggedEvent] = []

    def add(self, event: ev.AnyEvent, private: bytes | None = None) -> None:
        self.events.append(LoggedEvent(len(self.events) + 1, event, private))

    def answer(self, *blocks: AssistantBlock) -> None:
        start = ev.SpanModelRequestStart(id=new_id("sevt"))
        self.add(start)
        for block in blocks:
            if isinstance(block, ToolUseBlock):
                self.add(ev.AgentToolUse(id=block.id, name=block.name, input=block.input))
        self.add(make.answer_end(start.id), msgspec.json.encode(blocks))

    def turn(self, calls: int) -> None:
        self.add(make.message(f"message {len(self.events)}"))
        if calls:
            uses = [ToolUseBlock(id=new_id("sevt"), name="bash", input={}) for _ in range(calls)]
            self.answer(*uses)
            for use in uses:
                self.add(make.result(use.id))
        self.answer(TextBlock(text="done"))

    def condense(self, kept: int) -> None:
        private = msgspec.json.encode(Condensed(summary="short", kept=kept))
        self.add(ev.AgentThreadContextCompacted(id=new_id("sevt")), private)


def folded(events: list[LoggedEvent]) -> Context:
    context = Context()
    context.extend(events)
    return context


def encoded(context: Context) -> list[bytes]:
    return [msgspec.json.encode(message) for message in context.messages]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=8), st.data())
def test_a_fold_in_pieces_equals_a_fold_of_the_whole(turns: list[int], data: st.DataObject) -> None:
    log = Log()
    for calls in turns:
        log.turn(calls)
    cut = data.draw(st.integers(0, len(log.events)))
    context = folded(log.events[:cut])
    context.extend(log.events[cut:])
    assert encoded(context) == encoded(folded(log.events))
    assert context.open_calls == {}


@given(st.lists(st.integers(0, 3), min_size=2, max_size=8))
def test_history_is_a_prefix_of_later_history(turns: list[int]) -> None:
    log = Log()
    log.turn(turns[0])
    before = encoded(folded(log.events))
    for calls in turns[1:]:
        log.turn(calls)
        after = encoded(folded(log.events))
        assert after[: len(before)] == before
        before = after


def test_roles_alternate_and_every_call_is_followed_by_its_result() -> None:
    log = Log()
    for calls in (2, 0, 3):
        log.turn(calls)
    messages = folded(log.events).messages
    assert [message.role for message in messages] == ["user", "assistant"] * (len(messages) // 2)
    for asked, answered in pairwise(messages):
        uses = [block.id for block in asked.content if isinstance(block, ToolUseBlock)]
        results = [block.tool_use_id for block in answered.content if isinstance(block, ToolResultBlock)]
        assert uses == results


def test_a_summary_stands_in_place_of_all_but_the_newest_messages() -> None:
    log = Log()
    for _ in range(4):
        log.turn(1)
    newest = encoded(folded(log.events))[-3:]
    log.condense(3)
    context = folded(log.events)
    assert "short" in str(context.messages[0].content)
    assert encoded(context)[1:] == newest
    log.turn(0)
    assert encoded(folded(log.events))[:4] == encoded(context)


def test_messages_that_were_flushed_are_not_shown_to_the_model() -> None:
    log = Log()
    log.turn(0)
    log.add(make.message("dropped"))
    log.add(ev.SessionStatusIdle(id=new_id("sevt"), stop_reason=ev.RetriesExhausted()))
    log.turn(0)
    assert "dropped" not in str(folded(log.events).messages)
