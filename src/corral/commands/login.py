"""The login of `corral vault login`: OAuth's authorisation code with PKCE, ending at a redirect to this machine.

What the protocol says (where the server's metadata is, registering a client, PKCE, `state`, resource indicators) is the
official MCP SDK's; here are the page that the browser ends at, and what the login comes to in a credential.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

import anyio
import httpx2
from rich.console import Console
from rich.text import Text

from corral.errors import CredentialFailed, MachineUnfit

if TYPE_CHECKING:
    from anthropic.types.beta.vaults.beta_managed_agents_mcp_oauth_create_params import (
        BetaManagedAgentsMCPOAuthCreateParams,
    )
    from anthropic.types.beta.vaults.beta_managed_agents_mcp_oauth_refresh_params import TokenEndpointAuth
    from mcp.client.auth import OAuthClientProvider
    from mcp.shared.auth import AuthorizationCodeResult, OAuthClientInformationFull, OAuthToken

LOGIN_SECONDS_MAX = 600.0
REQUEST_SECONDS_MAX = 30.0
LINE_SECONDS_MAX = 10.0
HOST = "127.0.0.1"
PATH = "/callback"
PROTOCOL_VERSION = "2025-06-18"
REASON_CHARACTERS_MAX = 300
DONE = "Corral has what it needs. You can close this page."
NO_CLIENT = "The server registers no client for us: make one there, and give it with --client-id."
NOT_OURS = "This is not the answer that Corral waits for."


class Login:
    """A login to one MCP server."""

    def __init__(
        self, server_url: str, *, port: int = 0, client_id: str | None = None, secret: str | None = None
    ) -> None:
        self.server_url, self._port = server_url, port
        self._client_id, self._client_secret = client_id, secret

    async def run(self, out: Console) -> BetaManagedAgentsMCPOAuthCreateParams:
        """Have somebody log in; what to make a credential of. Raises `CredentialFailed`."""
        # Imported late: the SDK takes a second or two, and other commands never need it.
        from mcp.client.auth import OAuthClientProvider, OAuthFlowError, OAuthRegistrationError
        from mcp.shared.auth import OAuthClientMetadata
        from pydantic import AnyUrl

        # The SDK logs tracebacks of errors that it raises, too.
        logging.getLogger("mcp").addHandler(logging.NullHandler())
        logging.getLogger("mcp").propagate = False
        async with _page(self._port) as page:
            kept = _Kept(self._client_id, self._client_secret, page.url)
            metadata = OAuthClientMetadata(client_name="Corral", redirect_uris=[AnyUrl(page.url)])

            async def ask(url: str) -> None:
                page.state = parse_qs(urlsplit(url).query).get("state", [""])[0]
                out.print("Open this page in a browser on this machine, and log in:\n")
                out.print(Text(url), soft_wrap=True)

            provider = OAuthClientProvider(self.server_url, metadata, kept, ask, page.wait)
            try:
                with anyio.fail_after(LOGIN_SECONDS_MAX):
                    status = await _knock(self.server_url, provider)
            except TimeoutError as error:
                raise CredentialFailed("Nobody logged in within ten minutes.") from error
            except OAuthRegistrationError as error:
                raise CredentialFailed(f"{NO_CLIENT} ({str(error)[:REASON_CHARACTERS_MAX]})") from error
            except (OAuthFlowError, httpx2.HTTPError, httpx2.InvalidURL, ValueError) as error:
                raise CredentialFailed(f"The login failed: {str(error)[:REASON_CHARACTERS_MAX]}") from error
        if kept.tokens is None:
            raise CredentialFailed(f"{self.server_url} does not ask for a login: it answered {status} without a token.")
        return _auth(self.server_url, provider, kept.tokens)


class _Kept:
    """Implements the SDK's `TokenStorage`, for the moment."""

    def __init__(self, client_id: str | None, secret: str | None, redirect_url: str) -> None:
        self.tokens: OAuthToken | None = None
        self._client_id, self._secret, self._redirect_url = client_id, secret, redirect_url

    async def get_tokens(self) -> OAuthToken | None:
        return None

    async def set_tokens(self, tokens: OAuthToken) -> None:
        self.tokens = tokens

    async def get_client_info(self) -> OAuthClientInformationFull | None:
        """The client that was registered by hand, if there is one."""
        from mcp.shared.auth import OAuthClientInformationFull

        if self._client_id is None:
            return None
        return OAuthClientInformationFull.model_validate(
            {
                "client_id": self._client_id,
                "client_secret": self._secret,
                "token_endpoint_auth_method": "none" if self._secret is None else "client_secret_basic",
                "redirect_uris": [self._redirect_url],
            }
        )

    async def set_client_info(self, client_info: OAuthClientInformationFull) -> None:
        """The provider has it."""


class _Page:
    """Where the browser is sent at the end."""

    def __init__(self) -> None:
        self.url = ""
        self.state = ""
        """Of the login that is on; anything else that comes is somebody else's."""
        self._answer: asyncio.Future[dict[str, str]] = asyncio.get_running_loop().create_future()

    async def wait(self) -> AuthorizationCodeResult:
        """What the server had the browser bring. Raises `CredentialFailed` when it was a refusal."""
        from mcp.shared.auth import AuthorizationCodeResult

        answer = await self._answer
        if "code" not in answer:
            why = answer.get("error_description") or answer.get("error") or "no code came"
            raise CredentialFailed(f"The login was refused: {why[:REASON_CHARACTERS_MAX]}")
        return AuthorizationCodeResult(code=answer["code"], state=answer["state"], iss=answer.get("iss"))

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request of a browser."""
        try:
            async with asyncio.timeout(LINE_SECONDS_MAX):
                line = (await reader.readline()).decode("latin-1").split(" ")
                while (await reader.readline()).strip():
                    pass
            ours = len(line) == 3 and line[0] == "GET" and self._take(line[1])
            status, text = ("200 OK", DONE) if ours else ("404 Not Found", NOT_OURS)
            head = f"HTTP/1.1 {status}\r\ncontent-type: text/plain\r\ncontent-length: {len(text)}\r\nconnection: close"
            writer.write(f"{head}\r\n\r\n{text}".encode())
            await writer.drain()
        except (OSError, TimeoutError, ValueError):
            pass  # a browser that went away, or something that is none
        finally:
            writer.close()

    def _take(self, target: str) -> bool:
        parts = urlsplit(target)
        answer = {name: values[0] for name, values in parse_qs(parts.query).items()}
        if parts.path != PATH or not self.state or answer.get("state") != self.state or self._answer.done():
            return False
        self._answer.set_result(answer)
        return True


@asynccontextmanager
async def _page(port: int) -> AsyncGenerator[_Page]:
    page = _Page()
    try:
        server = await asyncio.start_server(page.serve, HOST, port)
    except OSError as error:
        raise MachineUnfit(f"Cannot listen on {HOST}:{port}: {error.strerror}. Choose another with --port.") from error
    async with server:
        page.url = f"http://{HOST}:{server.sockets[0].getsockname()[1]}{PATH}"
        yield page


async def _knock(url: str, provider: OAuthClientProvider) -> int:
    """Say hello to the server; the SDK does the rest when that needs a token."""
    hello = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "initialize",
        "params": {
            "protocolVersion": PROTOCOL_VERSION,
            "capabilities": {},
            "clientInfo": {"name": "corral", "version": "1"},
        },
    }
    headers = {"accept": "application/json, text/event-stream", "mcp-protocol-version": PROTOCOL_VERSION}
    async with httpx2.AsyncClient(auth=provider, timeout=REQUEST_SECONDS_MAX) as http:
        async with http.stream("POST", url, json=hello, headers=headers) as response:
            return response.status_code


def _auth(server_url: str, provider: OAuthClientProvider, tokens: OAuthToken) -> BetaManagedAgentsMCPOAuthCreateParams:
    context, client = provider.context, provider.context.client_info
    lasts = None if tokens.expires_in is None else timedelta(seconds=tokens.expires_in)
    auth: BetaManagedAgentsMCPOAuthCreateParams = {
        "type": "mcp_oauth",
        "mcp_server_url": server_url,
        "access_token": tokens.access_token,
        "expires_at": None if lasts is None else datetime.now(UTC) + lasts,
    }
    if tokens.refresh_token and client is not None:
        origin = context.get_authorization_base_url(server_url)
        known = context.oauth_metadata
        auth["refresh"] = {
            "client_id": client.client_id,
            "refresh_token": tokens.refresh_token,
            "token_endpoint": str(known.token_endpoint) if known is not None else f"{origin}/token",
            "token_endpoint_auth": _endpoint_auth(client),
            "resource": context.get_resource_url(),
            "scope": tokens.scope or None,
        }
    return auth


def _endpoint_auth(client: OAuthClientInformationFull) -> TokenEndpointAuth:
    secret = client.client_secret
    if secret is not None and client.token_endpoint_auth_method == "client_secret_basic":
        return {"type": "client_secret_basic", "client_secret": secret}
    if secret is not None and client.token_endpoint_auth_method == "client_secret_post":
        return {"type": "client_secret_post", "client_secret": secret}
    return {"type": "none"}
