"""Bases: root file systems that sandboxes see instead of the machine's own /usr, and what apt adds to them."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import anyio.to_thread
import pytest

from corral.config_sections import EgressSettings, SandboxSettings
from corral.errors import Invalid, MachineUnfit, PackagesFailed
from corral.sandboxes.bases import Bases
from corral.sandboxes.bubblewrap import BubblewrapSandboxes
from corral.sandboxes.directory import remove_tree
from corral.sandboxes.egress.outlet import Egress
from tests.contracts import small_base
from tests.contracts.test_packages import opened, recipe
from tests.contracts.test_sandboxes import contract


@pytest.fixture
def bases(root: Path) -> Iterator[Bases]:
    if not small_base.can_be_made():
        pytest.skip("this machine's /usr cannot be taken apart")
    yield Bases(root / "sandboxes")
    remove_tree(root / "sandboxes")


async def server_over(root: Path, bases: Bases, scratch: Path, *, apt: bool) -> BubblewrapSandboxes:
    """A server whose sandboxes see a small base."""
    tar = scratch / "small.tar"
    await anyio.to_thread.run_sync(lambda: small_base.write(tar, scratch=scratch, apt=apt))
    await anyio.to_thread.run_sync(bases.unpack, "small", tar)
    settings = SandboxSettings(base="small")
    server = BubblewrapSandboxes(settings, root, lambda place: Egress(EgressSettings(), place))
    try:
        await server.start()
    except MachineUnfit as error:
        if "trial sandbox failed" in error.message or "cannot be used" in error.message:
            raise
        pytest.skip(error.message)
    return server


@pytest.mark.requirement("F036")
@contract
async def test_sandboxes_see_an_imported_base_and_not_the_machine(root: Path, bases: Bases, tmp_path: Path) -> None:
    server = await server_over(root, bases, tmp_path, apt=False)
    hands = await opened(server, "sesn_1", recipe())
    assert await hands.bash(". /usr/lib/os-release; echo $PRETTY_NAME; python3 -c 'print(1 + 1)'") == "Small\n2"
    assert await hands.bash("command -v ldd find || echo none; touch /usr/x 2>/dev/null || echo read-only") == (
        "none\nread-only"
    )
    # The base has no pip of its own.
    assert "/opt/corral/pip" in await hands.bash("pip --version")
    assert bases.list() == [("small", "Small")]
    facts = {fact.name: fact.detail for fact in server.explain()}
    assert facts["npm packages"].startswith("none")
    await server.destroy("sesn_1")
    await server.close()


@pytest.mark.requirement("F036")
@contract
async def test_apt_adds_to_a_copy_of_the_base_that_one_environment_has(
    root: Path, bases: Bases, tmp_path: Path
) -> None:
    if not small_base.has_apt():
        pytest.skip("this machine has no apt to put into a base")
    server = await server_over(root, bases, tmp_path, apt=True)
    hands = await opened(server, "sesn_1", recipe(apt=("probe-d",)))
    assert await hands.bash("probe-d; touch /usr/x 2>/dev/null || echo read-only") == "configured\nread-only"
    plain = await opened(server, "sesn_2", recipe())
    assert await plain.bash("command -v probe-d || echo none") == "none"
    with pytest.raises(PackagesFailed, match=r"apt packages .*\(no-such-thing\).*Unable to locate"):
        await server.open("sesn_3", recipe(apt=("no-such-thing",)))
    for number in (1, 2):
        await server.destroy(f"sesn_{number}")
    await server.close()


def test_a_base_is_whole_or_not_there(root: Path, bases: Bases, tmp_path: Path) -> None:
    (tmp_path / "no.tar").write_bytes(b"not a tar")
    (tmp_path / "a").write_text("a", encoding="utf-8")
    with tarfile.open(tmp_path / "poor.tar", "w") as archive:
        archive.add(tmp_path / "a", "a")
    with tarfile.open(tmp_path / "evil.tar", "w") as archive:
        archive.add(tmp_path / "a", "../../../escaped")
    for name in ("no", "poor", "evil", "missing"):
        with pytest.raises(MachineUnfit, match=f"{name}.tar"):
            bases.unpack(name, tmp_path / f"{name}.tar")
    with pytest.raises(Invalid, match="cannot be a base's name"):
        bases.unpack("../up", tmp_path / "poor.tar")
    assert bases.list() == []
    assert list((root / "sandboxes" / "bases").iterdir()) == []


@contract
async def test_a_base_that_is_not_there_is_said_at_the_start(root: Path) -> None:
    server = BubblewrapSandboxes(SandboxSettings(base="nowhere"), root)
    with pytest.raises(MachineUnfit, match=r"nowhere.*corral base list"):
        await server.start()


def test_a_bootstrap_without_its_tool_says_which_to_install(tmp_path: Path) -> None:
    if shutil.which("mmdebstrap"):
        pytest.skip("mmdebstrap is here")
    command = [sys.executable, "-m", "corral", "base", "build", "--data-dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "apt install mmdebstrap" in done.stderr


def test_a_base_is_made_by_the_distributions_own_tool(root: Path, bases: Bases) -> None:
    if not shutil.which("mmdebstrap"):
        pytest.skip("mmdebstrap is not installed")
    try:
        place = bases.bootstrap("debian", "stable", None, ())
    except MachineUnfit as error:
        pytest.skip(error.message)
    assert (place / "usr/bin/python3").exists()
