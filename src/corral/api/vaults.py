"""`/v1/vaults`: named sets of credentials. The credentials themselves are in `credentials.py`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Annotated

import msgspec

from corral.api import pages
from corral.api.call import Call
from corral.api.dependencies import Services
from corral.api.pages import Page
from corral.domain import vault as rules
from corral.domain.credential import CREDENTIAL_KIND, StoredCredential
from corral.domain.ids import new_id
from corral.domain.query import Record, RecordsQuery
from corral.domain.vault import VAULT_KIND, VAULTS_PER_SESSION_MAX, StoredVault, Vault, VaultCreate, VaultUpdate
from corral.errors import Conflict, Invalid, NotFound

ATTEMPTS_MAX = 100
PAGE = 1_000


class ListQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A page of vaults, newest first."""

    include_archived: bool = False
    limit: Annotated[int, msgspec.Meta(ge=1, le=100)] = 20
    page: str | None = None


class VaultDeleted(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="vault_deleted"):
    """The vault and its credentials are gone."""

    id: str


async def create(call: Call) -> Vault:
    """`POST /v1/vaults`."""
    body = await call.body(VaultCreate)
    vault = rules.create(body, vault_id=new_id("vlt"), now=call.services.clock.now())
    stored = StoredVault(vault=vault, key=call.services.sealing.new_key(vault.id))
    await call.services.records.put(record_of(call.workspace_id, stored, revision=1), expect={vault.id: 0})
    return vault


async def retrieve(call: Call) -> Vault:
    """`GET /v1/vaults/{vault_id}`."""
    return (await find(call.services, call.workspace_id, call.path["vault_id"])).vault


async def update(call: Call) -> Vault:
    """`POST /v1/vaults/{vault_id}`."""
    body = await call.body(VaultUpdate)

    def updated(stored: StoredVault, now: datetime) -> StoredVault:
        vault = rules.update(stored.vault, body, now=now)
        return stored if vault is stored.vault else msgspec.structs.replace(stored, vault=vault)

    return await _change(call, updated, cascades=False)


async def archive(call: Call) -> Vault:
    """`POST /v1/vaults/{vault_id}/archive`. Archives its credentials too and purges all secrets. Idempotent."""
    await call.no_body()

    def archived(stored: StoredVault, now: datetime) -> StoredVault:
        if stored.vault.archived_at is not None:
            return stored
        vault = msgspec.structs.replace(stored.vault, archived_at=now, updated_at=now)
        return StoredVault(vault=vault, key=b"")

    return await _change(call, archived, cascades=True)


async def delete(call: Call) -> VaultDeleted:
    """`DELETE /v1/vaults/{vault_id}`. Sessions that name it find nothing in it from now on."""
    vault_id = call.path["vault_id"]
    records, workspace_id = call.services.records, call.workspace_id
    await find(call.services, workspace_id, vault_id)
    for record in await _credentials(call, vault_id, include_archived=True):
        try:
            await records.delete(CREDENTIAL_KIND, record.id, workspace_id)
        except NotFound:
            continue  # deleted by somebody else meanwhile
    try:
        await records.delete(VAULT_KIND, vault_id, workspace_id)
    except NotFound as error:
        raise _not_found(vault_id) from error
    return VaultDeleted(id=vault_id)


async def list_(call: Call) -> Page[Vault]:
    """`GET /v1/vaults`."""
    query = call.query(ListQuery)
    binding = pages.binding_of(query)
    asked = RecordsQuery(
        kind=VAULT_KIND,
        workspace_id=call.workspace_id,
        limit=query.limit,
        include_archived=query.include_archived,
    )
    return await pages.of_records(
        call.services.records, asked, lambda record: stored(record).vault, page=query.page, binding=binding
    )


async def check(services: Services, workspace_id: str, vault_ids: Sequence[str]) -> tuple[str, ...]:
    """The vaults that a new session may use. Raises `NotFound`, or `Invalid` for too many or an archived one."""
    if len(vault_ids) > VAULTS_PER_SESSION_MAX:
        raise Invalid(f"vault_ids: at most {VAULTS_PER_SESSION_MAX} vaults are allowed, got {len(vault_ids)}")
    for index, vault_id in enumerate(vault_ids):
        try:
            found = await find(services, workspace_id, vault_id)
        except NotFound as error:
            raise NotFound(f"vault_ids.{index}: {error.message}") from error
        if found.vault.archived_at is not None:
            raise Invalid(f"vault_ids.{index}: vault {vault_id} is archived")
    return tuple(vault_ids)


async def find(services: Services, workspace_id: str, vault_id: str) -> StoredVault:
    """A vault. Raises `NotFound`."""
    return stored(await find_record(services, workspace_id, vault_id))


async def find_record(services: Services, workspace_id: str, vault_id: str) -> Record:
    """A vault's record. Raises `NotFound`."""
    try:
        return await services.records.get(VAULT_KIND, vault_id, workspace_id)
    except NotFound as error:
        raise _not_found(vault_id) from error


def stored(record: Record) -> StoredVault:
    """What a record holds."""
    return msgspec.json.decode(record.body, type=StoredVault)


def record_of(workspace_id: str, vault: StoredVault, *, revision: int) -> Record:
    """The record of a vault."""
    return Record(
        kind=VAULT_KIND,
        id=vault.vault.id,
        workspace_id=workspace_id,
        created_at=vault.vault.created_at,
        body=msgspec.json.encode(vault),
        archived_at=vault.vault.archived_at,
        revision=revision,
    )


async def _change(call: Call, change: Callable[[StoredVault, datetime], StoredVault], *, cascades: bool) -> Vault:
    for _ in range(ATTEMPTS_MAX):
        record = await find_record(call.services, call.workspace_id, call.path["vault_id"])
        before = stored(record)
        now = max(call.services.clock.now(), before.vault.updated_at)
        after = change(before, now)
        if after is before:
            return before.vault
        inside = await _archived_credentials(call, after.vault.id, now) if cascades else []
        changed = record_of(call.workspace_id, after, revision=record.revision + 1)
        expect = {record.id: record.revision, **{each.id: each.revision - 1 for each in inside}}
        try:
            await call.services.records.put(changed, *inside, expect=expect)
        except Conflict:
            continue
        return after.vault
    raise Conflict


async def _archived_credentials(call: Call, vault_id: str, now: datetime) -> list[Record]:
    return [archived_credential(record, now) for record in await _credentials(call, vault_id, include_archived=False)]


def archived_credential(record: Record, now: datetime) -> Record:
    """The record of a credential once it is archived: its secrets purged, its key free again."""
    credential = msgspec.json.decode(record.body, type=StoredCredential).credential
    archived = msgspec.structs.replace(credential, archived_at=now, updated_at=now)
    return msgspec.structs.replace(
        record,
        body=msgspec.json.encode(StoredCredential(credential=archived, sealed=None)),
        archived_at=now,
        unique_key=None,
        revision=record.revision + 1,
    )


async def _credentials(call: Call, vault_id: str, *, include_archived: bool) -> list[Record]:
    found: list[Record] = []
    query = RecordsQuery(
        kind=CREDENTIAL_KIND,
        workspace_id=call.workspace_id,
        limit=PAGE,
        parent_id=vault_id,
        include_archived=include_archived,
    )
    while True:
        page = await call.services.records.page(query)
        found += page
        if len(page) < PAGE:
            return found
        query = msgspec.structs.replace(query, beyond=(page[-1].created_at, page[-1].id))


def _not_found(vault_id: str) -> NotFound:
    return NotFound(f"Vault {vault_id} was not found.")
