"""`grep`: find lines by content."""

from __future__ import annotations

from corral.domain.content import JsonObject
from corral.domain.inference import ToolSpec
from corral.interfaces.sandbox import SandboxCall
from corral.tools.arguments import Arguments, parse, require, to_call


class GrepArguments(Arguments, frozen=True):
    """See the schema."""

    pattern: str
    path: str | None = None


class Grep:
    """See `Tool`."""

    spec = ToolSpec(
        name="grep",
        description="Search the content of files for a regular expression; returns file:line:text.",
        input_schema={
            "type": "object",
            "properties": {
                "pattern": {"type": "string"},
                "path": {"type": "string", "description": "File or directory to search"},
            },
            "required": ["pattern"],
        },
    )

    def call(self, call_id: str, arguments: JsonObject) -> SandboxCall:
        """See `Tool.call`."""
        given = parse("grep", GrepArguments, arguments)
        require("grep", pattern=given.pattern)
        return to_call(call_id, "grep", given)
