"""`bash`: run a command in the session's persistent shell."""

from __future__ import annotations

from corral.domain.content import JsonObject
from corral.domain.inference import ToolSpec
from corral.errors import Invalid
from corral.interfaces.sandbox import SandboxCall
from corral.tools.arguments import Arguments, parse, require, to_call


class BashArguments(Arguments, frozen=True):
    """See the schema."""

    command: str | None = None
    restart: bool | None = None
    timeout_ms: int | None = None


class Bash:
    """See `Tool`."""

    spec = ToolSpec(
        name="bash",
        description=(
            "Run a command in a persistent bash shell in /workspace and return its output. Use it to run programs, "
            "scripts and tests. stdin is empty. A command over its time limit (120 s) is killed with the shell."
        ),
        input_schema={
            "type": "object",
            "properties": {
                "command": {"type": "string", "description": "Command to run"},
                "restart": {"type": "boolean", "description": "Start a fresh shell instead"},
                "timeout_ms": {"type": "integer", "description": "Another time limit"},
            },
        },
    )

    def call(self, call_id: str, arguments: JsonObject) -> SandboxCall:
        """See `Tool.call`."""
        given = parse("bash", BashArguments, arguments)
        if given.restart:
            return to_call(call_id, "bash", BashArguments(restart=True))
        require("bash", command=given.command and given.command.strip())
        if given.timeout_ms is not None and given.timeout_ms <= 0:
            raise Invalid("bash: timeout_ms must be positive")
        return to_call(call_id, "bash", given)
