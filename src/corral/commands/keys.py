"""`corral keys`: the keyring on the command line. Works beside a running server: only rows of keys are touched."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from rich.console import Console
from rich.table import Table

from corral.app import SystemClock, open_records
from corral.config import Settings
from corral.keys import KeyRing


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


async def revoke(settings: Settings, key_id: str, out: Console) -> None:
    """Refuse a key from now on."""
    async with _keyring(settings) as keys:
        key = await keys.revoke(key_id)
    out.print(f"{key.id} is revoked.")
