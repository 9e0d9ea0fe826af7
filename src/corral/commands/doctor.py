"""`corral doctor`: what works on this machine, what does not and why; one line each.

Exit code 1 when the configured server could not run a session here. `corral doctor sandbox` puts the configured
backend to the checks of `conformance.py`. It looks and tries (a sandbox is started and
removed), and leaves nothing behind; it never prints a secret.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import anyio.to_thread
from rich.console import Console
from rich.text import Text

from corral.app.providers import make_provider, model_routes
from corral.app.sandboxes import make_sandboxes
from corral.app.storage import open_blobs
from corral.config import Settings, without_password
from corral.conformance import sandbox_outcomes
from corral.domain.ids import new_id
from corral.errors import MachineUnfit
from corral.interfaces.sandbox import Fact

FREE_BYTES_MIN = 1 << 30


class Finding(NamedTuple):
    """One line."""

    name: str
    state: str
    """`ok`, `note` (works, but worth knowing) or `bad` (a session could not run)."""
    detail: str


async def examine(settings: Settings, out: Console) -> int:
    """Print all findings; 1 when one is bad."""
    findings = [*_machine(settings), *await _sandbox(settings), *_models(settings)]
    marks = {"ok": ("ok  ", "green"), "note": ("note", "yellow"), "bad": ("BAD ", "red")}
    for finding in findings:
        mark, style = marks[finding.state]
        out.print(Text(mark, style=style), Text(f"{finding.name}: {finding.detail}"))
    bad = sum(finding.state == "bad" for finding in findings)
    out.print("\nA session can run here." if not bad else f"\nA session cannot run here: {bad} finding(s) marked BAD.")
    return 1 if bad else 0


async def examine_sandbox(settings: Settings, out: Console) -> int:
    """Prove that sandboxes do here what they promise, one line each; 1 when one does not."""
    isolates = settings.sandbox.backend != "process"
    out.print(f"The checks of the `{settings.sandbox.backend}` sandbox:")
    await make_sandboxes(settings).start()
    count, wrong = 0, 0
    with tempfile.TemporaryDirectory() as directory, open_blobs(Path(directory)) as blobs:
        outcomes = sandbox_outcomes(lambda: make_sandboxes(settings), blobs, isolates=isolates, prefix=new_id("sesn"))
        async for outcome in outcomes:
            count, wrong = count + 1, wrong + (outcome.wrong is not None)
            mark, style = ("ok  ", "green") if outcome.wrong is None else ("BAD ", "red")
            out.print(Text(mark, style=style), Text(outcome.name + (f": {outcome.wrong}" if outcome.wrong else "")))
    if not isolates:
        out.print(Text("note", style="yellow"), Text("process: isolates nothing, so no wall was tried"))
    out.print(f"\n{count - wrong} of {count} checks passed.")
    return 1 if wrong else 0


def _machine(settings: Settings) -> Iterator[Finding]:
    yield Finding(
        "system", "ok", f"{platform.system()} {platform.release()}, {platform.machine()}, {os.cpu_count()} cores"
    )
    yield Finding("python", "ok", f"{platform.python_version()} at {sys.executable}")
    existing = next(path for path in (settings.data_dir, *settings.data_dir.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    writable = os.access(existing, os.W_OK)
    detail = f"{settings.data_dir}, {free / (1 << 30):.1f} GiB free"
    if not writable:
        yield Finding("data directory", "bad", f"{detail}; {existing} is not writable. Choose another with --data-dir.")
    elif free < FREE_BYTES_MIN:
        yield Finding("data directory", "bad", f"{detail}; at least 1 GiB is needed.")
    else:
        yield Finding("data directory", "ok", detail)
    yield Finding("database", "ok", without_password(settings.database))
    yield Finding("engine", "ok", settings.engine)


async def _sandbox(settings: Settings) -> list[Finding]:
    findings: list[Finding] = []
    try:
        sandboxes = make_sandboxes(settings)
        facts = await anyio.to_thread.run_sync(sandboxes.explain)
        findings += map(_of, facts)
        await sandboxes.start()
    except MachineUnfit as error:
        return [*findings, Finding("sandbox", "bad", error.message)]
    if settings.sandbox.backend == "process":
        findings.append(Finding("sandbox", "note", "process: no isolation at all; agents can do what this user can"))
    else:
        findings.append(Finding("sandbox", "ok", f"{settings.sandbox.backend} starts"))
    findings += [_of(fact) for fact in await sandboxes.explain_network()]
    await sandboxes.close()
    return findings


def _of(fact: Fact) -> Finding:
    return Finding(fact.name, "ok" if fact.ok else "bad", fact.detail)


def _models(settings: Settings) -> Iterator[Finding]:
    try:
        make_provider(settings)
    except MachineUnfit as error:
        yield Finding("models", "bad", error.message)
        return
    routes = model_routes(settings)
    for route in routes:
        yield Finding("models", "ok", f"`{route.pattern}` → {route.provider}")
    if any(route.provider == "local" for route in routes):
        yield _local_model(settings)


def _local_model(settings: Settings) -> Finding:
    if importlib.util.find_spec("xllamacpp") is None:
        return Finding(
            "local model",
            "bad",
            "llama.cpp is not installed. `pip install 'corral[local]'`, or set a key for another provider.",
        )
    if settings.local_model.file is not None and not Path(settings.local_model.file).is_file():
        return Finding("local model", "bad", f"{settings.local_model.file} does not exist")
    return Finding("local model", "ok", f"llama.cpp is installed; the model file is kept in {settings.cache_dir}")
