"""`corral migrate`: brings the database's schema up to date, and does nothing else.

`corral serve` does the same when it starts; this is for those who upgrade first and start servers afterwards.
"""

from __future__ import annotations

from rich.console import Console

from corral.app.storage import stores_of
from corral.config import Settings, without_password


async def migrate(settings: Settings, out: Console) -> None:
    """Apply what is missing, each step whole or not at all, and say what that was."""
    done = await stores_of(settings.database).migrate(settings.database)
    where = without_password(settings.database)
    if done.before == done.after:
        out.print(f"{where} is up to date: schema {done.after}.")
    else:
        out.print(f"{where} was brought from schema {done.before} to schema {done.after}.")
