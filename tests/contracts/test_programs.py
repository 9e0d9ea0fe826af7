"""Copies of programs that sandboxes need: old ones go, those that somebody has in sight stay."""

from __future__ import annotations

import os
from pathlib import Path

import anyio
import pytest

from corral.sandboxes import programs
from tests.contracts.conftest import Machine

pytestmark = pytest.mark.anyio
SECONDS_MAX = 60
LONG_AGO = 1_000_000.0


def names(root: Path) -> set[str]:
    return set(os.listdir(root / "programs"))


async def test_copies_that_nobody_needs_are_removed_when_a_server_starts(machine: Machine) -> None:
    root = machine.root / "sandboxes"
    old, draft, recent = "daemon-0123456789abcdef", "base-0123456789abcdef.draft-1", "pip-0123456789abcdef"
    for name in (old, draft, recent, "of-somebody"):
        (root / "programs" / name).mkdir(parents=True)
    for name in {*names(root)} - {recent}:
        os.utime(root / "programs" / name, (LONG_AGO, LONG_AGO))
    before = names(root)
    server = machine.server()
    with anyio.fail_after(SECONDS_MAX):
        await server.start()
        assert names(root) == before - {old, draft}
        await server.open("sesn_1")
        await server.close()


async def test_what_a_running_sandbox_has_in_sight_stays(machine: Machine) -> None:
    root = machine.root / "sandboxes"
    server = machine.server()
    with anyio.fail_after(SECONDS_MAX):
        await server.open("sesn_1")
        record = machine.directory("sesn_1").record()
        assert record is not None
        for name in names(root):
            os.utime(root / "programs" / name, (LONG_AGO, LONG_AGO))
        programs.prune(root, [record.pid])
        assert any(name.startswith("daemon-") for name in names(root))
        await server.destroy("sesn_1")
        programs.prune(root, [record.pid])
        assert not any(name.startswith("daemon-") for name in names(root))
        await server.close()
        # What the next server needs, it makes anew.
        await machine.server().start()
        assert any(name.startswith("daemon-") for name in names(root))
