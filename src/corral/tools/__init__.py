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
from corral.tools.web.brave import Brave
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


class SearchKeys(NamedTuple):
    """Keys of search engines. Never logged: their text is a star."""

    brave: str | None = None
    tavily: str | None = None

    def __repr__(self) -> str:
        return "SearchKeys(***)"


def open_web_tools(settings: WebSettings, keys: SearchKeys, own_ports: Sequence[int] = ()) -> Mapping[str, WebTool]:
    """The web tools, by the name a model calls them. `own_ports` are this server's. Raises `MachineUnfit` for a search
    engine that lacks its key or address."""
    return {
        "web_search": WebSearch(settings, _engine(settings, keys)),
        "web_fetch": WebFetch(settings, own_ports),
    }


def _engine(settings: WebSettings, keys: SearchKeys) -> SearchEngine | None:
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
            return Brave(_key(keys.brave, "BRAVE_API_KEY"), settings.search_url, seconds)
        case "tavily":
            return Tavily(_key(keys.tavily, "TAVILY_API_KEY"), settings.search_url, seconds)


def _key(key: str | None, variable: str) -> str:
    if not key:
        raise MachineUnfit(f"The search engine that `[web]` names needs its key in {variable}.")
    return key
