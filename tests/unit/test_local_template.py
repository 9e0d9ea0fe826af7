"""Adjusting a chat template, and the requests that a small model is sent."""

from __future__ import annotations

import msgspec

from corral.config_sections import LocalModelSettings
from corral.domain.content import Base64Source, ImageBlock, PromptBlock, TextBlock, ToolResultBlock, ToolUseBlock
from corral.domain.inference import ModelRequest, PromptMessage, ToolSpec
from corral.providers.local import repeats, wire_request
from corral.providers.local_template import AFTER_ERROR, AFTER_RESULT, RULE_OF_WRITE, RULES, adjusted

TEMPLATE = r"""{{- "\n\nTo call, answer within <tool_call></tool_call> XML tags:\n<tool_call>\n{{\"name\": <function-name>, \"arguments\": <args-json-object>}}\n</tool_call><|im_end|>\n" }}
{%- for message in messages %}
    {{- '\n<tool_call>\n{"name": "' }}{{- '}\n</tool_call>' }}
    {{- '\n<tool_response>\n' }}
    {{- message.content }}
    {{- '\n</tool_response>' }}
{%- endfor %}
"""  # noqa: E501  # the form of a real one


def test_the_fence_becomes_the_marker_of_calls() -> None:
    template = adjusted(TEMPLATE)
    assert template is not None
    assert "<tool_call>" not in template
    assert "</tool_call>" not in template
    assert r"""'\n```json\n{"name": "'""" in template
    assert r"'}\n```'" in template


def test_the_explanation_loses_its_doubled_braces_and_gains_the_rules() -> None:
    template = adjusted(TEMPLATE)
    assert template is not None
    assert r"```json\n{\"name\": <function-name>, \"arguments\": <args-json-object>}\n```\n\n" + RULES in template
    assert template.index(RULES) < template.index(RULE_OF_WRITE) < template.index("{%- for message")


def test_after_the_last_result_the_model_is_told_what_to_do() -> None:
    template = adjusted(TEMPLATE)
    assert template is not None
    result = template[template.index("</tool_response>") :]
    assert AFTER_RESULT in result
    assert AFTER_ERROR in result
    assert "if loop.last else ''" in result
    # Both stand inside single quotes in the template.
    assert "'" not in AFTER_RESULT + AFTER_ERROR


def test_templates_without_the_markers_are_used_as_they_are() -> None:
    assert adjusted(None) is None
    assert adjusted("{{ messages[0].content }}") is None
    assert adjusted(TEMPLATE.replace("</tool_response>", "</result>")) is None


def user(*content: PromptBlock) -> PromptMessage:
    return PromptMessage(role="user", content=content)


def call(command: str) -> PromptMessage:
    return PromptMessage(role="assistant", content=(ToolUseBlock(id="x", name="bash", input={"command": command}),))


RESULT = user(ToolResultBlock(tool_use_id="x", content=(TextBlock(text="files"),)))
TASK = user(TextBlock(text="List the files."))
BASH = ToolSpec(
    name="bash",
    description="Run a command.",
    input_schema={"type": "object", "properties": {"command": {"type": "string"}, "timeout_ms": {"type": "integer"}}},
)


def sent(*messages: PromptMessage, tools: tuple[ToolSpec, ...] = (BASH,)) -> dict[str, object]:
    request = ModelRequest(
        model="any", system="", messages=messages, tools=tools, output_tokens_max=9_999, effort="high", speed="fast"
    )
    body = wire_request(request, LocalModelSettings(output_tokens_max=100)).body
    return msgspec.json.decode(body, type=dict[str, object])


def test_answers_are_short_and_without_chance() -> None:
    body = sent(TASK)
    assert (body["max_tokens"], body["temperature"]) == (100, 0)
    assert "output_config" not in body
    assert "speed" not in body


def test_tools_show_only_what_must_be_given() -> None:
    read = ToolSpec(
        name="read",
        description="Read.",
        input_schema={"type": "object", "properties": {"range": {}, "file_path": {}}, "required": ["file_path"]},
    )
    bare = ToolSpec(name="ping", description="Ping.", input_schema={"type": "object"})
    assert sent(TASK, tools=(BASH, read, bare))["tools"] == [
        {
            "name": "bash",
            "description": "Run a command.",
            "input_schema": {
                "type": "object",
                "properties": {"command": {"type": "string"}},
                "required": ["command"],
            },
        },
        {
            "name": "read",
            "description": "Read.",
            "input_schema": {"type": "object", "properties": {"file_path": {}}, "required": ["file_path"]},
        },
        {"name": "ping", "description": "Ping.", "input_schema": {"type": "object"}},
    ]


def test_results_say_in_words_what_they_are() -> None:
    picture = ImageBlock(source=Base64Source(media_type="image/png", data="AA=="))
    results = user(
        ToolResultBlock(tool_use_id="a", content=()),
        ToolResultBlock(tool_use_id="b", content=(TextBlock(text="no such file"),), is_error=True),
        ToolResultBlock(tool_use_id="c", content=(picture,)),
    )
    messages = msgspec.convert(sent(TASK, call("ls"), results)["messages"], list[dict[str, object]])
    blocks = msgspec.convert(messages[-1]["content"], list[dict[str, object]])
    texts = [msgspec.convert(block["content"], list[dict[str, str]])[0]["text"] for block in blocks]
    assert texts == ["(no output)", "Error: no such file", "[An image, which this model cannot see.]"]


def test_a_model_that_repeats_itself_loses_its_tools() -> None:
    assert not repeats((TASK,))
    assert not repeats((TASK, call("ls"), RESULT))
    assert not repeats((TASK, call("ls"), RESULT, call("cat x"), RESULT))
    assert repeats((TASK, call("ls"), RESULT, call("cat x"), RESULT, call("ls"), RESULT))
    # A new task may well need the same call again.
    assert not repeats((TASK, call("ls"), RESULT, TASK, call("ls"), RESULT))
    assert "tools" not in sent(TASK, call("ls"), RESULT, call("ls"), RESULT)
