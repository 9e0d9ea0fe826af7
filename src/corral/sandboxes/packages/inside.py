"""Where a sandbox finds what was installed for it, and where an agent's own installs go: paths, variables, a script.

Three places, in this order wherever a language lets us choose: what the agent installed (`/home/agent/.local`, on
its writable disk), what its environment installed (the layer, read-only), what the base has. All of it is set up by
variables and one Python file, so that `pip install x` and `npm install -g x` work without a flag. A sandbox without a
layer has the same variables; they point at nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

LAYER = "/opt/corral/packages"
SITE = "/opt/corral/site"
"""On PYTHONPATH; holds `sitecustomize.py` and nothing else, so it hides no module."""
PIP = "/opt/corral/pip"
"""The pip that Corral brings, last on Python's path: a base that has its own keeps it."""
NODE_MODULES = f"{LAYER}/npm/lib/node_modules"
USER_PREFIX = "/home/agent/.local"
GEM_HOME = f"{USER_PREFIX}/share/gem"

BIN_DIRECTORIES = (
    f"{USER_PREFIX}/bin",
    f"{GEM_HOME}/bin",
    *(f"{LAYER}/{manager}/bin" for manager in ("cargo", "gem", "go", "npm", "pip")),
)
"""At the head of PATH."""

ENVIRONMENT: Mapping[str, str] = {
    "PYTHONPATH": SITE,
    # Debian and others mark their Python as not for pip. It is read-only here, so pip installs for the user anyway.
    "PIP_BREAK_SYSTEM_PACKAGES": "1",
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    "PIP_ROOT_USER_ACTION": "ignore",
    "NODE_PATH": f"{USER_PREFIX}/lib/node_modules:{NODE_MODULES}",
    "NPM_CONFIG_PREFIX": USER_PREFIX,
    "NPM_CONFIG_UPDATE_NOTIFIER": "false",
    "NPM_CONFIG_FUND": "false",
    "NPM_CONFIG_AUDIT": "false",
    "GEM_HOME": GEM_HOME,
    # The colon at the end stands for the base's own gems.
    "GEM_PATH": f"{LAYER}/gem:",
    "GOBIN": f"{USER_PREFIX}/bin",
    "CARGO_INSTALL_ROOT": USER_PREFIX,
}

SITECUSTOMIZE = f'''"""Lets Python find an environment's packages: after the user's own, before the base's."""


def _add():
    import os
    import site
    import sys

    if sys.prefix != sys.base_prefix or "{LAYER}/pip" in sys.path:
        return
    before = list(sys.path)
    if os.path.isdir("{LAYER}/pip"):
        base = set(site.getsitepackages())
        site.addsitedir("{LAYER}/pip")
        place = next((index for index, path in enumerate(before) if path in base), len(before))
        added = [path for path in sys.path if path not in before]
        sys.path[:] = before[:place] + added + before[place:]
    sys.path.append("{PIP}")


_add()
del _add
'''
"""`python3 -m pip` finds the base's pip if there is one, else Corral's."""
PTH = f"import os; exec(open('{SITE}/sitecustomize.py').read(), {{}})\n"
"""The same from the last directory of the base's own packages: without PYTHONPATH, which programs change."""

COMMANDS: Mapping[str, str] = dict.fromkeys(("bin/pip", "bin/pip3"), '#!/bin/sh\nexec python3 -m pip "$@"\n')
"""Files to put on PATH."""
