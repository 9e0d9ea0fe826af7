"""Vaults on the move: in a file their secrets stand in clear, here each is sealed with a key of its own vault.

A vault gets a new key wherever it arrives, so nothing that was sealed elsewhere is of use here. What is here already
and holds the same secrets keeps its seals: then an import may be repeated like any other. So what is stored depends on
what is here, which the store shows one by one (`Depending`), however many vaults it has.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator

import msgspec

from corral.api import credentials as credential_records
from corral.api import vaults as vault_records
from corral.domain import credential as rules
from corral.domain import vault as vault_rules
from corral.domain.credential import (
    CREDENTIAL_KIND,
    CREDENTIALS_PER_VAULT_MAX,
    Credential,
    SecretHalf,
    StoredCredential,
)
from corral.domain.query import Record, RecordsQuery
from corral.domain.vault import VAULT_KIND, StoredVault, Vault
from corral.errors import Invalid
from corral.interfaces.records import Records
from corral.interfaces.store import Depending
from corral.interfaces.vault import Sealing

PAGE = 100


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """A line: a credential as the API shows it, and its secret in clear."""

    vault_id: str
    credential: Credential
    secret: SecretHalf | None = None
    """None for an archived one."""


async def all_records(
    records: Records, kind: str, workspace_id: str | None, parent_id: str | None = None
) -> AsyncGenerator[Record]:
    """Every record of a kind, newest first."""
    query = RecordsQuery(kind=kind, workspace_id=workspace_id, limit=PAGE, parent_id=parent_id)
    while page := await records.page(query):
        for record in page:
            yield record
        query = msgspec.structs.replace(query, beyond=(page[-1].created_at, page[-1].id))


async def unsealed(records: Records, sealing: Sealing, workspace_id: str) -> AsyncGenerator[Vault | Held]:
    """The vaults of a workspace, each with what it holds behind it. Raises `MachineUnfit` when one cannot be opened."""
    async for record in all_records(records, VAULT_KIND, workspace_id):
        vault = msgspec.json.decode(record.body, type=StoredVault)
        yield vault.vault
        async for held in all_records(records, CREDENTIAL_KIND, workspace_id, parent_id=record.id):
            stored = msgspec.json.decode(held.body, type=StoredCredential)
            yield Held(vault_id=record.id, credential=stored.credential, secret=_opened(sealing, vault.key, stored))


class Taking:
    """One vault of a file, while its credentials follow."""

    def __init__(self, sealing: Sealing, workspace_id: str, vault: Vault) -> None:
        """Raises `Invalid`."""
        vault_rules.check(vault)
        self._sealing, self._workspace_id, self._vault = sealing, workspace_id, vault
        self._key = b""
        """Known when the vault's own record was made."""
        self._active = 0

    def vault(self) -> Depending:
        """The record of the vault itself; it comes before its credentials."""
        return Depending(VAULT_KIND, self._vault.id, self._vault_record)

    def credential(self, held: Held) -> Depending:
        """The record of a credential. Raises `Invalid`."""
        vault, credential = self._vault, held.credential
        if not vault.id == held.vault_id == credential.vault_id:
            raise Invalid(f"vault_id: credentials of {vault.id} stand here")
        rules.check(credential, held.secret)
        if held.secret is not None:
            self._active += 1
            if vault.archived_at is not None:
                raise Invalid("credential.archived_at: the vault is archived, so its credentials are")
            if self._active > CREDENTIALS_PER_VAULT_MAX:
                raise Invalid(f"vault_id: {vault.id} may hold {CREDENTIALS_PER_VAULT_MAX} credentials")

        def record(here: Record | None) -> Record:
            stored = StoredCredential(credential=credential, sealed=self._sealed(held, here))
            return credential_records.record_of(self._workspace_id, stored, revision=1)

        return Depending(CREDENTIAL_KIND, credential.id, record)

    def _vault_record(self, here: Record | None) -> Record:
        vault = self._vault
        if here is not None:
            self._key = msgspec.json.decode(here.body, type=StoredVault).key
        else:
            self._key = b"" if vault.archived_at is not None else self._sealing.new_key(vault.id)
        return vault_records.record_of(self._workspace_id, StoredVault(vault=vault, key=self._key), revision=1)

    def _sealed(self, held: Held, here: Record | None) -> bytes | None:
        """The secret as it is to be stored. Raises `MachineUnfit`."""
        if held.secret is None:
            return None
        if here is not None and here.parent_id == self._vault.id:
            stored = msgspec.json.decode(here.body, type=StoredCredential)
            if _opened(self._sealing, self._key, stored) == held.secret:
                return stored.sealed
        return self._sealing.seal(self._vault.id, self._key, msgspec.json.encode(held.secret), held.credential.id)


def _opened(sealing: Sealing, key: bytes, stored: StoredCredential) -> SecretHalf | None:
    if stored.sealed is None:
        return None
    credential = stored.credential
    return msgspec.json.decode(sealing.open(credential.vault_id, key, stored.sealed, credential.id), type=SecretHalf)
