"""What an agent's settings say about the web: domain lists, sources of URLs, and what they let through.

Decisions only. Which address a name leads to is asked in `domain/address.py`; fetching and searching are in `tools/`.

Source: the API's public documentation; SDK types `beta_managed_agents_web_{fetch,search}_*`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from posixpath import normpath
from typing import Literal, NamedTuple, TypeAlias
from urllib.parse import unquote

import msgspec

from corral.domain.url import Url
from corral.errors import Invalid

DOMAINS_MAX = 64
DOMAIN_CHARACTERS_MAX = 253
SOURCE_TOOLS_MAX = 128
WEB_TOOLS = ("web_search", "web_fetch")
LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"
HOST = re.compile(rf"(?:{LABEL}\.)+[a-zA-Z](?:[a-zA-Z0-9-]{{0,61}}[a-zA-Z0-9])")
"""Two labels at least, and the last one does not begin like a number: neither a TLD nor an address."""
PATH = re.compile(r"/[!$&-;=@-Z_a-z~%-]{0,200}")

SourceKind: TypeAlias = Literal["user_input", "server_tool_results", "client_tool_results"]


class Source(NamedTuple):
    """Where a conversation showed a URL."""

    kind: SourceKind
    tool: str = ""
    """Whose result it was."""


class _Wire(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type"):
    """Base of what stands in an agent's settings."""


class UrlsAll(_Wire, frozen=True, kw_only=True, tag="all"):
    """Every URL from this source."""


class UrlsNone(_Wire, frozen=True, kw_only=True, tag="none"):
    """No URL from this source."""


class ToolReference(_Wire, frozen=True, kw_only=True, tag="tool_reference"):
    """Names one tool, exactly."""

    name: str


class UrlsOnly(_Wire, frozen=True, kw_only=True, tag="only"):
    """URLs from these tools' results."""

    tools: tuple[ToolReference, ...]


class UrlsExcept(_Wire, frozen=True, kw_only=True, tag="except"):
    """URLs from other tools' results than these."""

    tools: tuple[ToolReference, ...]


Shorthand: TypeAlias = Literal["all", "none"]
UserFilter: TypeAlias = UrlsAll | UrlsNone
ToolFilter: TypeAlias = UrlsAll | UrlsNone | UrlsOnly | UrlsExcept


class UrlSourcesParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which sources contribute URLs that may be fetched."""

    user_input: Shorthand | UserFilter | None = None
    server_tool_results: Shorthand | ToolFilter | None = None
    client_tool_results: Shorthand | ToolFilter | None = None


class UrlSources(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The same, always as objects; None was not set and counts as all."""

    user_input: UserFilter | None = None
    server_tool_results: ToolFilter | None = None
    client_tool_results: ToolFilter | None = None

    def allow(self, shown: Collection[Source]) -> bool:
        """Whether one of the places where a URL was shown is good enough."""
        return any(_lets(getattr(self, source.kind), source.tool) for source in shown)


def url_sources(params: UrlSourcesParams, path: str) -> UrlSources:
    """The sources written out. Raises `Invalid`."""
    sources = UrlSources(
        user_input=_user_filter(params.user_input),
        server_tool_results=_tool_filter(params.server_tool_results, f"{path}.server_tool_results"),
        client_tool_results=_tool_filter(params.client_tool_results, f"{path}.client_tool_results"),
    )
    if all(isinstance(each, UrlsNone) for each in msgspec.structs.astuple(sources)):
        raise Invalid(f"{path}: at least one source must not be `none`; disable web_fetch instead")
    for name in _named(sources.server_tool_results):
        if name not in WEB_TOOLS:
            raise Invalid(f"{path}.server_tool_results: `{name}` is neither web_search nor web_fetch")
    return sources


def check_client_tools(sources: UrlSources, custom: Collection[str], path: str) -> None:
    """Raise `Invalid` for a name that is not one of the agent's custom tools."""
    for name in _named(sources.client_tool_results):
        if name not in custom:
            raise Invalid(f"{path}.client_tool_results: there is no custom tool `{name}`")


def check_domains(domains: Collection[str], path: str, *, with_path: bool) -> None:
    """Raise `Invalid` for a list that is empty or too long, and for an entry that is not a plain host name."""
    if not 1 <= len(domains) <= DOMAINS_MAX:
        raise Invalid(f"{path}: must hold 1 to {DOMAINS_MAX} domains")
    for index, domain in enumerate(domains):
        host, slash, suffix = domain.partition("/")
        plain = HOST.fullmatch(host) is not None and len(host) <= DOMAIN_CHARACTERS_MAX
        fits = not slash or (with_path and PATH.fullmatch(slash + suffix) is not None)
        if not plain or not fits or host.lower().endswith(".localhost"):
            form = "docs.example.com or docs.example.com/guide" if with_path else "docs.example.com"
            raise Invalid(f"{path}.{index}: must be a plain host name such as {form}")


def domains_refuse(url: Url, allowed: Collection[str] | None, blocked: Collection[str] | None) -> bool:
    """Whether lists of domains, of which at most one is given, keep a URL out."""
    if allowed is not None:
        # Servers that decode a path see another one, and both must be where they may be.
        return not any(all(_within(url, path, domain) for path in _paths(url)) for domain in allowed)
    return any(_within(url, path, domain) for domain in blocked or () for path in _paths(url))


def _paths(url: Url) -> set[str]:
    """The URL's path as it is written, and as servers may read it: decoded, its `..` followed, `//` as one."""
    written = url.target.partition("?")[0]
    read = unquote(written).replace("\\", "/")
    return {written, normpath("/" + read.lstrip("/")) + ("/" if read.endswith("/") else "")}


def _within(url: Url, path: str, domain: str) -> bool:
    host, slash, suffix = domain.partition("/")
    host = host.lower()
    if url.host != host and not url.host.endswith(f".{host}"):
        return False
    inner = f"/{suffix}".rstrip("/")
    return not slash or path == inner or path.startswith(f"{inner}/")


def _user_filter(given: Shorthand | UserFilter | None) -> UserFilter | None:
    if isinstance(given, str):
        return UrlsAll() if given == "all" else UrlsNone()
    return given


def _tool_filter(given: Shorthand | ToolFilter | None, path: str) -> ToolFilter | None:
    if isinstance(given, str):
        return _user_filter(given)
    names = _named(given)
    if isinstance(given, UrlsOnly | UrlsExcept) and not 1 <= len(names) <= SOURCE_TOOLS_MAX:
        raise Invalid(f"{path}.tools: must hold 1 to {SOURCE_TOOLS_MAX} tools")
    if len(set(names)) < len(names):
        raise Invalid(f"{path}.tools: each tool may be named once")
    return given


def _named(given: UserFilter | ToolFilter | None) -> list[str]:
    return [tool.name for tool in given.tools] if isinstance(given, UrlsOnly | UrlsExcept) else []


def _lets(given: UserFilter | ToolFilter | None, tool: str) -> bool:
    match given:
        case None | UrlsAll():
            return True
        case UrlsNone():
            return False
        case UrlsOnly():
            return _has(given.tools, tool)
        case UrlsExcept():
            return not _has(given.tools, tool)


def _has(tools: Iterable[ToolReference], name: str) -> bool:
    return any(tool.name == name for tool in tools)
