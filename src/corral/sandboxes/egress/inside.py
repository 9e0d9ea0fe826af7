"""What is told to programs in a sandbox that has a way out: where the proxy is, and whom to trust.

Programs know the proxy by variables; each family of them has its own for certificates.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from corral.sandboxes import programs
from corral.sandboxes.egress.registries import PackageManagers

SOCKET_NAME = "egress.sock"
PLACE = "/opt/corral/egress"
"""Where the directory with the socket is mounted."""
SOCKET = f"{PLACE}/{SOCKET_NAME}"
TRUSTED = "/opt/corral/trusted.pem"
PORT = 3128
"""On the sandbox's own loopback; the daemon forwards it to the socket."""
URL = f"http://127.0.0.1:{PORT}"

_PROXY = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "npm_config_proxy")
_TRUST = (
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "NODE_EXTRA_CA_CERTS",
    "GIT_SSL_CAINFO",
    "PIP_CERT",
    "CARGO_HTTP_CAINFO",
    "AWS_CA_BUNDLE",
    "npm_config_cafile",
    "DENO_CERT",
    "NIX_SSL_CERT_FILE",
)
_HERE = "localhost,127.0.0.1,::1"

ENVIRONMENT: Mapping[str, str] = {
    **dict.fromkeys(_PROXY, URL),
    **dict.fromkeys(_TRUST, TRUSTED),
    "npm_config_https_proxy": URL,
    "NO_PROXY": _HERE,
    "no_proxy": _HERE,
    "NODE_USE_ENV_PROXY": "1",
    "CARGO_HTTP_MULTIPLEXING": "false",
}
ALREADY_INSIDE = ("/usr", "/etc", "/proc", "/sys", "/dev", "/run", "/tmp", "/workspace", "/home/agent", "/mnt/session")
"""Where directories of the machine are there in any case, or would be in the way."""


class WayOut(NamedTuple):
    """What a backend puts into a sandbox."""

    socket_directory: Path
    """To be at `PLACE`, read-only."""
    trusted: Path
    """To be at `TRUSTED`, read-only."""
    variables: Mapping[str, str]
    directories: tuple[str, ...]
    """Of the machine, to be where they are, read-only."""
    files: Mapping[str, Path] = {}
    """By where they are to be, read-only."""


def way_out(
    socket_directory: Path, trusted: Path, managers: PackageManagers | None, files: Mapping[str, Path]
) -> WayOut:
    """For one sandbox; `managers`, whose files are in `files`, where it may reach them. Blocking."""
    if managers is None:
        return WayOut(socket_directory, trusted, ENVIRONMENT, ())
    directories = tuple(each for each in managers.directories if _can_be_shown(each))
    return WayOut(socket_directory, trusted, {**ENVIRONMENT, **managers.variables}, directories, files)


def _can_be_shown(directory: str) -> bool:
    if any(directory == place or directory.startswith(f"{place}/") for place in ALREADY_INSIDE):
        return False
    return os.geteuid() != 0 or programs.reachable_directory(Path(directory))
