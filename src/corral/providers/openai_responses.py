"""A `ModelRequest` as the body of a Responses request.

The conversation is sent whole each time and the server is asked not to store it: the log is the only memory. Reasoning
comes sealed and goes back sealed, in its place before the calls it led to. Items carry no ids, which mean nothing to a
server that stores nothing. The same request always gives the same bytes. The answer is read by
`openai_responses_answer.py`.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from itertools import groupby
from typing import TypeAlias

import msgspec

from corral.config_sections import SystemRole
from corral.domain.content import (
    SEALED_BY_RESPONSES,
    PromptBlock,
    TextBlock,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
)
from corral.domain.inference import ModelRequest, PromptMessage, ToolSpec
from corral.providers.openai_content import (
    ERROR_PREFIX,
    FilePart,
    ImagePart,
    Part,
    TextPart,
    in_roles,
    parts_of,
    result_text,
    text_of,
)

Json: TypeAlias = dict[str, object]


SEALED = "reasoning.encrypted_content"


def encode_responses(
    request: ModelRequest, *, official: bool = False, sealed: bool = True, later_system: SystemRole = "system"
) -> bytes:
    """The JSON body. `sealed` asks for reasoning that can be sent back, which models without any may refuse.

    `official`: OpenAI's own server, which can be asked to be fast. `later_system`: as what system messages in
    mid-conversation go.
    """
    body: Json = {
        "model": request.model,
        "stream": True,
        "store": False,
        "max_output_tokens": request.output_tokens_max,
        "input": list(_items(in_roles(request.messages, later_system), later_system)),
    }
    if sealed:
        body["include"] = [SEALED]
    if official and request.speed == "fast":
        body["service_tier"] = "priority"
    if request.system.strip():
        body["instructions"] = request.system
    if request.tools:
        body["tools"] = [_tool(tool) for tool in request.tools]
    if request.effort is not None:
        body["reasoning"] = {"effort": request.effort}
    return msgspec.json.encode(body)


def _tool(tool: ToolSpec) -> Json:
    return {
        "type": "function",
        "name": tool.name,
        "description": tool.description,
        "parameters": tool.input_schema,
        # Strict mode, the default, takes only a part of JSON Schema.
        "strict": False,
    }


def _items(messages: Iterable[PromptMessage], later_system: SystemRole) -> Generator[Json]:
    for message in messages:
        if message.role == "assistant":
            yield from _assistant(message.content)
            continue
        yield from (_result(block) for block in message.content if isinstance(block, ToolResultBlock))
        role = later_system if message.role == "system" else message.role
        yield from _message(role, [_encoded(part) for part in parts_of(message.content)])


def _assistant(content: Sequence[PromptBlock]) -> Generator[Json]:
    """Items in the order in which they were made: reasoning stands before what it led to."""
    for kind, blocks in groupby(content, type):
        if kind is TextBlock:
            text = text_of(blocks)
            yield from _message("assistant", [{"type": "output_text", "text": text}] if text else [])
            continue
        for block in blocks:
            if isinstance(block, ThinkingBlock) and block.signature.startswith(SEALED_BY_RESPONSES):
                yield _reasoning(block)
            elif isinstance(block, ToolUseBlock):
                arguments = msgspec.json.encode(block.input).decode()
                yield {"type": "function_call", "call_id": block.id, "name": block.name, "arguments": arguments}


def _reasoning(block: ThinkingBlock) -> Json:
    summary = [{"type": "summary_text", "text": block.thinking}] if block.thinking else []
    sealed = block.signature.removeprefix(SEALED_BY_RESPONSES)
    return {"type": "reasoning", "summary": summary, "encrypted_content": sealed}


def _message(role: str, content: list[Json]) -> Generator[Json]:
    if content:
        yield {"type": "message", "role": role, "content": content}


def _result(block: ToolResultBlock) -> Json:
    """Text alone goes as a string, which every server takes."""
    parts = list(parts_of(block.content))
    output: object = result_text(block)
    if not all(isinstance(part, TextPart) for part in parts):
        marked = [TextPart(ERROR_PREFIX.strip()), *parts] if block.is_error else parts
        output = [_encoded(part) for part in marked]
    return {"type": "function_call_output", "call_id": block.tool_use_id, "output": output}


def _encoded(part: Part) -> Json:
    match part:
        case TextPart(text):
            return {"type": "input_text", "text": text}
        case ImagePart(url):
            return {"type": "input_image", "image_url": url, "detail": "auto"}
        case FilePart(name, url) if url.startswith("data:"):
            return {"type": "input_file", "filename": name, "file_data": url}
        case FilePart(_, url):
            return {"type": "input_file", "file_url": url}
