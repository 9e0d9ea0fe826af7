"""`read`: show a file, or some of its lines."""

from __future__ import annotations

from corral.domain.content import JsonObject
from corral.domain.inference import ToolSpec
from corral.errors import Invalid
from corral.interfaces.sandbox import SandboxCall
from corral.tools.arguments import Arguments, parse, require, to_call


class ReadArguments(Arguments, frozen=True):
    """See the schema."""

    file_path: str
    view_range: list[int] | None = None


class Read:
    """See `Tool`."""

    spec = ToolSpec(
        name="read",
        description="Show the content of a text file, image or PDF.",
        input_schema={
            "type": "object",
            "properties": {
                "file_path": {"type": "string", "description": "Path, relative to /workspace or absolute"},
                "view_range": {
                    "type": "array",
                    "items": {"type": "integer"},
                    "description": "[first, last] line, from 1; last 0 is the end",
                },
            },
            "required": ["file_path"],
        },
    )

    def call(self, call_id: str, arguments: JsonObject) -> SandboxCall:
        """See `Tool.call`."""
        given = parse("read", ReadArguments, arguments)
        require("read", file_path=given.file_path)
        if given.view_range is not None and len(given.view_range) not in (0, 2):
            raise Invalid("read: view_range must be [start_line, end_line]")
        return to_call(call_id, "read", given)
