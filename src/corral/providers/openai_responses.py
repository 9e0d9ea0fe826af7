"""A `ModelRequest` as the body of a Responses request.

The conversation is sent whole each time and the server is asked not to store it: the log is the only memory. Items
carry no ids of the server's, which would have to come with the reasoning they were made with. The same request always
gives the same bytes. The answer is read by `openai_responses_answer.py`.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from typing import TypeAlias

import msgspec

from corral.domain.content import PromptBlock, ToolResultBlock, ToolUseBlock
from corral.domain.inference import ModelRequest, PromptMessage, ToolSpec
from corral.providers.openai_content import (
    ERROR_PREFIX,
    FilePart,
    ImagePart,
    Part,
    TextPart,
    parts_of,
    result_text,
    text_of,
)

Json: TypeAlias = dict[str, object]


def encode_responses(request: ModelRequest) -> bytes:
    """The JSON body."""
    body: Json = {
        "model": request.model,
        "stream": True,
        "store": False,
        "max_output_tokens": request.output_tokens_max,
        "input": list(_items(request.messages)),
    }
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


def _items(messages: Iterable[PromptMessage]) -> Generator[Json]:
    for message in messages:
        if message.role == "assistant":
            yield from _assistant(message.content)
            continue
        yield from (_result(block) for block in message.content if isinstance(block, ToolResultBlock))
        yield from _message(message.role, [_encoded(part) for part in parts_of(message.content)])


def _assistant(content: Sequence[PromptBlock]) -> Generator[Json]:
    text = text_of(content)
    yield from _message("assistant", [{"type": "output_text", "text": text}] if text else [])
    for block in content:
        if isinstance(block, ToolUseBlock):
            arguments = msgspec.json.encode(block.input).decode()
            yield {"type": "function_call", "call_id": block.id, "name": block.name, "arguments": arguments}


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
