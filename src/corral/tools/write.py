"""`write`: create a file or replace its whole content."""

from __future__ import annotations

from corral.domain.content import JsonObject
from corral.domain.inference import ToolSpec
from corral.interfaces.sandbox import SandboxCall
from corral.tools.arguments import Arguments, parse, require, to_call


class WriteArguments(Arguments, frozen=True):
    """See the schema."""

    file_path: str
    content: str


class Write:
    """See `Tool`."""

    spec = ToolSpec(
        name="write",
        description="Create a file with the given content, or overwrite it. Parent directories are made.",
        input_schema={
            "type": "object",
            "properties": {
                "file_path": {"type": "string"},
                "content": {"type": "string", "description": "The whole file"},
            },
            "required": ["file_path", "content"],
        },
    )

    def call(self, call_id: str, arguments: JsonObject) -> SandboxCall:
        """See `Tool.call`."""
        given = parse("write", WriteArguments, arguments)
        require("write", file_path=given.file_path)
        return to_call(call_id, "write", given)
