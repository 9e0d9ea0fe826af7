"""Credentials: what a vault holds. The public half is what the wire shows; the secret half is write-only.

Every function here takes both halves apart or puts a change into both; how the secret half is sealed is in `vaults/`.
A credential's *key* is what it is found by: the URL of an MCP server, or the name of an environment variable.

Source: the API's public documentation; SDK types `beta/vaults/*`.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import TypeAlias
from urllib.parse import urlsplit

import msgspec
from msgspec import UNSET, UnsetType

from corral.domain import metadata as metadata_rules
from corral.domain.credential_params import (
    AnyHost,
    AuthParams,
    AuthUpdate,
    ClientSecretBasicParams,
    ClientSecretPostParams,
    CredentialCreate,
    CredentialUpdate,
    EnvironmentVariableParams,
    EnvironmentVariableUpdate,
    InjectionLocationParams,
    ListedHosts,
    McpOAuthParams,
    McpOAuthUpdate,
    NoClientAuth,
    RefreshParams,
    StaticBearerParams,
    StaticBearerUpdate,
)
from corral.domain.environment import HOST
from corral.domain.url import is_url
from corral.domain.vault import check_display_name
from corral.errors import Invalid

CREDENTIAL_KIND = "vault_credential"
"""Kind of their records."""
CREDENTIALS_PER_VAULT_MAX = 20
ALLOWED_HOSTS_MAX = 16
CHARACTERS_MAX = {
    "mcp_server_url": 2_047,
    "token_endpoint": 2_047,
    "resource": 2_047,
    "access_token": 8_192,
    "token": 8_192,
    "secret_value": 8_192,
    "refresh_token": 4_096,
    "client_id": 1_024,
    "scope": 8_192,
    "client_secret": 512,
    "secret_name": 255,
}
SECRET_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
SECRET_NAMES_TAKEN = re.compile(
    r"(PATH|HOME|USER|SHELL|LANG|TERM|PWD|LD_.*|BASH_.*|(HTTPS?|ALL|NO)_PROXY)", re.IGNORECASE
)
"""The sandbox sets these itself, or would not work with a placeholder in them."""
DEFAULT_PORTS = {"http": 80, "https": 443}


class ClientSecretBasic(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="client_secret_basic"):
    """HTTP Basic authentication."""


class ClientSecretPost(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="client_secret_post"):
    """In the body."""


class Refresh(msgspec.Struct, frozen=True, kw_only=True):
    """How to get a new access token, without the secrets."""

    client_id: str
    token_endpoint: str
    token_endpoint_auth: NoClientAuth | ClientSecretBasic | ClientSecretPost
    resource: str | None = None
    scope: str | None = None


class McpOAuth(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="mcp_oauth"):
    """An OAuth token for an MCP server, without the token."""

    mcp_server_url: str
    expires_at: datetime | None = None
    refresh: Refresh | None = None


class StaticBearer(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="static_bearer"):
    """A token for an MCP server, without the token."""

    mcp_server_url: str


class InjectionLocation(msgspec.Struct, frozen=True, kw_only=True):
    """Where in a request the secret takes the placeholder's place."""

    body: bool
    header: bool


class EnvironmentVariable(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="environment_variable"):
    """A secret in an environment variable, without the secret."""

    secret_name: str
    networking: AnyHost | ListedHosts
    injection_location: InjectionLocation


Auth: TypeAlias = McpOAuth | StaticBearer | EnvironmentVariable


class Credential(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="vault_credential"):
    """A credential as the wire shows it."""

    id: str
    vault_id: str
    auth: Auth
    created_at: datetime
    updated_at: datetime
    archived_at: datetime | None = None
    display_name: str | None = None
    metadata: dict[str, str] = {}

    @property
    def key(self) -> str:
        """What it is found by; unique among the active credentials of a vault."""
        match self.auth:
            case EnvironmentVariable():
                return f"variable {self.auth.secret_name}"
            case McpOAuth() | StaticBearer():
                return f"server {normal_url(self.auth.mcp_server_url)}"


class SecretHalf(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is never shown: sealed at rest, and printed as stars."""

    value: str
    """The access token, the static token, or the variable's value."""
    refresh_token: str | None = None
    client_secret: str | None = None

    def __repr__(self) -> str:
        return "SecretHalf(***)"


class StoredCredential(msgspec.Struct, frozen=True, kw_only=True):
    """A credential as it lasts."""

    credential: Credential
    sealed: bytes | None
    """The `SecretHalf` as JSON, sealed with the vault's key; None once it is archived."""


def create(
    body: CredentialCreate, *, credential_id: str, vault_id: str, now: datetime
) -> tuple[Credential, SecretHalf]:
    """A new credential, in its two halves. Raises `Invalid`."""
    auth, secret = _created(body.auth, now)
    credential = Credential(
        id=credential_id,
        vault_id=vault_id,
        auth=auth,
        created_at=now,
        updated_at=now,
        display_name=None if body.display_name is None else check_display_name(body.display_name),
        metadata=metadata_rules.checked(body.metadata),
    )
    return credential, secret


def update(
    credential: Credential, secret: SecretHalf, body: CredentialUpdate, *, now: datetime
) -> tuple[Credential, SecretHalf]:
    """Both halves after an update. Raises `Invalid`."""
    auth, changed_secret = credential.auth, secret
    if body.auth is not UNSET:
        auth, changed_secret = _updated(credential.auth, secret, body.auth, now)
    name = body.display_name
    changed = msgspec.structs.replace(
        credential,
        auth=auth,
        display_name=name if name is None else credential.display_name if name is UNSET else check_display_name(name),
        metadata=(
            credential.metadata
            if body.metadata is UNSET
            else metadata_rules.patched(credential.metadata, body.metadata)
        ),
    )
    if changed == credential and changed_secret == secret:
        return credential, secret
    return msgspec.structs.replace(changed, updated_at=now), changed_secret


def refreshed(
    credential: Credential, secret: SecretHalf, *, token: str, refresh_token: str | None, expires_at: datetime | None
) -> tuple[Credential, SecretHalf]:
    """Both halves after the token endpoint gave a new access token; a refresh token that is not renewed stays."""
    assert isinstance(credential.auth, McpOAuth), "only OAuth tokens are refreshed"
    auth = msgspec.structs.replace(credential.auth, expires_at=expires_at)
    secret = msgspec.structs.replace(secret, value=token, refresh_token=refresh_token or secret.refresh_token)
    return msgspec.structs.replace(credential, auth=auth), secret


def check(credential: Credential, secret: SecretHalf | None) -> None:
    """Raises `Invalid` for halves that come from elsewhere and that no `create` here would have made. A moment in the
    past is all right; an archived credential has no secret, and any other has one."""
    if credential.display_name is not None:
        check_display_name(credential.display_name)
    metadata_rules.checked(credential.metadata)
    auth = credential.auth
    match auth:
        case StaticBearer():
            _url("mcp_server_url", auth.mcp_server_url)
        case McpOAuth():
            _url("mcp_server_url", auth.mcp_server_url)
            if auth.expires_at is not None and auth.expires_at.tzinfo is None:
                raise Invalid("auth.expires_at: must have a time zone")
            if auth.refresh is not None:
                _check_refresh(auth.refresh)
        case EnvironmentVariable():
            _secret_name(auth.secret_name)
            _networking(auth.networking)
            _some_location(auth.injection_location)
    if (secret is None) != (credential.archived_at is not None):
        raise Invalid("secret: an archived credential has none, and any other must have one")
    if secret is not None:
        _check_secret(auth, secret)


def _check_refresh(refresh: Refresh) -> None:
    _text("refresh.client_id", refresh.client_id)
    _url("refresh.token_endpoint", refresh.token_endpoint)
    if refresh.resource is not None:
        _url("refresh.resource", refresh.resource)
    if refresh.scope is not None:
        _text("refresh.scope", refresh.scope)


def _check_secret(auth: Auth, secret: SecretHalf) -> None:
    refresh = auth.refresh if isinstance(auth, McpOAuth) else None
    client = None if refresh is None or isinstance(refresh.token_endpoint_auth, NoClientAuth) else refresh
    for name, value, owner in (
        ("refresh_token", secret.refresh_token, refresh),
        ("client_secret", secret.client_secret, client),
    ):
        if (value is None) != (owner is None):
            raise Invalid(f"secret.{name}: must be there if `auth` says that it is used, and only then")
    # Their lengths are free: a token endpoint may have given longer ones than clients may send.
    if not all(value is None or value for value in (secret.value, secret.refresh_token, secret.client_secret)):
        raise Invalid("secret: must not be empty")


def normal_url(url: str) -> str:
    """The URL in the form that two spellings of one server share: case, default port and trailing slash aside.

    What is no URL, as an agent from elsewhere may name, is like itself alone."""
    if not is_url(url):
        return url
    parts = urlsplit(url)
    scheme, host = parts.scheme.lower(), (parts.hostname or "").lower()
    if ":" in host:
        host = f"[{host}]"
    port = "" if parts.port in (None, DEFAULT_PORTS.get(scheme)) else f":{parts.port}"
    query = f"?{parts.query}" if parts.query else ""
    return f"{scheme}://{host}{port}{parts.path.rstrip('/')}{query}"


def _created(params: AuthParams, now: datetime) -> tuple[Auth, SecretHalf]:
    match params:
        case StaticBearerParams():
            auth = StaticBearer(mcp_server_url=_url("mcp_server_url", params.mcp_server_url))
            return auth, SecretHalf(value=_text("token", params.token))
        case McpOAuthParams():
            refresh = params.refresh
            oauth = McpOAuth(
                mcp_server_url=_url("mcp_server_url", params.mcp_server_url),
                expires_at=_future(params.expires_at, now),
                refresh=None if refresh is None else _refresh(refresh),
            )
            return oauth, SecretHalf(
                value=_text("access_token", params.access_token),
                refresh_token=None if refresh is None else _text("refresh.refresh_token", refresh.refresh_token),
                client_secret=None if refresh is None else _client_secret(refresh),
            )
        case EnvironmentVariableParams():
            variable = EnvironmentVariable(
                secret_name=_secret_name(params.secret_name),
                networking=_networking(params.networking),
                injection_location=_injection(params.injection_location),
            )
            return variable, SecretHalf(value=_text("secret_value", params.secret_value))


def _updated(auth: Auth, secret: SecretHalf, params: AuthUpdate, now: datetime) -> tuple[Auth, SecretHalf]:
    match auth, params:
        case StaticBearer(), StaticBearerUpdate():
            return auth, _with_value(secret, "token", params.token)
        case McpOAuth(), McpOAuthUpdate():
            return _updated_oauth(auth, secret, params, now)
        case EnvironmentVariable(), EnvironmentVariableUpdate():
            location = auth.injection_location
            if params.injection_location is not None:
                given = params.injection_location
                location = _some_location(
                    InjectionLocation(
                        body=location.body if given.body is None else given.body,
                        header=location.header if given.header is None else given.header,
                    )
                )
            networking = auth.networking if params.networking is None else _networking(params.networking)
            changed = msgspec.structs.replace(auth, networking=networking, injection_location=location)
            return changed, _with_value(secret, "secret_value", params.secret_value)
        case _:
            raise Invalid("auth.type: must be the credential's own, which cannot be changed")


def _updated_oauth(
    auth: McpOAuth, secret: SecretHalf, params: McpOAuthUpdate, now: datetime
) -> tuple[McpOAuth, SecretHalf]:
    expires_at = auth.expires_at if params.expires_at is UNSET else _future(params.expires_at, now)
    secret = _with_value(secret, "access_token", params.access_token)
    given, refresh = params.refresh, auth.refresh
    if given is None:
        return msgspec.structs.replace(auth, expires_at=expires_at), secret
    if refresh is None:
        raise Invalid("auth.refresh: the credential was created without one; create another credential")
    if given.scope is not None:
        # An empty scope clears the stored one.
        refresh = msgspec.structs.replace(refresh, scope=_text("refresh.scope", given.scope) if given.scope else None)
    if given.refresh_token is not None:
        secret = msgspec.structs.replace(secret, refresh_token=_text("refresh.refresh_token", given.refresh_token))
    client = given.token_endpoint_auth
    if client is not None:
        if isinstance(refresh.token_endpoint_auth, NoClientAuth):
            raise Invalid("auth.refresh.token_endpoint_auth: the credential's token endpoint takes no client secret")
        if client.client_secret is not None:
            name = "refresh.token_endpoint_auth.client_secret"
            secret = msgspec.structs.replace(secret, client_secret=_text(name, client.client_secret))
    return msgspec.structs.replace(auth, expires_at=expires_at, refresh=refresh), secret


def _with_value(secret: SecretHalf, name: str, value: str | None) -> SecretHalf:
    return secret if value is None else msgspec.structs.replace(secret, value=_text(name, value))


def _refresh(params: RefreshParams) -> Refresh:
    kinds: dict[type[object], NoClientAuth | ClientSecretBasic | ClientSecretPost] = {
        NoClientAuth: NoClientAuth(),
        ClientSecretBasicParams: ClientSecretBasic(),
        ClientSecretPostParams: ClientSecretPost(),
    }
    return Refresh(
        client_id=_text("refresh.client_id", params.client_id),
        token_endpoint=_url("refresh.token_endpoint", params.token_endpoint),
        token_endpoint_auth=kinds[type(params.token_endpoint_auth)],
        resource=None if not params.resource else _url("refresh.resource", params.resource),
        scope=None if not params.scope else _text("refresh.scope", params.scope),
    )


def _client_secret(params: RefreshParams) -> str | None:
    match params.token_endpoint_auth:
        case NoClientAuth():
            return None
        case ClientSecretBasicParams(client_secret=value) | ClientSecretPostParams(client_secret=value):
            return _text("refresh.token_endpoint_auth.client_secret", value)


def _injection(params: InjectionLocationParams | UnsetType | None) -> InjectionLocation:
    if params is UNSET:
        return InjectionLocation(body=True, header=True)
    if params is None:
        raise Invalid("auth.injection_location: must not be null; leave it out for both locations")
    return _some_location(InjectionLocation(body=bool(params.body), header=bool(params.header)))


def _some_location(location: InjectionLocation) -> InjectionLocation:
    if not (location.body or location.header):
        raise Invalid("auth.injection_location: at least one of `body` and `header` must be true")
    return location


def _networking(networking: AnyHost | ListedHosts) -> AnyHost | ListedHosts:
    if isinstance(networking, AnyHost):
        return networking
    hosts = networking.allowed_hosts
    path = "auth.networking.allowed_hosts"
    if not 1 <= len(hosts) <= ALLOWED_HOSTS_MAX:
        raise Invalid(f"{path}: must hold 1 to {ALLOWED_HOSTS_MAX} hosts, got {len(hosts)}")
    for index, host in enumerate(hosts):
        if not HOST.fullmatch(host):
            raise Invalid(f"{path}.{index}: must be a host name, an IPv4 address or `*.` and a host name")
    return networking


def _secret_name(name: str) -> str:
    _text("secret_name", name)
    if not SECRET_NAME.fullmatch(name):
        raise Invalid("auth.secret_name: must be letters, digits and underscores, and not begin with a digit")
    if SECRET_NAMES_TAKEN.fullmatch(name):
        raise Invalid(f"auth.secret_name: `{name}` is set by the sandbox itself; choose another name")
    return name


def _future(moment: datetime | None, now: datetime) -> datetime | None:
    if moment is not None and moment.tzinfo is None:
        raise Invalid("auth.expires_at: must have a time zone")
    if moment is not None and moment <= now:
        raise Invalid("auth.expires_at: must be in the future")
    return moment


def _text(path: str, value: str) -> str:
    limit = CHARACTERS_MAX[path.rpartition(".")[2]]
    if not 1 <= len(value) <= limit:
        raise Invalid(f"auth.{path}: must be 1 to {limit} characters, got {len(value)}")
    if not value.isprintable() and not (path == "secret_value" and "\0" not in value):
        # A variable may hold a key of many lines.
        raise Invalid(f"auth.{path}: must not hold control characters")
    return value


def _url(path: str, value: str) -> str:
    _text(path, value)
    try:
        parts = urlsplit(value)
        sound = parts.scheme.lower() in DEFAULT_PORTS and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        sound, parts = False, urlsplit("")
    if not sound or "@" in parts.netloc or parts.fragment or " " in value:
        raise Invalid(f"auth.{path}: must be an http or https URL without user name and fragment")
    return value
