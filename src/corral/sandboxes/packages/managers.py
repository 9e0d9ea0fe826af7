"""What each package manager needs, runs, and says when it fails. Data and argument lists; nothing is started here.

Commands install below `inside.LAYER`, at the same path a sandbox will see, since scripts and native code remember
where they were put. A package's name was checked by `domain/environment.py`: it is never an option and no shell
reads it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from corral.domain.environment import MANAGERS, Packages
from corral.sandboxes.egress.inside import TRUSTED
from corral.sandboxes.packages.inside import LAYER

Argv = tuple[str, ...]
CREDENTIALS = re.compile(r"(\w[\w+.-]*://)[^\s/@]+@")
WARNING = re.compile(r"(npm )?(warn|notice)", re.IGNORECASE)
ERROR = re.compile(r"(npm )?(error|fatal)|E: ", re.IGNORECASE)
TAIL_CHARACTERS_MAX = 1_200
NAMED_MAX = 8
SEPARATORS = re.compile(r"(?<=.)[@:=<>!~\[,]")


class Manager(NamedTuple):
    """One package manager."""

    tools: Mapping[str, Argv]
    """What it needs in the base: commands that print their version, by name."""
    advice: str
    """What to install when one is missing."""
    commands: Callable[[Sequence[str]], Sequence[Argv]]
    """What to run for these packages, one after another."""
    environment: Mapping[str, str] = {}


def _pip(names: Sequence[str]) -> Sequence[Argv]:
    options = ("--no-input", "--no-cache-dir", "--progress-bar=off", "--target", f"{LAYER}/pip")
    return [("python3", "-m", "pip", "install", *options, "--", *names)]


def _npm(names: Sequence[str]) -> Sequence[Argv]:
    options = ("--global", "--prefix", f"{LAYER}/npm", "--cache", "/tmp/npm", "--no-progress")
    return [("npm", "install", *options, "--", *names)]


def _gem(names: Sequence[str]) -> Sequence[Argv]:
    options = ("--no-document", "--install-dir", f"{LAYER}/gem", "--bindir", f"{LAYER}/gem/bin")
    return [("gem", "install", *options, name) for name in names]


def _go(names: Sequence[str]) -> Sequence[Argv]:
    return [("go", "install", name if "@" in name else f"{name}@latest") for name in names]


def _cargo(names: Sequence[str]) -> Sequence[Argv]:
    return [("cargo", "install", "--root", f"{LAYER}/cargo", name) for name in names]


def _apt(names: Sequence[str]) -> Sequence[Argv]:
    return [
        ("apt-get", *APT_OPTIONS, "update"),
        ("apt-get", *APT_OPTIONS, "install", "--yes", "--no-install-recommends", "--", *names),
        ("apt-get", *APT_OPTIONS, "clean"),
    ]


APT_OPTIONS = (
    "-qq",
    # One user is all that a build has: apt cannot drop to another, and dpkg cannot give files to one.
    *("-o", "APT::Sandbox::User=root"),
    *("-o", "Acquire::Retries=2"),
    *("-o", f"Acquire::https::CaInfo={TRUSTED}"),
    *("-o", "Dpkg::Use-Pty=0"),
    *("-o", "Dpkg::Options::=--force-unsafe-io"),
)

TABLE: Mapping[str, Manager] = {
    "apt": Manager(
        {"apt-get": ("apt-get", "--version"), "dpkg": ("dpkg", "--version")},
        "make a base that has apt with `corral base build`",
        _apt,
        {"DEBIAN_FRONTEND": "noninteractive"},
    ),
    "cargo": Manager(
        {"cargo": ("cargo", "--version"), "cc": ("cc", "--version")},
        "install Rust's cargo and a C compiler",
        _cargo,
        {"CARGO_HOME": "/tmp/cargo", "CARGO_TARGET_DIR": "/tmp/cargo-target"},
    ),
    "gem": Manager({"gem": ("gem", "--version"), "ruby": ("ruby", "--version")}, "install Ruby with its gem", _gem),
    "go": Manager(
        {"go": ("go", "version")},
        "install Go",
        _go,
        {"GOBIN": f"{LAYER}/go/bin", "GOPATH": "/tmp/go", "GOCACHE": "/tmp/go-cache"},
    ),
    "npm": Manager({"npm": ("npm", "--version"), "node": ("node", "--version")}, "install Node.js with npm", _npm),
    "pip": Manager(
        {"python3": ("python3", "--version"), "pip": ("python3", "-m", "pip", "--version")},
        "install Python 3 with pip",
        _pip,
    ),
}
assert tuple(TABLE) == MANAGERS, "the order in which they install"


def wanted(packages: Packages) -> Mapping[str, tuple[str, ...]]:
    """The managers that have something to install, in order, with what."""
    lists: dict[str, tuple[str, ...]] = {name: getattr(packages, name) for name in MANAGERS}
    return {name: names for name, names in lists.items() if names}


def explanation(manager: str, names: Sequence[str], reason: str) -> str:
    """One paragraph for the agent and the client: which packages, and why not."""
    reason = _short(CREDENTIALS.sub(r"\1***@", reason.strip()))
    said = _plain(reason)
    blamed = [name for name in names if name in reason] or [name for name in names if _plain(_bare(name)) in said]
    shown = (blamed or list(names))[:NAMED_MAX]
    more = "" if len(shown) == len(blamed or names) else f" and {len(blamed or names) - len(shown)} more"
    return f"The environment's {manager} packages could not be installed ({', '.join(shown)}{more}): {reason}"


def _short(said: str) -> str:
    """From the first error on, after the last warning, which may tell why."""
    lines = said.splitlines()
    warnings = [line for line in lines if WARNING.match(line)]
    others = [line for line in lines if not WARNING.match(line)]
    first = next((index for index, line in enumerate(others) if ERROR.match(line)), 0)
    lines = [*warnings[-1:], *others[first:]] if others else lines
    while len(lines) > 1 and sum(map(len, lines)) > TAIL_CHARACTERS_MAX:
        del lines[1 if warnings and len(lines) > 2 else 0]
    return "\n".join(lines)


def _bare(name: str) -> str:
    """A package without its version or extras."""
    return SEPARATORS.split(name)[0]


def _plain(text: str) -> str:
    """As pip compares names."""
    return re.sub(r"[-_.]+", "-", text).lower()
