"""A worker process to be killed: says which sessions it advances, and never lets one rest. Run by tests."""

from __future__ import annotations

import asyncio
import sys

from corral.config_sections import TemporalSettings
from corral.engines.temporal import Around, TemporalEngine
from corral.engines.temporal_server import connect
from corral.interfaces.engine import Signal


class Stuck:
    """A worker whose turns do not end."""

    async def advance(self, session_id: str, interrupted: Signal, *, inherited: bool) -> None:
        sys.stdout.write(f"{session_id}\n")
        sys.stdout.flush()
        await asyncio.Event().wait()

    async def give_up(self, session_id: str) -> None:
        raise AssertionError(session_id)


async def _poke(session_id: str) -> None:
    return


async def _interrupt_of(session_id: str) -> str | None:
    return None


async def _unfinished() -> list[str]:
    return []


async def main(address: str, task_queue: str, host: str, sandbox_host: str) -> None:
    settings = TemporalSettings(address=address, task_queue=task_queue)

    async def host_of(session_id: str) -> str | None:
        return sandbox_host or None

    around = Around(_poke, _interrupt_of, _unfinished, host_of)
    engine = TemporalEngine(await connect(settings), settings, around, host=host, runs=10)
    await engine.start(Stuck(), ())
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
