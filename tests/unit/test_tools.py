"""The built-in tools: what models are told, what they may ask, and how they hear that they asked wrongly."""

from __future__ import annotations

import msgspec
import pytest

from corral.config_sections import WebSettings
from corral.domain.content import JsonObject
from corral.errors import Invalid
from corral.interfaces.sandbox import SandboxCall
from corral.tools import TOOLS, SearchAccess, open_web_tools

TOKENS_MAX = 750
CHARACTERS_PER_TOKEN = 4


class Schema(msgspec.Struct):
    properties: dict[str, dict[str, object]]
    required: list[str] = []


def call(tool: str, **arguments: object) -> SandboxCall:
    return TOOLS[tool].call("sevt_1", arguments)


def test_there_are_the_six_tools_under_their_own_names() -> None:
    assert [tool.spec.name for tool in TOOLS.values()] == list(TOOLS) == "bash read write edit glob grep".split()


def test_all_descriptions_together_fit_a_small_models_window() -> None:
    web = open_web_tools(WebSettings(), SearchAccess()).values()
    characters = sum(len(msgspec.json.encode(tool.spec)) for tool in (*TOOLS.values(), *web))
    assert characters / CHARACTERS_PER_TOKEN < TOKENS_MAX


@pytest.mark.parametrize("tool", list(TOOLS))
def test_a_schema_describes_exactly_what_the_tool_takes(tool: str) -> None:
    schema = msgspec.convert(TOOLS[tool].spec.input_schema, Schema)
    examples: dict[str, object] = {"string": "x", "boolean": True, "integer": 1, "array": [1, 2]}
    arguments = {name: examples[str(about["type"])] for name, about in schema.properties.items()}
    if tool == "edit":
        arguments["new_string"] = "y"
    taken = call(tool, **arguments)
    assert (taken.call_id, taken.operation, taken.resumed) == ("sevt_1", tool, False)
    for name in schema.required:
        with pytest.raises(Invalid, match=f"{tool}: {name} is required"):
            call(tool, **{key: value for key, value in arguments.items() if key != name})


VALID: list[tuple[str, JsonObject, JsonObject]] = [
    ("bash", {"command": "ls"}, {"command": "ls"}),
    ("bash", {"command": "ls", "timeout_ms": "500"}, {"command": "ls", "timeout_ms": 500}),
    ("bash", {"command": "ls", "restart": True}, {"restart": True}),
    ("bash", {"command": "ls", "restart": False}, {"command": "ls", "restart": False}),
    ("read", {"file_path": "a", "view_range": ["1", 2]}, {"file_path": "a", "view_range": [1, 2]}),
    ("read", {"file_path": "a", "view_range": None}, {"file_path": "a"}),
    ("write", {"file_path": "a", "content": ""}, {"file_path": "a", "content": ""}),
    ("edit", {"file_path": "a", "old_string": "b", "new_string": ""},
     {"file_path": "a", "old_string": "b", "new_string": ""}),
    ("glob", {"pattern": "*", "path": "d"}, {"pattern": "*", "path": "d"}),
    ("grep", {"pattern": "-v"}, {"pattern": "-v"}),
]  # fmt: skip


@pytest.mark.parametrize(("tool", "given", "sent"), VALID)
def test_good_arguments_reach_the_sandbox(tool: str, given: JsonObject, sent: JsonObject) -> None:
    assert call(tool, **given).arguments == sent


WRONG: list[tuple[str, JsonObject, str]] = [
    ("bash", {}, "bash: command is required"),
    ("bash", {"command": " \n"}, "bash: command is required"),
    ("bash", {"command": ["ls"]}, "bash: command: expected str, got array"),
    ("bash", {"command": "ls", "timeout_ms": 0}, "bash: timeout_ms must be positive"),
    ("bash", {"command": "ls", "timeout": 5}, "bash: there is no argument timeout"),
    ("read", {"file_path": ""}, "read: file_path is required"),
    ("read", {"file_path": "a", "view_range": [1]}, "read: view_range must be [start_line, end_line]"),
    ("read", {"file_path": "a", "view_range": [1, "end"]}, "read: view_range[1]: expected int, got str"),
    ("write", {"file_path": "a"}, "write: content is required"),
    ("edit", {"file_path": "a", "old_string": "", "new_string": "b"}, "edit: old_string is required"),
    ("edit", {"file_path": "a", "old_string": "b", "new_string": "b"}, "edit: old_string and new_string are the same"),
    ("glob", {"pattern": ""}, "glob: pattern is required"),
    ("grep", {"path": "a"}, "grep: pattern is required"),
]


@pytest.mark.parametrize(("tool", "given", "said"), WRONG)
def test_wrong_arguments_are_named_to_the_model(tool: str, given: JsonObject, said: str) -> None:
    with pytest.raises(Invalid) as refused:
        call(tool, **given)
    assert refused.value.message == said
