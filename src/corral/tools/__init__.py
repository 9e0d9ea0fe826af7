"""The built-in tools: one file each, and one line each here.

A tool tells the model what it does and checks what the model asks; the work is done in the sandbox
(`sandboxes/daemon/`). What tools share is in `arguments.py`.
"""

from __future__ import annotations

from collections.abc import Mapping

from corral.interfaces import Tool
from corral.tools.bash import Bash
from corral.tools.edit import Edit
from corral.tools.glob import Glob
from corral.tools.grep import Grep
from corral.tools.read import Read
from corral.tools.write import Write

TOOLS: Mapping[str, Tool] = {
    "bash": Bash(),
    "read": Read(),
    "write": Write(),
    "edit": Edit(),
    "glob": Glob(),
    "grep": Grep(),
}
"""By the name a model calls it, in the order models see them."""
