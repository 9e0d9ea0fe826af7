"""Changing the master key, and being killed meanwhile: no vault loses the key that opens it."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from pathlib import Path

import pytest
from rich.console import Console

from corral import config
from corral.api import vaults
from corral.app.storage import open_records
from corral.app.vaults import key_wrapper
from corral.commands.keys import rotate_master
from corral.domain.vault import VAULT_KIND, StoredVault, Vault
from corral.vaults import master_key
from corral.vaults.sealing import VaultSealing

pytestmark = [pytest.mark.anyio, pytest.mark.requirement("F125")]
AT = datetime(2026, 1, 1, tzinfo=UTC)


async def test_a_rotation_that_was_cut_off_is_finished_before_its_old_key_goes(tmp_path: Path) -> None:
    settings = config.load(environ={"HOME": str(tmp_path)}, overrides={"data_dir": str(tmp_path / "data")})
    sealing = VaultSealing(await key_wrapper(settings))
    vault = Vault(id="vlt_1", display_name="One", created_at=AT, updated_at=AT)
    key = sealing.new_key(vault.id)
    sealed = sealing.seal(vault.id, key, b"hush", "vcrd_1")
    async with open_records(settings) as records:
        await records.put(vaults.record_of("wrkspc_1", StoredVault(vault=vault, key=key), revision=1))
    # Killed right after the new key was written, once and again.
    file = settings.master_key_file
    old = master_key.load(None, file)
    master_key.save(file, (master_key.new_master_key(), *old))
    for _ in range(2):
        await rotate_master(settings, Console(file=io.StringIO()))
        assert len(master_key.load(None, file)) == 2
    async with open_records(settings) as records:
        stored = vaults.stored(await records.get(VAULT_KIND, vault.id, "wrkspc_1"))
    assert VaultSealing(await key_wrapper(settings)).open(vault.id, stored.key, sealed, "vcrd_1") == b"hush"
