"""`edit`: replace text in a file."""

from __future__ import annotations

from corral.domain.content import JsonObject
from corral.domain.inference import ToolSpec
from corral.errors import Invalid
from corral.interfaces.sandbox import SandboxCall
from corral.tools.arguments import Arguments, parse, require, to_call


class EditArguments(Arguments, frozen=True):
    """See the schema."""

    file_path: str
    old_string: str
    new_string: str
    replace_all: bool | None = None


class Edit:
    """See `Tool`."""

    spec = ToolSpec(
        name="edit",
        description="Change part of an existing file: replace old_string, which must occur exactly once.",
        input_schema={
            "type": "object",
            "properties": {
                "file_path": {"type": "string"},
                "old_string": {"type": "string", "description": "Exact text to replace"},
                "new_string": {"type": "string"},
                "replace_all": {"type": "boolean", "description": "Replace every occurrence"},
            },
            "required": ["file_path", "old_string", "new_string"],
        },
    )

    def call(self, call_id: str, arguments: JsonObject) -> SandboxCall:
        """See `Tool.call`."""
        given = parse("edit", EditArguments, arguments)
        require("edit", file_path=given.file_path, old_string=given.old_string)
        if given.old_string == given.new_string:
            raise Invalid("edit: old_string and new_string are the same")
        return to_call(call_id, "edit", given)
