"""The built-in tools: one file each, and one line each here.

A tool tells the model what it does and checks what the model asks; the work is done in the sandbox
(`sandboxes/daemon/`). The web tools do theirs here, outside any sandbox, with what is in `web/`. What tools share is in
`arguments.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from corral.config_sections import WebSettings
from corral.errors import MachineUnfit
from corral.interfaces.tool import Tool, WebTool
from corral.tools.bash import Bash
from corral.tools.edit import Edit
from corral.tools.glob import Glob
from corral.tools.grep import Grep
from corral.tools.read import Read
from corral.tools.web.anthropic_search import AnthropicSearch
from corral.tools.web.brave import Brave
from corral.tools.web.openai_search import OpenAISearch
from corral.tools.web.searching import SearchEngine
from corral.tools.web.searxng import SearXNG
from corral.tools.web.tavily import Tavily
from corral.tools.web_fetch import WebFetch
from corral.tools.web_search import WebSearch
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

WEB_TOOLS = ("web_search", "web_fetch")


class SearchAccess(NamedTuple):
    """Keys of search engines, and where providers of models are. Never logged: its text is a star."""

    brave: str | None = None
    tavily: str | None = None
    anthropic: str | None = None
    anthropic_token: str | None = None
    anthropic_url: str | None = None
    openai: str | None = None
    openai_url: str | None = None

    def __repr__(self) -> str:
        return "SearchAccess(***)"


def open_web_tools(settings: WebSettings, access: SearchAccess, own_ports: Sequence[int] = ()) -> Mapping[str, WebTool]:
    """The web tools, by the name a model calls them. `own_ports` are this server's. Raises `MachineUnfit` for a search
    engine that lacks its key or address."""
    return {
        "web_search": WebSearch(settings, _engine(settings, access)),
        "web_fetch": WebFetch(settings, own_ports),
    }


def _engine(settings: WebSettings, access: SearchAccess) -> SearchEngine | None:
    seconds = settings.search_seconds_max
    match settings.search:
        case None:
            return None
        case "searxng":
            if not settings.search_url:
                raise MachineUnfit(
                    '`search = "searxng"` under `[web]` needs `search_url`, the address of the instance.'
                )
            return SearXNG(settings.search_url, seconds)
        case "brave":
            return Brave(_key(access.brave, "BRAVE_API_KEY"), settings.search_url, seconds)
        case "tavily":
            return Tavily(_key(access.tavily, "TAVILY_API_KEY"), settings.search_url, seconds)
        case "anthropic":
            url = settings.search_url or access.anthropic_url
            return AnthropicSearch(_anthropic_headers(access, url), _model(settings), url, seconds)
        case "openai":
            url = settings.search_url or access.openai_url
            return OpenAISearch(_key(access.openai, "OPENAI_API_KEY", url), _model(settings), url, seconds)


def _anthropic_headers(access: SearchAccess, url: str | None) -> dict[str, str]:
    if access.anthropic_token and not access.anthropic:
        return {"authorization": f"Bearer {access.anthropic_token}"}
    return {"x-api-key": _key(access.anthropic, "ANTHROPIC_API_KEY", url)}


def _model(settings: WebSettings) -> str:
    if not settings.search_model:
        raise MachineUnfit(
            f'`search = "{settings.search}"` under `[web]` needs `search_model`, a model that can search.'
        )
    return settings.search_model


def _key(key: str | None, variable: str, url: str | None = None) -> str:
    """The key; at an address of the operator's own there may be none."""
    if not key and url:
        return "none"
    if not key:
        raise MachineUnfit(f"The search engine that `[web]` names needs its key in {variable}.")
    return key
