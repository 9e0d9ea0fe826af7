"""`/v1/vaults/{vault_id}/credentials`: what vaults hold. Secrets come in here and never go out."""

from __future__ import annotations

from typing import Annotated

import msgspec

from corral.api import pages, vaults
from corral.api.call import Call
from corral.api.pages import Page
from corral.domain import credential as rules
from corral.domain.credential import (
    CREDENTIAL_KIND,
    CREDENTIALS_PER_VAULT_MAX,
    Credential,
    SecretHalf,
    StoredCredential,
)
from corral.domain.credential_params import CredentialCreate, CredentialUpdate
from corral.domain.credential_validation import Validation
from corral.domain.ids import new_id
from corral.domain.query import Record, RecordsQuery
from corral.domain.vault import StoredVault
from corral.errors import Conflict, Invalid, NotFound

ATTEMPTS_MAX = 100


class ListQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A page of credentials, newest first."""

    include_archived: bool = False
    limit: Annotated[int, msgspec.Meta(ge=1, le=100)] = 20
    page: str | None = None


class CredentialDeleted(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="vault_credential_deleted"):
    """The credential is gone."""

    id: str


async def create(call: Call) -> Credential:
    """`POST /v1/vaults/{vault_id}/credentials`."""
    body = await call.body(CredentialCreate)
    vault_id = call.path["vault_id"]
    credential, secret = rules.create(
        body, credential_id=new_id("vcrd"), vault_id=vault_id, now=call.services.clock.now()
    )
    for _ in range(ATTEMPTS_MAX):
        record = await vaults.find_record(call.services, call.workspace_id, vault_id)
        vault = _open_vault(record)
        await _check_room(call, credential)
        made = _record(call, vault, credential, secret, revision=1)
        # The vault's revision moves too, so that a credential never slips past its archiving or over the limit.
        moved = msgspec.structs.replace(record, revision=record.revision + 1)
        try:
            await call.services.records.put(made, moved, expect={made.id: 0, record.id: record.revision})
        except Conflict:
            continue
        return credential
    raise Conflict


async def retrieve(call: Call) -> Credential:
    """`GET /v1/vaults/{vault_id}/credentials/{credential_id}`."""
    return _stored(await _find(call)).credential


async def update(call: Call) -> Credential:
    """`POST /v1/vaults/{vault_id}/credentials/{credential_id}`. Running sessions use the new secret at once."""
    body = await call.body(CredentialUpdate)
    for _ in range(ATTEMPTS_MAX):
        record = await _find(call)
        stored = _stored(record)
        if stored.sealed is None:
            raise Invalid(f"credential {record.id} is archived and cannot be changed")
        vault = await vaults.find(call.services, call.workspace_id, stored.credential.vault_id)
        opened = call.services.sealing.open(vault.vault.id, vault.key, stored.sealed, record.id)
        before = stored.credential, msgspec.json.decode(opened, type=SecretHalf)
        now = max(call.services.clock.now(), stored.credential.updated_at)
        after = rules.update(*before, body, now=now)
        if after == before:
            return stored.credential
        changed = _record(call, vault, *after, revision=record.revision + 1)
        try:
            await call.services.records.put(changed, expect={record.id: record.revision})
        except Conflict:
            continue
        return after[0]
    raise Conflict


async def archive(call: Call) -> Credential:
    """`POST /v1/vaults/{vault_id}/credentials/{credential_id}/archive`. Purges its secrets. Idempotent."""
    await call.no_body()
    for _ in range(ATTEMPTS_MAX):
        record = await _find(call)
        credential = _stored(record).credential
        if credential.archived_at is not None:
            return credential
        archived = vaults.archived_credential(record, max(call.services.clock.now(), credential.updated_at))
        try:
            await call.services.records.put(archived, expect={record.id: record.revision})
        except Conflict:
            continue
        return _stored(archived).credential
    raise Conflict


async def delete(call: Call) -> CredentialDeleted:
    """`DELETE /v1/vaults/{vault_id}/credentials/{credential_id}`."""
    record = await _find(call)
    try:
        await call.services.records.delete(CREDENTIAL_KIND, record.id, call.workspace_id)
    except NotFound as error:
        raise _not_found(record.id) from error
    return CredentialDeleted(id=record.id)


async def list_(call: Call) -> Page[Credential]:
    """`GET /v1/vaults/{vault_id}/credentials`."""
    query = call.query(ListQuery)
    vault_id = call.path["vault_id"]
    await vaults.find(call.services, call.workspace_id, vault_id)
    binding = f"{pages.binding_of(query)} {vault_id}"
    asked = RecordsQuery(
        kind=CREDENTIAL_KIND,
        workspace_id=call.workspace_id,
        limit=query.limit,
        parent_id=vault_id,
        include_archived=query.include_archived,
    )
    return await pages.of_records(
        call.services.records, asked, lambda record: _stored(record).credential, page=query.page, binding=binding
    )


async def validate(call: Call) -> Validation:
    """`POST /v1/vaults/{vault_id}/credentials/{credential_id}/mcp_oauth_validate`."""
    await call.no_body()
    record = await _find(call)
    return await call.services.credentials.validate(call.workspace_id, call.path["vault_id"], record.id)


async def _find(call: Call) -> Record:
    credential_id, vault_id = call.path["credential_id"], call.path["vault_id"]
    await vaults.find(call.services, call.workspace_id, vault_id)
    try:
        record = await call.services.records.get(CREDENTIAL_KIND, credential_id, call.workspace_id)
    except NotFound as error:
        raise _not_found(credential_id) from error
    if record.parent_id != vault_id:
        raise _not_found(credential_id)
    return record


async def _check_room(call: Call, credential: Credential) -> None:
    query = RecordsQuery(
        kind=CREDENTIAL_KIND,
        workspace_id=call.workspace_id,
        limit=CREDENTIALS_PER_VAULT_MAX,
        parent_id=credential.vault_id,
        include_archived=False,
    )
    active = await call.services.records.page(query)
    if any(_stored(record).credential.key == credential.key for record in active):
        kind, _, name = credential.key.partition(" ")
        field = "secret_name" if kind == "variable" else "mcp_server_url"
        raise Conflict(f"auth.{field}: the vault has an active credential for `{name}` already")
    if len(active) >= CREDENTIALS_PER_VAULT_MAX:
        raise Invalid(f"vault {credential.vault_id} holds {CREDENTIALS_PER_VAULT_MAX} credentials, which is the limit")


def _open_vault(record: Record) -> StoredVault:
    vault = vaults.stored(record)
    if vault.vault.archived_at is not None:
        raise Invalid(f"vault {record.id} is archived and takes no credentials")
    return vault


def record_of(workspace_id: str, stored: StoredCredential, *, revision: int) -> Record:
    """The record of a credential. An archived one frees its key."""
    credential = stored.credential
    is_active = credential.archived_at is None
    return Record(
        kind=CREDENTIAL_KIND,
        id=credential.id,
        workspace_id=workspace_id,
        created_at=credential.created_at,
        body=msgspec.json.encode(stored),
        archived_at=credential.archived_at,
        parent_id=credential.vault_id,
        unique_key=f"{credential.vault_id} {credential.key}" if is_active else None,
        revision=revision,
    )


def _record(call: Call, vault: StoredVault, credential: Credential, secret: SecretHalf, *, revision: int) -> Record:
    sealed = call.services.sealing.seal(vault.vault.id, vault.key, msgspec.json.encode(secret), credential.id)
    return record_of(call.workspace_id, StoredCredential(credential=credential, sealed=sealed), revision=revision)


def _stored(record: Record) -> StoredCredential:
    return msgspec.json.decode(record.body, type=StoredCredential)


def _not_found(credential_id: str) -> NotFound:
    return NotFound(f"Credential {credential_id} was not found.")
