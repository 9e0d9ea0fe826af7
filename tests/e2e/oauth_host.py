"""An OAuth server in front of a real MCP server, by the official SDK's server side; only the storage is written here.

Its endpoints can be told to misbehave: what they answer then comes from the test.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import NamedTuple
from urllib.parse import parse_qsl

from mcp.server.auth.provider import (
    AccessToken,
    AuthorizationCode,
    AuthorizationParams,
    OAuthAuthorizationServerProvider,
    RefreshToken,
    construct_redirect_uri,
)
from mcp.server.auth.settings import AuthSettings, ClientRegistrationOptions, RevocationOptions
from mcp.server.mcpserver import MCPServer
from mcp.shared.auth import OAuthClientInformationFull, OAuthToken
from pydantic import AnyHttpUrl, AnyUrl
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from corral.serving import bind
from tests.e2e.mcp_host import listening

SCOPES = ["tools", "offline"]
LIFETIME_SECONDS = 3_600


class Answer(NamedTuple):
    """What an endpoint says instead of what it should."""

    status: int
    body: bytes = b"out of order"
    content_type: str = "text/plain"
    hangs: bool = False


class Grants(OAuthAuthorizationServerProvider[AuthorizationCode, RefreshToken, AccessToken]):
    """Clients, codes and tokens in memory. Refresh tokens are used once, unless a test says that they stay."""

    def __init__(self) -> None:
        self.clients: dict[str, OAuthClientInformationFull] = {}
        self.codes: dict[str, AuthorizationCode] = {}
        self.access: dict[str, AccessToken] = {}
        self.refreshes: dict[str, RefreshToken] = {}
        self.rotates = True
        self.lifetime: int | None = LIFETIME_SECONDS

    async def get_client(self, client_id: str) -> OAuthClientInformationFull | None:
        return self.clients.get(client_id)

    async def register_client(self, client_info: OAuthClientInformationFull) -> None:
        self.clients[client_info.client_id] = client_info

    async def authorize(self, client: OAuthClientInformationFull, params: AuthorizationParams) -> str:
        code = AuthorizationCode(
            code=secrets.token_urlsafe(32),
            scopes=params.scopes or SCOPES,
            expires_at=time.time() + 60,
            client_id=client.client_id,
            code_challenge=params.code_challenge,
            redirect_uri=params.redirect_uri,
            redirect_uri_provided_explicitly=params.redirect_uri_provided_explicitly,
            resource=params.resource,
        )
        self.codes[code.code] = code
        return construct_redirect_uri(str(params.redirect_uri), code=code.code, state=params.state)

    async def load_authorization_code(
        self, client: OAuthClientInformationFull, authorization_code: str
    ) -> AuthorizationCode | None:
        return self.codes.get(authorization_code)

    async def exchange_authorization_code(
        self, client: OAuthClientInformationFull, authorization_code: AuthorizationCode
    ) -> OAuthToken:
        del self.codes[authorization_code.code]
        return self.issue(client.client_id, authorization_code.scopes, authorization_code.resource)

    async def load_refresh_token(self, client: OAuthClientInformationFull, refresh_token: str) -> RefreshToken | None:
        return self.refreshes.get(refresh_token)

    async def exchange_refresh_token(
        self, client: OAuthClientInformationFull, refresh_token: RefreshToken, scopes: list[str]
    ) -> OAuthToken:
        if not self.rotates:
            fresh = self.issue(client.client_id, scopes, refresh_token.resource)
            del self.refreshes[fresh.refresh_token or ""]
            return fresh.model_copy(update={"refresh_token": None})
        del self.refreshes[refresh_token.token]
        return self.issue(client.client_id, scopes, refresh_token.resource)

    async def load_access_token(self, token: str) -> AccessToken | None:
        return self.access.get(token)

    async def revoke_token(self, token: AccessToken | RefreshToken) -> None:
        self.access.pop(token.token, None)
        self.refreshes.pop(token.token, None)

    def issue(self, client_id: str, scopes: list[str], resource: str | None) -> OAuthToken:
        access, refresh = (f"{kind}-{secrets.token_urlsafe(24)}" for kind in ("access", "refresh"))
        self.access[access] = AccessToken(token=access, client_id=client_id, scopes=scopes, resource=resource)
        self.refreshes[refresh] = RefreshToken(token=refresh, client_id=client_id, scopes=scopes, resource=resource)
        return OAuthToken(access_token=access, refresh_token=refresh, expires_in=self.lifetime, scope=" ".join(scopes))


class OAuthHost:
    """An MCP server that lets in who bears a token of its own, and what has happened on it."""

    def __init__(self, port: int) -> None:
        self.base_url = f"http://127.0.0.1:{port}"
        self.url = f"{self.base_url}/mcp"
        self.token_endpoint = f"{self.base_url}/token"
        self.grants = Grants()
        self.exchanges: list[dict[str, str]] = []
        """Forms that the token endpoint was sent."""
        self.calls: list[str] = []
        """Tokens that tools were called with."""
        self.answers: dict[str, Answer] = {}
        """By path: what is said there instead."""
        self.on_call: Callable[[], None] = lambda: None

    def client(self, auth: str = "none") -> OAuthClientInformationFull:
        """A client that is registered beforehand."""
        made = OAuthClientInformationFull(
            client_id=f"client/{secrets.token_hex(4)}",
            client_secret=None if auth == "none" else f"secret +/{secrets.token_hex(8)}",
            token_endpoint_auth_method=auth,
            redirect_uris=[AnyUrl("http://127.0.0.1/callback")],
            scope=" ".join(SCOPES),
        )
        self.grants.clients[made.client_id] = made
        return made

    def app(self) -> ASGIApp:
        settings = AuthSettings(
            issuer_url=AnyHttpUrl(self.base_url),
            resource_server_url=AnyHttpUrl(self.url),
            validate_token_resource=True,
            required_scopes=["tools"],
            client_registration_options=ClientRegistrationOptions(
                enabled=True, valid_scopes=SCOPES, default_scopes=SCOPES
            ),
            revocation_options=RevocationOptions(enabled=True),
        )
        server = MCPServer("guarded", auth_server_provider=self.grants, auth=settings)

        @server.tool()
        def whoami() -> str:
            """Say hello."""
            self.on_call()
            return "a friend"

        return self._watched(server.streamable_http_app())

    def _watched(self, app: ASGIApp) -> ASGIApp:
        async def watched(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                return await app(scope, receive, send)
            body, messages = await _read(receive)
            if scope["path"] == "/token":
                self.exchanges.append(dict(parse_qsl(body.decode())))
            if scope["path"] == "/mcp" and b'"tools/call"' in body:
                self.calls.append(dict(scope["headers"]).get(b"authorization", b"").decode())
            odd = self.answers.get(scope["path"])
            if odd is None:
                return await app(scope, _replayed(messages, receive), send)
            await _say(odd, receive, send)

        return watched


async def _say(odd: Answer, receive: Receive, send: Send) -> None:
    while odd.hangs and (await receive())["type"] != "http.disconnect":
        pass
    headers = [(b"content-type", odd.content_type.encode()), (b"content-length", str(len(odd.body)).encode())]
    await send({"type": "http.response.start", "status": odd.status, "headers": headers})
    await send({"type": "http.response.body", "body": odd.body})


async def _read(receive: Receive) -> tuple[bytes, list[Message]]:
    messages, body, more = list[Message](), b"", True
    while more:
        messages.append(await receive())
        body += messages[-1].get("body", b"")
        more = messages[-1].get("more_body", False)
    return body, messages


def _replayed(messages: list[Message], receive: Receive) -> Receive:
    async def replay() -> Message:
        return messages.pop(0) if messages else await receive()

    return replay


def failing(code: str, status: int = 400) -> Answer:
    """An error as OAuth has it."""
    return Answer(status, json.dumps({"error": code}).encode(), "application/json")


@contextmanager
def oauth_host() -> Generator[OAuthHost]:
    """Such a server, running."""
    listener = bind("127.0.0.1", 0)
    host = OAuthHost(int(listener.getsockname()[1]))
    with listening(host.app(), listener=listener):
        yield host
