"""`corral demo`: a whole server, a real agent, a real sandbox, and a file that can be checked.

It starts a server with a data directory of its own on a free port, runs `examples/quickstart.py` against it as any
client would run, reads the file that the agent wrote out of the sandbox, says whether it is right, and removes all of
it. The model is the operator's if a key is set, else the local one.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import anyio
import msgspec
from rich.console import Console

from corral.app.providers import model_routes
from corral.app.server import Corral, open_corral
from corral.config import Settings
from corral.domain.api_key import DEFAULT_WORKSPACE
from corral.domain.content import TextBlock
from corral.domain.query import SessionsQuery
from corral.errors import MachineUnfit
from corral.interfaces.sandbox import SandboxCall
from corral.serving import bind, serving

FILE = "fibonacci.txt"
DEMO_SECONDS_MAX = 1_800
LOCAL_TASK = (
    "Step 1: write fib.py, a Python program with a loop that prints the first 20 Fibonacci numbers, starting with 0, "
    "one per line. Step 2: run python3 fib.py > fibonacci.txt with bash."
)
"""The quickstart's task in the small steps that a model of 1.5 billion parameters takes reliably (measured)."""


async def demo(settings: Settings, out: Console) -> int:
    """Run the demo; the exit code says whether the agent's file is right."""
    with tempfile.TemporaryDirectory(prefix="corral-demo-") as directory:
        settings = _settings_in(Path(directory), settings)
        _announce(settings, out)
        with bind("127.0.0.1", 0) as listener:
            async with open_corral(settings) as corral, serving(corral, listener) as base_url:
                out.print(f"Corral is listening on {base_url}\n")
                try:
                    tasks = [LOCAL_TASK] if _is_local(settings) else []
                    code = await _run_quickstart(base_url, corral.api_key, tasks)
                    return code or await _check_file(corral, out)
                finally:
                    await _remove_sandboxes(corral)


def _settings_in(directory: Path, settings: Settings) -> Settings:
    """Everything below one directory, which the users that sandboxes of a root server run as may pass through."""
    directory.chmod(0o711)
    data_dir = directory / "data"
    return msgspec.structs.replace(
        settings,
        data_dir=data_dir,
        database=f"sqlite:///{data_dir}/corral.db",
        sandbox=msgspec.structs.replace(settings.sandbox, directory=str(directory / "sandboxes")),
    )


def _announce(settings: Settings, out: Console) -> None:
    provider = model_routes(settings)[-1].provider
    if _is_local(settings):
        out.print("No model key is set, so a small model runs on this machine. It is fetched once (1.1 GB).")
    else:
        out.print(f"Models are asked through the `{provider}` provider, as the environment says.")


def _is_local(settings: Settings) -> bool:
    return model_routes(settings)[-1].provider == "local"


async def _run_quickstart(base_url: str, api_key: str, arguments: Sequence[str]) -> int:
    """The published program in a process of its own: nothing but where it connects is ours."""
    environment = {"ANTHROPIC_BASE_URL": base_url, "ANTHROPIC_API_KEY": api_key, "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, str(quickstart_path()), *arguments]
    with anyio.fail_after(DEMO_SECONDS_MAX):
        process = await anyio.open_process(command, env=environment, stdin=subprocess.DEVNULL, stdout=None, stderr=None)
        async with process:
            return await process.wait()


def quickstart_path() -> Path:
    """`examples/quickstart.py`, in a checkout or beside the installed package."""
    package = Path(__file__).parents[1]
    for path in (package.parents[1] / "examples" / "quickstart.py", package / "examples" / "quickstart.py"):
        if path.is_file():
            return path
    raise MachineUnfit("examples/quickstart.py is missing from this installation.")


async def _check_file(corral: Corral, out: Console) -> int:
    session_id = await _latest_session(corral)
    sandbox = await corral.sandboxes.open(session_id)
    call = SandboxCall(call_id="demo-check", operation="read", arguments={"file_path": FILE})
    reply = await sandbox.call(call)
    text = "\n".join(block.text for block in reply.content if isinstance(block, TextBlock))
    if reply.is_error:
        out.print(f"The agent left no {FILE}: {text}")
        return 1
    right = is_fibonacci(text)
    out.print(f"{FILE}, as the agent wrote it in its sandbox, is {'right' if right else 'WRONG'}:\n")
    out.print(text.strip())
    return 0 if right else 1


def is_fibonacci(text: str) -> bool:
    """Whether the text holds the first 20 Fibonacci numbers and no others, counted from 0 or from 1."""
    numbers = [int(number) for number in re.findall(r"\d+", text)]
    if numbers[:2] not in ([0, 1], [1, 1]) or len(numbers) != 20:
        return False
    return all(a + b == c for a, b, c in zip(numbers, numbers[1:], numbers[2:], strict=False))


async def _latest_session(corral: Corral) -> str:
    newest = await corral.log.sessions(SessionsQuery(workspace_id=DEFAULT_WORKSPACE, limit=1))
    return newest[0].session.id


async def _remove_sandboxes(corral: Corral) -> None:
    for snapshot in await corral.log.sessions(SessionsQuery(workspace_id=DEFAULT_WORKSPACE, limit=100)):
        await corral.sandboxes.destroy(snapshot.session.id)
