"""`glob`: find files by name."""

from __future__ import annotations

from corral.domain.content import JsonObject
from corral.domain.inference import ToolSpec
from corral.interfaces.sandbox import SandboxCall
from corral.tools.arguments import Arguments, parse, require, to_call


class GlobArguments(Arguments, frozen=True):
    """See the schema."""

    pattern: str
    path: str | None = None


class Glob:
    """See `Tool`."""

    spec = ToolSpec(
        name="glob",
        description="List files whose names match a pattern, newest first.",
        input_schema={
            "type": "object",
            "properties": {
                "pattern": {"type": "string", "description": "Such as **/*.py"},
                "path": {"type": "string", "description": "Directory to search"},
            },
            "required": ["pattern"],
        },
    )

    def call(self, call_id: str, arguments: JsonObject) -> SandboxCall:
        """See `Tool.call`."""
        given = parse("glob", GlobArguments, arguments)
        require("glob", pattern=given.pattern)
        return to_call(call_id, "glob", given)
