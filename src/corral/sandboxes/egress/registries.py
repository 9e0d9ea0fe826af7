"""Package managers: the hosts they use, and how this machine is set up to reach them.

A machine that is told to take packages from an index of its own has been told so for everything that runs on it: such
an index counts as a package manager's host, on a private address too, and a sandbox is given the same address. User
names and passwords in addresses stay outside; the proxy adds them (`rewriting.py`).

Read are the variables and files that the managers themselves read: PIP_*, pip.conf, npm_config_registry, .npmrc,
GOPROXY, GOSUMDB, cargo's config.toml, .gemrc, apt's sources. What a manager cannot use is left out, never an error.
"""

from __future__ import annotations

import base64
import configparser
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple
from urllib.parse import SplitResult, unquote, urlsplit

import msgspec

from corral.domain.egress import Endpoint
from corral.domain.host import authority
from corral.sandboxes.egress.orders import Credential

HOSTS = tuple(
    "pypi.org files.pythonhosted.org "
    "registry.npmjs.org registry.yarnpkg.com nodejs.org "
    "crates.io index.crates.io static.crates.io static.rust-lang.org "
    "rubygems.org index.rubygems.org "
    "proxy.golang.org sum.golang.org storage.googleapis.com "
    "deb.debian.org security.debian.org archive.ubuntu.com security.ubuntu.com ports.ubuntu.com".split()
)
URL = re.compile(r"(?:https?|sparse\+https?)://(?:[^\s/?#@]*@)?[^\s'\"<>|,]+", re.IGNORECASE)
"""A comma ends one in a list, and may stand in a password."""
USER = re.compile(r"(?<=://)[^\s/?#]*@")
GEM_SOURCES = re.compile(r"^:?sources:[ \t]*\n((?:[ \t]*-[^\n]*(?:\n|$))+)", re.MULTILINE)
FILE_BYTES_MAX = 1024 * 1024
CARGO_CONFIG = "/.cargo/config.toml"
"""Cargo takes no stand-in for crates.io from variables, but a file in any directory above where it runs."""
GEMRC = "/opt/corral/gemrc"
PIP_LISTS = ("extra-index-url", "find-links")
PIP_SWITCHES = ("no-index", "trusted-host", "timeout", "pre", "only-binary")


class PackageManagers(NamedTuple):
    """What was found."""

    endpoints: tuple[Endpoint, ...]
    """Every host, the public ones and the machine's."""
    variables: Mapping[str, str]
    """To set where package managers run."""
    files: Mapping[str, str]
    """To be there too: texts by path."""
    directories: tuple[str, ...]
    """Local indexes, to be there read-only under the same path."""
    credentials: tuple[Credential, ...]


def look(machine: Mapping[str, str]) -> PackageManagers:
    """How this machine reaches package managers, by its variables (`EgressSettings.machine`) and files. Blocking."""
    home = Path(machine.get("HOME") or "/nonexistent")
    pip = _pip(machine, home)
    variables, files = {**_pip_variables(pip), **_others(machine, home)}, _files(machine, home)
    if GEMRC in files:
        variables["GEMRC"] = GEMRC
    addresses = [*chain.from_iterable(pip.values()), *variables.values(), *files.values(), *_listed_elsewhere(home)]
    urls = [url for text in addresses for match in URL.finditer(text) if (url := _split(match[0])) is not None]
    own = [each for each in map(_endpoint, urls) if each is not None]
    return PackageManagers(
        endpoints=(*(Endpoint(host) for host in HOSTS), *dict.fromkeys(own)),
        variables={name: _bare(value) for name, value in variables.items()},
        files={path: _bare(text) for path, text in files.items()},
        directories=tuple(dict.fromkeys(_directories(pip.get("find-links", ())))),
        credentials=tuple(dict.fromkeys(filter(None, map(_credential, urls)))),
    )


def _split(text: str) -> SplitResult | None:
    """An address in its parts; None when it is none after all."""
    try:
        return urlsplit(text.removeprefix("sparse+"))
    except ValueError:
        return None


def _endpoint(url: SplitResult) -> Endpoint | None:
    found = authority(url.netloc.rpartition("@")[2])
    if found is None:
        return None
    default = 80 if url.scheme == "http" else 443
    # A public registry that is configured by name is no reason to let its name lead to a private address.
    return Endpoint(found[0], found[1] or default, private=found[0] not in HOSTS)


def _credential(url: SplitResult) -> Credential | None:
    found = authority(url.netloc.rpartition("@")[2])
    if found is None or not url.username:
        return None
    pair = f"{unquote(url.username)}:{unquote(url.password or '')}".encode()
    port = found[1] or (80 if url.scheme == "http" else 443)
    authorization = f"Basic {base64.b64encode(pair).decode('ascii')}"
    return Credential(found[0], port, not url.scheme.lower().endswith("http"), authorization)


def _bare(text: str) -> str:
    """The text with its addresses less their user names and passwords."""

    def strip(match: re.Match[str]) -> str:
        url = _split(match[0])
        # What cannot be read may hold a password all the same.
        return "" if url is None else match[0].replace(url.netloc, url.netloc.rpartition("@")[2], 1)

    # Whatever else looks like it is of no use without being read, and no secret once it is gone.
    return USER.sub("", URL.sub(strip, text))


# ------------------------------------------------------------------------------------------------------- pip


def _pip(machine: Mapping[str, str], home: Path) -> Mapping[str, Sequence[str]]:
    """pip's options about indexes: variables win over files, the user's over the machine's."""
    found: dict[str, Sequence[str]] = {}
    config = Path(machine.get("XDG_CONFIG_HOME") or home / ".config")
    named = machine.get("PIP_CONFIG_FILE")
    places = [Path("/etc/xdg/pip/pip.conf"), Path("/etc/pip.conf"), home / ".pip/pip.conf", config / "pip/pip.conf"]
    for place in [*places, *([Path(named)] if named else [])]:
        parser = configparser.RawConfigParser(strict=False)
        try:
            parser.read_string(_text(place))
        except configparser.Error:
            continue
        for section in ("global", "install"):
            if parser.has_section(section):
                found |= {name.replace("_", "-"): value.split() for name, value in parser.items(section)}
    wanted = ("index-url", *PIP_LISTS, *PIP_SWITCHES)
    for name in wanted:
        value = machine.get(f"PIP_{name.upper().replace('-', '_')}")
        if value:
            found[name] = value.split()
    return {name: found[name] for name in wanted if name in found}


def _pip_variables(pip: Mapping[str, Sequence[str]]) -> dict[str, str]:
    return {f"PIP_{name.upper().replace('-', '_')}": " ".join(values) for name, values in pip.items()}


def _directories(places: Iterable[str]) -> Iterator[str]:
    for place in places:
        path = Path(urlsplit(place).path if place.startswith("file:") else place)
        if path.is_absolute() and path.is_dir():
            yield str(path)


# ---------------------------------------------------------------------------------------------------- others


def _others(machine: Mapping[str, str], home: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    npm = re.findall(r"^\s*registry\s*=\s*(\S+)\s*$", _text(home / ".npmrc"), re.MULTILINE)
    registry = machine.get("npm_config_registry") or machine.get("NPM_CONFIG_REGISTRY") or (npm[-1] if npm else None)
    if registry:
        found["npm_config_registry"] = registry
    found |= {name: machine[name] for name in ("GOPROXY", "GOSUMDB", "GONOSUMDB", "GOFLAGS") if machine.get(name)}
    return found


def _files(machine: Mapping[str, str], home: Path) -> dict[str, str]:
    """For managers that take addresses from files alone."""
    found: dict[str, str] = {}
    cargo = _cargo(Path(machine.get("CARGO_HOME") or home / ".cargo"))
    if cargo and URL.fullmatch(cargo):
        found[CARGO_CONFIG] = (
            f'[source.crates-io]\nreplace-with = "machine"\n\n[source.machine]\nregistry = "{cargo}"\n'
        )
    if gems := _gem_sources(home):
        found[GEMRC] = ":sources:\n" + "".join(f"- {source}\n" for source in gems)
    return found


def _gem_sources(home: Path) -> list[str]:
    """The user's before the machine's."""
    for place in (home / ".gemrc", Path("/etc/gemrc")):
        listed = GEM_SOURCES.search(_text(place))
        if listed and (sources := [match[0] for match in URL.finditer(listed[1])]):
            return sources
    return []


class _Source(msgspec.Struct, frozen=True, rename="kebab"):
    replace_with: str | None = None
    registry: str | None = None


class _Cargo(msgspec.Struct, frozen=True):
    source: Mapping[str, _Source] = {}


def _cargo(home: Path) -> str | None:
    """The address that stands in for crates.io."""
    for name in ("config.toml", "config"):
        try:
            sources = msgspec.toml.decode(_text(home / name), type=_Cargo).source
        except msgspec.DecodeError:
            continue
        public = sources.get("crates-io")
        instead = sources.get(public.replace_with or "") if public else None
        if instead and instead.registry:
            return instead.registry
    return None


def _listed_elsewhere(home: Path) -> Iterator[str]:
    """Files whose other addresses count as hosts too: gem's and apt's."""
    yield _text(home / ".gemrc")
    yield _text(Path("/etc/gemrc"))
    for place in (Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))):
        lines = _text(place).splitlines()
        yield "\n".join(line for line in lines if not line.lstrip().startswith("#"))


def _text(path: Path) -> str:
    """A file's text; empty when it cannot be read."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(FILE_BYTES_MAX)
    except OSError:
        return ""
