"""Vaults: named sets of credentials that sessions use. What a credential is, is in `credential.py`.

Source: the API's public documentation.
"""

from __future__ import annotations

from datetime import datetime

import msgspec
from msgspec import UNSET, UnsetType

from corral.domain import metadata as metadata_rules
from corral.domain.toolset import Wire
from corral.errors import Invalid

VAULT_KIND = "vault"
"""Kind of their records."""
DISPLAY_NAME_CHARACTERS_MAX = 255
VAULTS_PER_SESSION_MAX = 50


class VaultCreate(Wire, frozen=True, kw_only=True):
    """Body of `POST /v1/vaults`."""

    display_name: str
    metadata: dict[str, str] = {}


class VaultUpdate(Wire, frozen=True, kw_only=True):
    """Body of `POST /v1/vaults/{id}`."""

    display_name: str | UnsetType | None = UNSET
    metadata: dict[str, str | None] | UnsetType | None = UNSET


class Vault(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="vault"):
    """A vault as the wire shows it."""

    id: str
    display_name: str
    created_at: datetime
    updated_at: datetime
    archived_at: datetime | None = None
    metadata: dict[str, str] = {}


class StoredVault(msgspec.Struct, frozen=True, kw_only=True):
    """A vault as it lasts."""

    vault: Vault
    key: bytes
    """The data key that its credentials are sealed with, itself sealed by the master key; empty once archived."""


def create(body: VaultCreate, *, vault_id: str, now: datetime) -> Vault:
    """A new vault. Raises `Invalid`."""
    return Vault(
        id=vault_id,
        display_name=check_display_name(body.display_name),
        created_at=now,
        updated_at=now,
        metadata=metadata_rules.checked(body.metadata),
    )


def update(vault: Vault, body: VaultUpdate, *, now: datetime) -> Vault:
    """The vault after an update; the same object when nothing changes. Raises `Invalid`."""
    if vault.archived_at is not None:
        raise Invalid(f"vault {vault.id} is archived and cannot be changed")
    name, patch = body.display_name, body.metadata
    changed = msgspec.structs.replace(
        vault,
        # Null says nothing new: a vault always has a name.
        display_name=vault.display_name if name is UNSET or name is None else check_display_name(name),
        metadata=vault.metadata if patch is UNSET else metadata_rules.patched(vault.metadata, patch),
    )
    return vault if changed == vault else msgspec.structs.replace(changed, updated_at=now)


def check(vault: Vault) -> None:
    """Raises `Invalid` for a vault from elsewhere that no `create` here would have made."""
    check_display_name(vault.display_name)
    metadata_rules.checked(vault.metadata)


def check_display_name(name: str) -> str:
    """The name, if it keeps the limits. Raises `Invalid`."""
    if not 1 <= len(name) <= DISPLAY_NAME_CHARACTERS_MAX:
        raise Invalid(f"display_name: must be 1 to {DISPLAY_NAME_CHARACTERS_MAX} characters")
    return name
