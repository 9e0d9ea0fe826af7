"""The session's token for one MCP server, put into each request; a refused one is refreshed once."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable

import httpx2

from corral.errors import CorralError
from corral.interfaces.vault import Bearer

UNAUTHORIZED = 401
TOKENS_REMEMBERED = 8
FindBearer = Callable[[Bearer | None], Awaitable[Bearer | None]]
"""The token as it is now; given one that was refused, another one or None."""


class VaultAuth(httpx2.Auth):
    """Asks the vaults before every request, so a rotated token counts at once. Without a token nothing is sent."""

    def __init__(self, find: FindBearer) -> None:
        self._find = find
        self.refused: str | None = None
        """Why the server will not let us in, once that is known."""
        self.sent: deque[str] = deque(maxlen=TOKENS_REMEMBERED)
        """Tokens that the server has seen, and might repeat."""

    async def async_auth_flow(self, request: httpx2.Request) -> AsyncGenerator[httpx2.Request, httpx2.Response]:
        """Send the request, and once more with a fresh token if the first one was refused."""
        bearer = await self._found(None)
        response = yield self._with(request, bearer)
        if response.status_code == UNAUTHORIZED and bearer is not None:
            fresh = await self._found(bearer)
            if fresh is not None and fresh.token != bearer.token:
                bearer = fresh
                response = yield self._with(request, bearer)
        if response.status_code == UNAUTHORIZED and self.refused is None:
            held = "its credential was refused" if bearer else "no vault of the session has a credential for it"
            self.refused = f"it answered 401, and {held}"
        elif response.status_code != UNAUTHORIZED:
            self.refused = None

    async def _found(self, rejected: Bearer | None) -> Bearer | None:
        try:
            return await self._find(rejected)
        except CorralError as error:
            self.refused = error.message.rstrip(".")
            return None

    def _with(self, request: httpx2.Request, bearer: Bearer | None) -> httpx2.Request:
        if bearer is None:
            request.headers.pop("authorization", None)
            return request
        if bearer.token not in self.sent:
            self.sent.append(bearer.token)
        request.headers["authorization"] = f"Bearer {bearer.token}"
        return request
