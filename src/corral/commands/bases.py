"""`corral base`: root file systems that sandboxes may see instead of the machine's own /usr."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import anyio.to_thread
from rich.console import Console

from corral.app.sandboxes import open_bases
from corral.config import Settings

HINT = 'Sandboxes use it with `base = "{}"` in the `[sandbox]` section of corral.toml.'


async def build(
    settings: Settings, name: str, *, suite: str, mirror: str | None, packages: Sequence[str], out: Console
) -> None:
    """Make a base with the distribution's own tool."""
    bases = open_bases(settings)
    place = await anyio.to_thread.run_sync(bases.bootstrap, name, suite, mirror, packages)
    out.print(f"Made {place}. {HINT.format(name)}", markup=False)


async def unpack(settings: Settings, name: str, file: Path, out: Console) -> None:
    """Make a base of a tar."""
    place = await anyio.to_thread.run_sync(open_bases(settings).unpack, name, file)
    out.print(f"Made {place}. {HINT.format(name)}", markup=False)


async def show(settings: Settings, out: Console) -> None:
    """One line for each base."""
    used = settings.sandbox.base
    found = await anyio.to_thread.run_sync(open_bases(settings).list)
    for name, release in found:
        out.print(f"{name}  {release}{'  (configured)' if name == used else ''}", markup=False)
    if not found:
        out.print("There is no base. Sandboxes see this machine's /usr; `corral base build` makes one that takes apt.")
