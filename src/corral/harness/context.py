"""What the model is sent: the log, folded into messages.

A pure function of the log, built event by event: stable history gives stable bytes, and additions only ever come at the
end, so prompt caches hold. The exact answer of the model (thinking with its signature, tool calls) stands beside each
`span.model_request_end`, where `answer.py` put it; user messages and results come from their own events.

This is not the log and not the prompt around it: `prompt.py` adds system text and tools.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from corral.domain import event as ev
from corral.domain.content import (
    AssistantBlock,
    DocumentBlock,
    FileSource,
    ImageBlock,
    JsonObject,
    PromptBlock,
    TextBlock,
    ToolResultBlock,
)
from corral.domain.inference import PromptMessage
from corral.domain.query import LoggedEvent
from corral.domain.web import WEB_TOOLS, Source
from corral.harness.shown_urls import ShownUrls

SUMMARY_FOLLOWS = "[The conversation so far was condensed. Its summary:]\n"

_ANSWER = msgspec.json.Decoder(tuple[AssistantBlock, ...])


class OpenCall(NamedTuple):
    """A tool call whose result is not in the log yet."""

    name: str
    input: JsonObject
    server: str | None = None
    """Of a tool of an MCP server."""


class Condensed(msgspec.Struct, frozen=True, kw_only=True):
    """A conversation in short; kept beside `agent.thread_context_compacted`."""

    summary: str
    kept: int
    """Messages from the end that stay as they are."""


class Context:
    """The conversation so far, and the inputs of open tool calls."""

    def __init__(self) -> None:
        self.seq = 0
        self.messages: list[PromptMessage] = []
        self.open_calls: dict[str, OpenCall] = {}
        self.refers_to_files = False
        """Whether any message holds a reference that must be looked up before the model sees it."""
        self.shown_urls = ShownUrls()
        self._arriving: list[PromptMessage] = []

    def extend(self, events: Iterable[LoggedEvent]) -> None:
        """Take in the next events of the log, in order."""
        for logged in events:
            assert logged.seq > self.seq, "events come in log order"
            self.seq = logged.seq
            self._fold(logged.event, logged.private)

    def _fold(self, event: ev.StoredEvent, private: bytes | None) -> None:
        match event:
            case ev.UserMessage():
                self.refers_to_files = self.refers_to_files or any(map(_is_reference, event.content))
                self._arriving.append(PromptMessage(role="user", content=_prompt_blocks(event.content)))
                for block in event.content:
                    if isinstance(block, TextBlock):
                        self.shown_urls.add(block.text, Source("user_input"))
            case ev.SystemMessage():
                self._arriving.append(PromptMessage(role="system", content=event.content))
            case ev.SpanModelRequestStart():
                self._take_up_arrivals()
            case ev.SpanModelRequestEnd() if private is not None:
                self._append(PromptMessage(role="assistant", content=_ANSWER.decode(private)))
            case ev.AgentToolUse() | ev.AgentCustomToolUse():
                self.open_calls[event.id] = OpenCall(event.name, event.input)
            case ev.AgentMcpToolUse():
                self.open_calls[event.id] = OpenCall(event.name, event.input, event.mcp_server_name)
            case ev.AgentToolResult():
                self._add_result(event.tool_use_id, event)
            case ev.AgentMcpToolResult():
                self._add_result(event.mcp_tool_use_id, event)
            case ev.UserCustomToolResult():
                self._add_result(event.custom_tool_use_id, event)
            case ev.AgentThreadContextCompacted() if private is not None:
                self._condense(msgspec.json.decode(private, type=Condensed))
            case ev.SessionStatusIdle(stop_reason=ev.RetriesExhausted()):
                self._arriving.clear()  # flushed: taken off the queue and dropped
            case _:
                pass

    def _take_up_arrivals(self) -> None:
        for message in self._arriving:
            self._append(message)
        self._arriving.clear()

    def _condense(self, condensed: Condensed) -> None:
        kept = self.messages[len(self.messages) - condensed.kept :]
        text = TextBlock(text=SUMMARY_FOLLOWS + condensed.summary)
        self.messages = [PromptMessage(role="user", content=(text,))]
        for message in kept:
            self._append(message)

    def _add_result(
        self, call_id: str, event: ev.AgentToolResult | ev.AgentMcpToolResult | ev.UserCustomToolResult
    ) -> None:
        self.refers_to_files = self.refers_to_files or any(map(_is_reference, event.content))
        call = self.open_calls.pop(call_id, None)
        if call is not None:
            self._note_urls(call, event)
        block = ToolResultBlock(tool_use_id=call_id, content=event.content, is_error=event.is_error)
        self._append(PromptMessage(role="user", content=(block,)))

    def _note_urls(
        self, call: OpenCall, event: ev.AgentToolResult | ev.AgentMcpToolResult | ev.UserCustomToolResult
    ) -> None:
        if isinstance(event, ev.UserCustomToolResult):
            self.shown_urls.add_blocks(event.content, Source("client_tool_results", call.name))
        elif isinstance(event, ev.AgentToolResult) and call.name in WEB_TOOLS:
            self.shown_urls.add_blocks(event.content, Source("server_tool_results", call.name))

    def _append(self, message: PromptMessage) -> None:
        """Neighbouring messages of one role become one, as the Messages API wants it: of a model, after a pause."""
        last = self.messages[-1] if self.messages else None
        if last is not None and last.role == message.role != "system":
            self.messages[-1] = PromptMessage(role=message.role, content=(*last.content, *message.content))
        else:
            self.messages.append(message)


def _is_reference(block: object) -> bool:
    return isinstance(block, ImageBlock | DocumentBlock) and isinstance(block.source, FileSource)


def _prompt_blocks(content: Iterable[object]) -> tuple[PromptBlock, ...]:
    return tuple(block for block in content if isinstance(block, TextBlock | ImageBlock | DocumentBlock))
