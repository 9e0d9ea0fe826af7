"""How secrets are sealed: with the master key that the settings name."""

from __future__ import annotations

from functools import partial

import anyio.to_thread

from corral.config import Settings
from corral.vaults import master_key
from corral.vaults.sealing import LocalKeyWrapper


async def key_wrapper(settings: Settings) -> LocalKeyWrapper:
    """Whoever holds the master key. Raises `MachineUnfit` when it cannot be had."""
    load = partial(master_key.load, settings.secrets.master_key, settings.master_key_file)
    return await anyio.to_thread.run_sync(LocalKeyWrapper, load)
