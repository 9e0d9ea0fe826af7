"""What a session's sandbox is made by: read from its environment when a sandbox is about to be opened.

Environments have no versions and may change while a session lives; a change holds for the sandboxes made after it.
"""

from __future__ import annotations

from urllib.parse import urlsplit

import msgspec

from corral.domain.environment import ENVIRONMENT_KIND, Environment, Recipe
from corral.domain.session import Session
from corral.domain.url import is_url
from corral.errors import NotFound, SandboxUnavailable
from corral.interfaces.records import Records


async def recipe(records: Records, session: Session) -> Recipe:
    """The recipe as it is now. Raises `SandboxUnavailable` when the environment was deleted."""
    try:
        record = await records.get(ENVIRONMENT_KIND, session.environment_id, session.workspace_id)
    except NotFound as error:
        raise SandboxUnavailable("The session's environment was deleted, so it gets no new sandbox.") from error
    environment = msgspec.json.decode(record.body, type=Environment)
    config = environment.config
    # Of a session from elsewhere a URL may be none; then connecting to it says so.
    urls = (server.url for server in session.agent.mcp_servers if is_url(server.url))
    hosts = tuple(sorted({urlsplit(url).netloc.rpartition("@")[2] for url in urls}))
    return Recipe(networking=config.networking, packages=config.packages, mcp_hosts=hosts, environment=environment.name)
