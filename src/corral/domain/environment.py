"""Environments: the recipe of a sandbox. The running instance is a *sandbox*, and lives in `sandboxes/`.

Source: the API's public documentation.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Literal, TypeAlias

import msgspec
from msgspec import UNSET, UnsetType

from corral.domain import metadata as metadata_rules
from corral.domain.agent import check_length
from corral.domain.toolset import Wire
from corral.errors import Invalid

ENVIRONMENT_KIND = "environment"
"""Kind of their records."""
NAME_CHARACTERS_MAX = 256
DESCRIPTION_CHARACTERS_MAX = 2_048
HOSTS_MAX = 256
PACKAGES_MAX = 256
HOST = re.compile(r"(\*\.)?([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.IGNORECASE)
PACKAGE = re.compile(r"[A-Za-z0-9@][A-Za-z0-9@._+/:~^=<>!,*\[\]-]{0,255}")
"""A package with an optional version in its manager's form; never an option (`-x`) and never a shell word."""

MANAGERS = ("apt", "cargo", "gem", "go", "npm", "pip")
"""Package managers, in the order in which they install."""


class Unrestricted(Wire, frozen=True, kw_only=True, tag_field="type", tag="unrestricted"):
    """Any public host."""


class LimitedParams(Wire, frozen=True, kw_only=True, tag_field="type", tag="limited"):
    """Only what is listed; on update, an omitted field keeps its value."""

    allowed_hosts: tuple[str, ...] | None = None
    allow_mcp_servers: bool | None = None
    allow_package_managers: bool | None = None


class Limited(Wire, frozen=True, kw_only=True, tag_field="type", tag="limited"):
    """Only what is listed."""

    allow_mcp_servers: bool = False
    allow_package_managers: bool = False
    allowed_hosts: tuple[str, ...] = ()


class PackagesParams(Wire, frozen=True, kw_only=True):
    """Packages by manager; on update, an omitted manager keeps its list."""

    apt: tuple[str, ...] | None = None
    cargo: tuple[str, ...] | None = None
    gem: tuple[str, ...] | None = None
    go: tuple[str, ...] | None = None
    npm: tuple[str, ...] | None = None
    pip: tuple[str, ...] | None = None
    type: Literal["packages"] | None = None


class Packages(Wire, frozen=True, kw_only=True, tag_field="type", tag="packages"):
    """Packages by manager."""

    apt: tuple[str, ...] = ()
    cargo: tuple[str, ...] = ()
    gem: tuple[str, ...] = ()
    go: tuple[str, ...] = ()
    npm: tuple[str, ...] = ()
    pip: tuple[str, ...] = ()


class CloudParams(Wire, frozen=True, kw_only=True, tag_field="type", tag="cloud"):
    """A sandbox that this server runs."""

    networking: Unrestricted | LimitedParams | None = None
    packages: PackagesParams | None = None


class Cloud(Wire, frozen=True, kw_only=True, tag_field="type", tag="cloud"):
    """A sandbox that this server runs."""

    networking: Unrestricted | Limited = Unrestricted()
    packages: Packages = Packages()


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """What a session's sandbox is made by: the environment's config, with what of the session's agent concerns it."""

    networking: Unrestricted | Limited = Unrestricted()
    packages: Packages = Packages()
    mcp_hosts: tuple[str, ...] = ()
    """Of the agent's MCP servers, as `host` or `host:port`; reachable where `networking` allows MCP servers."""
    variables: tuple[tuple[str, str], ...] = ()
    """Set inside, by name: placeholders of secrets, and never secrets."""
    environment: str = ""
    """The environment's name, for settings of the operator's that are about one environment."""


SEALED = Recipe(networking=Limited())
"""The base alone, and no way out."""


class SelfHosted(Wire, frozen=True, kw_only=True, tag_field="type", tag="self_hosted"):
    """A sandbox that a customer's environment worker runs; refused until the work queue is built."""


ConfigParams: TypeAlias = CloudParams | SelfHosted
Scope: TypeAlias = Literal["organization", "account"]


class EnvironmentCreate(Wire, frozen=True, kw_only=True):
    """Body of `POST /v1/environments`."""

    name: str
    config: ConfigParams | None = None
    description: str | None = None
    metadata: dict[str, str] = {}
    scope: Scope | None = None


class EnvironmentUpdate(Wire, frozen=True, kw_only=True):
    """Body of `POST /v1/environments/{id}`."""

    config: ConfigParams | UnsetType | None = UNSET
    description: str | UnsetType | None = UNSET
    metadata: dict[str, str | None] | UnsetType = UNSET
    name: str | UnsetType | None = UNSET
    scope: Scope | UnsetType | None = UNSET


class Environment(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="environment"):
    """An environment, as stored and as the wire shows it."""

    id: str
    name: str
    config: Cloud
    created_at: datetime
    updated_at: datetime
    archived_at: datetime | None = None
    description: str | None = None
    metadata: dict[str, str] = {}
    scope: Scope = "organization"


def create(body: EnvironmentCreate, *, environment_id: str, now: datetime) -> Environment:
    """A new environment. Raises `Invalid` with the path of what breaks a rule."""
    environment = Environment(
        id=environment_id,
        name=body.name,
        config=_config(body.config, None),
        created_at=now,
        updated_at=now,
        description=body.description,  # an empty text is one, unlike an agent's
        metadata=metadata_rules.checked(body.metadata, error_code="invalid_metadata"),
        scope=_scope(body.scope),
    )
    check(environment)
    return environment


def update(environment: Environment, body: EnvironmentUpdate, *, now: datetime) -> Environment:
    """The environment after the update; it holds for sandboxes made from now on."""
    if environment.archived_at is not None:
        raise Invalid(f"environment {environment.id} is archived", error_code="environment_archived")
    changed = msgspec.structs.replace(
        environment,
        name=environment.name if body.name is UNSET or body.name is None else body.name,
        description=environment.description if body.description is UNSET else body.description,
        config=environment.config if body.config is UNSET else _config(body.config, environment.config),
        metadata=(
            environment.metadata
            if body.metadata is UNSET
            else metadata_rules.patched(
                environment.metadata, body.metadata, empty_deletes=True, error_code="invalid_metadata"
            )
        ),
        scope=environment.scope if body.scope is UNSET else _scope(body.scope),
    )
    if changed == environment:
        return environment
    check(changed)
    return msgspec.structs.replace(changed, updated_at=now)


def check(environment: Environment) -> None:
    """Every limit of an environment. Raises `Invalid` with the path."""
    check_length("name", environment.name, 1, NAME_CHARACTERS_MAX)
    check_length("description", environment.description or "", 0, DESCRIPTION_CHARACTERS_MAX)
    networking, packages = environment.config.networking, environment.config.packages
    for manager in MANAGERS:
        names: tuple[str, ...] = getattr(packages, manager)
        if len(names) > PACKAGES_MAX:
            raise Invalid(f"config.packages.{manager}: at most {PACKAGES_MAX} packages are allowed")
        for index, name in enumerate(names):
            if not PACKAGE.fullmatch(name):
                raise Invalid(f"config.packages.{manager}.{index}: `{name[:80]}` is not a package name")
    if isinstance(networking, Limited):
        _check_limited(networking, packages)


def _check_limited(networking: Limited, packages: Packages) -> None:
    if len(networking.allowed_hosts) > HOSTS_MAX:
        raise Invalid(f"config.networking.allowed_hosts: at most {HOSTS_MAX} hosts are allowed")
    for index, host in enumerate(networking.allowed_hosts):
        if len(host) > 253 or not HOST.fullmatch(host):
            raise Invalid(
                f"config.networking.allowed_hosts.{index}: `{host[:80]}` must be a bare host name or `*.` and one"
            )
    if packages != Packages() and not networking.allow_package_managers:
        raise Invalid("config.packages: under limited networking packages need `allow_package_managers: true`")


def _scope(scope: Scope | None) -> Scope:
    if scope == "account":
        raise Invalid("scope: API organizations accept only `organization`")
    return "organization"


def _config(params: ConfigParams | None, stored: Cloud | None) -> Cloud:
    """Merge a config into the stored one, if there is one: what is left out keeps its value."""
    base = stored or Cloud()
    match params:
        case None:
            return base
        case SelfHosted() if stored is None:
            raise Invalid("config.type: this server does not run self_hosted environments yet")
        case SelfHosted():
            raise Invalid(
                "config.type: the type of an environment cannot change", error_code="invalid_config_type_change"
            )
        case CloudParams():
            return Cloud(
                networking=_networking(params.networking, base.networking),
                packages=_packages(params.packages, base.packages),
            )


def _networking(params: Unrestricted | LimitedParams | None, stored: Unrestricted | Limited) -> Unrestricted | Limited:
    match params:
        case None:
            return stored
        case Unrestricted():
            return params
        case LimitedParams():
            base = stored if isinstance(stored, Limited) else Limited()
            return Limited(
                allowed_hosts=base.allowed_hosts if params.allowed_hosts is None else params.allowed_hosts,
                allow_mcp_servers=(
                    base.allow_mcp_servers if params.allow_mcp_servers is None else params.allow_mcp_servers
                ),
                allow_package_managers=(
                    base.allow_package_managers
                    if params.allow_package_managers is None
                    else params.allow_package_managers
                ),
            )


def _packages(params: PackagesParams | None, stored: Packages) -> Packages:
    if params is None:
        return stored
    given = {manager: getattr(params, manager) for manager in MANAGERS}
    return msgspec.structs.replace(stored, **{name: value for name, value in given.items() if value is not None})
