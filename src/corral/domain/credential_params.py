"""Credentials as clients send them, to create and to change. What becomes of them is in `credential.py`.

Source: the API's public documentation; SDK types `beta/vaults/*_params`.
"""

from __future__ import annotations

from datetime import datetime
from typing import TypeAlias

from msgspec import UNSET, UnsetType

from corral.domain.toolset import Wire


class ClientSecretBasicParams(Wire, frozen=True, kw_only=True, tag_field="type", tag="client_secret_basic"):
    """The token endpoint takes the client's secret by HTTP Basic authentication."""

    client_secret: str


class ClientSecretPostParams(Wire, frozen=True, kw_only=True, tag_field="type", tag="client_secret_post"):
    """The token endpoint takes the client's secret in the body."""

    client_secret: str


class NoClientAuth(Wire, frozen=True, kw_only=True, tag_field="type", tag="none"):
    """The token endpoint does not authenticate clients."""


class RefreshParams(Wire, frozen=True, kw_only=True):
    """How to get a new access token."""

    client_id: str
    refresh_token: str
    token_endpoint: str
    token_endpoint_auth: NoClientAuth | ClientSecretBasicParams | ClientSecretPostParams
    resource: str | None = None
    scope: str | None = None


class McpOAuthParams(Wire, frozen=True, kw_only=True, tag_field="type", tag="mcp_oauth"):
    """An OAuth token for an MCP server."""

    access_token: str
    mcp_server_url: str
    expires_at: datetime | None = None
    refresh: RefreshParams | None = None


class StaticBearerParams(Wire, frozen=True, kw_only=True, tag_field="type", tag="static_bearer"):
    """A token for an MCP server that does not change."""

    token: str
    mcp_server_url: str


class InjectionLocationParams(Wire, frozen=True, kw_only=True):
    """Where in a request the secret may stand; None where nothing is said."""

    body: bool | None = None
    header: bool | None = None


class AnyHost(Wire, frozen=True, kw_only=True, tag_field="type", tag="unrestricted"):
    """Wherever the environment lets the session go."""


class ListedHosts(Wire, frozen=True, kw_only=True, tag_field="type", tag="limited"):
    """Only in requests to these hosts; `*.x` matches below x and not x itself."""

    allowed_hosts: tuple[str, ...]


class EnvironmentVariableParams(Wire, frozen=True, kw_only=True, tag_field="type", tag="environment_variable"):
    """A secret that stands in an environment variable, as a placeholder."""

    networking: AnyHost | ListedHosts
    secret_name: str
    secret_value: str
    injection_location: InjectionLocationParams | UnsetType | None = UNSET


class ClientSecretBasicUpdate(Wire, frozen=True, kw_only=True, tag_field="type", tag="client_secret_basic"):
    """A new client secret; the kind stays what it is."""

    client_secret: str | None = None


class ClientSecretPostUpdate(Wire, frozen=True, kw_only=True, tag_field="type", tag="client_secret_post"):
    """A new client secret; the kind stays what it is."""

    client_secret: str | None = None


class RefreshUpdate(Wire, frozen=True, kw_only=True):
    """New values; what is left out stays."""

    refresh_token: str | None = None
    scope: str | None = None
    token_endpoint_auth: ClientSecretBasicUpdate | ClientSecretPostUpdate | None = None


class McpOAuthUpdate(Wire, frozen=True, kw_only=True, tag_field="type", tag="mcp_oauth"):
    """New values; what is left out stays."""

    access_token: str | None = None
    expires_at: datetime | UnsetType | None = UNSET
    refresh: RefreshUpdate | None = None


class StaticBearerUpdate(Wire, frozen=True, kw_only=True, tag_field="type", tag="static_bearer"):
    """New values; what is left out stays."""

    token: str | None = None


class EnvironmentVariableUpdate(Wire, frozen=True, kw_only=True, tag_field="type", tag="environment_variable"):
    """New values; what is left out stays. `networking` is replaced whole."""

    injection_location: InjectionLocationParams | None = None
    networking: AnyHost | ListedHosts | None = None
    secret_value: str | None = None


AuthParams: TypeAlias = McpOAuthParams | StaticBearerParams | EnvironmentVariableParams
AuthUpdate: TypeAlias = McpOAuthUpdate | StaticBearerUpdate | EnvironmentVariableUpdate


class CredentialCreate(Wire, frozen=True, kw_only=True):
    """Body of `POST /v1/vaults/{id}/credentials`."""

    auth: AuthParams
    display_name: str | None = None
    metadata: dict[str, str] = {}


class CredentialUpdate(Wire, frozen=True, kw_only=True):
    """Body of `POST /v1/vaults/{id}/credentials/{id}`."""

    auth: AuthUpdate | UnsetType = UNSET
    display_name: str | UnsetType | None = UNSET
    metadata: dict[str, str | None] | UnsetType | None = UNSET
