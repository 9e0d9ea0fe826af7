"""MCP tools as models and events name them.

An event has the server's name and the tool's own; a model has one name for both, made here. A tool has the same name on
every worker and after an import, whatever other tools there are, because it stands in answers that are replayed.
"""

from __future__ import annotations

import hashlib
import re

PREFIX = "mcp__"
NAME_CHARACTERS_MAX = 64
"""What every model provider takes."""
DIGEST_CHARACTERS = 8

_ODD = re.compile(r"[^a-zA-Z0-9_-]")


def model_name(server: str, tool: str) -> str:
    """The tool's name for a model: `mcp__<server>__<tool>`, with a digest where that would not tell tools apart."""
    plain = f"{PREFIX}{server}__{tool}"
    if len(plain) <= NAME_CHARACTERS_MAX and not _ODD.search(plain) and "__" not in server and "__" not in tool:
        return plain
    digest = hashlib.sha256(f"{server}\0{tool}".encode("utf-8", "surrogatepass")).hexdigest()[:DIGEST_CHARACTERS]
    room = NAME_CHARACTERS_MAX - DIGEST_CHARACTERS - 2
    return f"{_ODD.sub('_', plain)[:room]}__{digest}"
