"""What an import holds at a time: a line or a record, however many there are in the file and in the store."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import anyio
import msgspec
import pytest

from corral.moving.incoming import Destination, Import
from corral.vaults.master_key import new_master_key
from corral.vaults.sealing import LocalKeyWrapper, VaultSealing
from tests.contracts.storage_fixtures import Stage, staged

pytestmark = pytest.mark.anyio
Json = dict[str, Any]

FEW, MANY = 30, 210
TEXT = "x" * 500
BYTES_OF_ONE = 2 * 16 * len(TEXT)
"""At least: a vault's metadata are in its line and in its record."""
AT = "2026-01-01T00:00:00Z"


def pair(number: int) -> list[Json]:
    """A vault and what it holds."""
    vault_id, moments = f"vlt_{number:04}", {"created_at": AT, "updated_at": AT}
    metadata = {f"key_{each}": TEXT for each in range(16)}
    shown = {"id": f"vcrd_{number:04}", "vault_id": vault_id, "metadata": metadata, **moments}
    auth = {"type": "static_bearer", "mcp_server_url": "http://x/mcp"}
    credential = {"type": "vault_credential", **shown, "auth": auth}
    return [
        {"type": "vault", "id": vault_id, "display_name": "Many", "metadata": metadata, **moments},
        {"vault_id": vault_id, "credential": credential, "secret": {"value": "hush"}},
    ]


async def imported(stage: Stage, sealing: VaultSealing, file: Path, vaults: int) -> tuple[Counter[str], int]:
    """What was there already, and the bytes that were held at the same time at most."""
    with file.open("wb") as out:
        out.writelines(msgspec.json.encode(line) + b"\n" for number in range(vaults) for line in pair(number))
    moving = Import(file, Destination(stage.archive, stage.clock, (), "wrkspc_1", sealing))
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        known = await moving.run()
        return known, tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("backend", ["sqlite", "postgresql"])
async def test_an_import_holds_no_more_for_many_vaults_than_for_few(
    backend: Literal["sqlite", "postgresql"], tmp_path: Path
) -> None:
    master = new_master_key()
    sealing = VaultSealing(LocalKeyWrapper(lambda: (master,)))
    with anyio.fail_after(60):
        async with staged(backend, tmp_path) as stage:
            _, first = await imported(stage, sealing, tmp_path / "few", FEW)
            known, many = await imported(stage, sealing, tmp_path / "many", MANY)
            assert known == {"vault": FEW, "vault_credential": FEW}
            known, again = await imported(stage, sealing, tmp_path / "many", MANY)
            assert known == {"vault": MANY, "vault_credential": MANY}
    more = (MANY - FEW) * BYTES_OF_ONE
    assert max(many, again) - first < more / 10, (first, many, again)
