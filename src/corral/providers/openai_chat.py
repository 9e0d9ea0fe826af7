"""A `ModelRequest` as the body of a Chat Completions request, the wire that every compatible server speaks.

The same request always gives the same bytes, and text alone is sent as a plain string: many servers take nothing else.
A result is text only here, so its pictures follow in a user message. The answer is read by `openai_chat_answer.py`.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from typing import TypeAlias

import msgspec

from corral.config_sections import SystemRole
from corral.domain.content import PromptBlock, ToolResultBlock, ToolUseBlock
from corral.domain.inference import ModelRequest, PromptMessage, ToolSpec
from corral.providers.openai_content import (
    FilePart,
    ImagePart,
    Part,
    TextPart,
    in_roles,
    joined,
    parts_of,
    result_text,
    text_of,
)

Json: TypeAlias = dict[str, object]


def encode_chat(request: ModelRequest, *, official: bool, later_system: SystemRole = "user") -> bytes:
    """The JSON body. `official`: OpenAI's own server takes documents, can be asked to be fast, and calls the limit on
    tokens by a newer name. `later_system`: as what system messages in mid-conversation go."""
    body: Json = {
        "model": request.model,
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_completion_tokens" if official else "max_tokens": request.output_tokens_max,
        "messages": [
            *_system(request.system),
            *_messages(in_roles(request.messages, later_system), files=official, later_system=later_system),
        ],
    }
    if official and request.speed == "fast":
        body["service_tier"] = "priority"
    if request.tools:
        body["tools"] = [_tool(tool) for tool in request.tools]
    if request.effort is not None:
        body["reasoning_effort"] = request.effort
    return msgspec.json.encode(body)


def _tool(tool: ToolSpec) -> Json:
    function = {"name": tool.name, "description": tool.description, "parameters": tool.input_schema}
    return {"type": "function", "function": function}


def _system(text: str, role: str = "system") -> Generator[Json]:
    if text.strip():
        yield {"role": role, "content": text}


def _messages(messages: Iterable[PromptMessage], *, files: bool, later_system: SystemRole) -> Generator[Json]:
    for message in messages:
        match message.role:
            case "system":
                yield from _system(text_of(message.content), later_system)
            case "assistant":
                yield from _assistant(message.content)
            case "user":
                yield from _user(message.content, files=files)


def _assistant(content: Sequence[PromptBlock]) -> Generator[Json]:
    text = text_of(content)
    calls = [_call(block) for block in content if isinstance(block, ToolUseBlock)]
    if calls:
        yield {"role": "assistant", "content": text or None, "tool_calls": calls}
    elif text:
        yield {"role": "assistant", "content": text}


def _call(block: ToolUseBlock) -> Json:
    function = {"name": block.name, "arguments": msgspec.json.encode(block.input).decode()}
    return {"id": block.id, "type": "function", "function": function}


def _user(content: Sequence[PromptBlock], *, files: bool) -> Generator[Json]:
    """Results first: they must stand right behind the calls."""
    parts: list[Part] = []
    for result in (block for block in content if isinstance(block, ToolResultBlock)):
        yield {"role": "tool", "tool_call_id": result.tool_use_id, "content": result_text(result)}
        shown = [part for part in parts_of(result.content) if not isinstance(part, TextPart)]
        if shown:
            parts += [TextPart(f"The result of {result.tool_use_id} came with this:"), *shown]
    parts += parts_of(content)
    if not files:
        parts = [_told(part) for part in parts]
    if all(isinstance(part, TextPart) for part in parts):
        if parts:
            yield {"role": "user", "content": joined(parts)}
    else:
        yield {"role": "user", "content": [_encoded(part) for part in parts]}


def _told(part: Part) -> Part:
    return TextPart(f"[A document, {part.name}, which cannot be shown.]") if isinstance(part, FilePart) else part


def _encoded(part: Part) -> Json:
    match part:
        case TextPart(text):
            return {"type": "text", "text": text}
        case ImagePart(url):
            return {"type": "image_url", "image_url": {"url": url}}
        case FilePart(name, url) if url.startswith("data:"):
            return {"type": "file", "file": {"filename": name, "file_data": url}}
        case FilePart(name, url):
            # Only the Responses wire fetches documents.
            return {"type": "text", "text": f"[A document, {name}, at {url}]"}
