"""`corral keys`: the keyring on the command line. Works beside a running server: only rows of keys are touched."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio.to_thread
import msgspec
from rich.console import Console
from rich.table import Table

from corral.app.clock import SystemClock
from corral.app.storage import open_records
from corral.app.vaults import key_wrapper
from corral.config import Settings
from corral.domain.query import Record, RecordsQuery
from corral.domain.vault import VAULT_KIND, StoredVault
from corral.errors import Conflict, MachineUnfit
from corral.interfaces.records import Records
from corral.keys import KeyRing
from corral.vaults import master_key
from corral.vaults.sealing import LocalKeyWrapper, rewrapped

PAGE = 100


@asynccontextmanager
async def _keyring(settings: Settings) -> AsyncGenerator[KeyRing]:
    async with open_records(settings) as records:
        yield KeyRing(records, SystemClock())


async def create(settings: Settings, workspace: str, name: str | None, out: Console) -> None:
    """Make a key and show it once."""
    async with _keyring(settings) as keys:
        key, secret = await keys.create(workspace_id=workspace, name=name)
    out.print(f"{key.id} in {key.workspace_id}. The key, shown only now:\n{secret}")


async def show(settings: Settings, out: Console) -> None:
    """List keys."""
    table = Table("workspace", "name", "created", "state", box=None)
    table.add_column("id", no_wrap=True, min_width=39)
    async with _keyring(settings) as keys:
        for key in await keys.keys():
            state = "revoked" if key.revoked_at else "active"
            table.add_row(key.workspace_id, key.name or "", f"{key.created_at:%Y-%m-%d %H:%M}", state, key.id)
    out.print(table)


async def rotate_master(settings: Settings, out: Console) -> None:
    """Seal all vaults with a new master key. The one before stays in the file until the next time."""
    if settings.secrets.master_key:
        raise MachineUnfit(
            "The master key comes from CORRAL_MASTER_KEY: put a new key before the old one there, divided by a comma, "
            "restart the servers, and run this again with --keep to seal the vaults anew."
        )
    file = settings.master_key_file
    current, *older = await anyio.to_thread.run_sync(master_key.load, None, file)
    if older:
        # An earlier rotation may have been cut off: what its old key still seals must not lose it now.
        await _resealed(settings)
    await anyio.to_thread.run_sync(master_key.save, file, (master_key.new_master_key(), current))
    await reseal(settings, out)


async def reseal(settings: Settings, out: Console) -> None:
    """Seal the data keys of all vaults with the first master key."""
    out.print(f"{await _resealed(settings)} vaults are sealed with the new master key.")


async def _resealed(settings: Settings) -> int:
    wrapper, changed = await key_wrapper(settings), 0
    async with open_records(settings) as records:
        query = RecordsQuery(kind=VAULT_KIND, workspace_id=None, limit=PAGE)
        while page := await records.page(query):
            for record in page:
                changed += await _reseal_one(records, wrapper, record)
            query = msgspec.structs.replace(query, beyond=(page[-1].created_at, page[-1].id))
    return changed


async def _reseal_one(records: Records, wrapper: LocalKeyWrapper, record: Record) -> bool:
    while True:
        stored = msgspec.json.decode(record.body, type=StoredVault)
        if not stored.key or wrapper.is_current(stored.key):
            return False
        resealed = msgspec.structs.replace(stored, key=rewrapped(wrapper, record.id, stored.key))
        body, revision = msgspec.json.encode(resealed), record.revision + 1
        try:
            await records.put(
                msgspec.structs.replace(record, body=body, revision=revision), expect={record.id: record.revision}
            )
        except Conflict:
            record = await records.get(VAULT_KIND, record.id, record.workspace_id)
            continue
        return True


async def revoke(settings: Settings, key_id: str, out: Console) -> None:
    """Refuse a key from now on."""
    async with _keyring(settings) as keys:
        key = await keys.revoke(key_id)
    out.print(f"{key.id} is revoked.")
