"""The checks that `corral doctor sandbox` runs: every backend passes them, and a broken one does not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from corral.config_sections import SandboxSettings
from corral.conformance import PROMISES, WALLS, sandbox_outcomes
from corral.domain.environment import SEALED, Recipe
from corral.domain.placeholder import Substitution
from corral.interfaces.sandbox import Sandbox
from corral.sandboxes.process import ProcessSandboxes
from corral.storage.blobs import DiskBlobs
from tests.contracts.conftest import Machine

pytestmark = pytest.mark.anyio


@pytest.fixture
def blobs(tmp_path: Path) -> Iterator[DiskBlobs]:
    opened = DiskBlobs(tmp_path / "blobs")
    yield opened
    opened.close()


async def test_every_backend_keeps_its_promises(machine: Machine, blobs: DiskBlobs) -> None:
    outcomes = sandbox_outcomes(machine.server, blobs, isolates=machine.isolates, prefix="sesn_check")
    wrong = {outcome.name: outcome.wrong async for outcome in outcomes}
    assert len(wrong) == len(PROMISES) + (len(WALLS) if machine.isolates else 0)
    assert {name: said for name, said in wrong.items() if said} == {}
    assert not list((machine.root / "sandboxes" / "sessions").glob("*"))


class Forgetful(ProcessSandboxes):
    """Gives every caller a fresh sandbox."""

    async def open(self, session_id: str, recipe: Recipe = SEALED, secrets: Sequence[Substitution] = ()) -> Sandbox:
        await self.destroy(session_id)
        return await super().open(session_id, recipe, secrets)


async def test_a_backend_that_forgets_is_found_out(root: Path, blobs: DiskBlobs) -> None:
    wrong: Sequence[str] = [
        outcome.name
        async for outcome in sandbox_outcomes(
            lambda: Forgetful(SandboxSettings(), root), blobs, isolates=False, prefix="sesn_bad"
        )
        if outcome.wrong
    ]
    assert "is found again by the next server, with its results" in wrong
    assert "runs commands" not in wrong
