"""What each seam promises, as checks against its protocol alone; run by `tests/contracts` and by `corral doctor`.

So far: `Sandboxes`. A check opens a sandbox of its own and says in one sentence what was not as promised; it knows no
backend, and what it does to the machine is gone when it ends. It is the core of the promise, for a machine and a
configuration that our tests have never seen, and not a replacement for the suite. Attacks here only look.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from itertools import count
from typing import NamedTuple

import anyio

from corral.domain.content import TextBlock
from corral.domain.file import Mount
from corral.errors import CorralError
from corral.interfaces.blobs import Blobs
from corral.interfaces.sandbox import Sandbox, SandboxCall, Sandboxes, SandboxOperation

CHECK_SECONDS_MAX = 120.0
PROCESSES_MAX = 16
"""The daemon, its shell and what a check starts are far fewer, and a machine's are more."""
OUTPUT = "/mnt/session/outputs/made.txt"


class Outcome(NamedTuple):
    """What a check came to."""

    name: str
    wrong: str | None
    """What was not as promised; None when everything was."""


class Hands:
    """A sandbox, and calls with fresh ids."""

    def __init__(self, sandbox: Sandbox, ids: Iterator[int]) -> None:
        self.sandbox, self._ids = sandbox, ids

    async def __call__(self, operation: SandboxOperation, **arguments: object) -> str:
        """The text of a call's result, be it an error or not."""
        call_id = f"sevt_{next(self._ids)}"
        return await self.send(SandboxCall(call_id=call_id, operation=operation, arguments=arguments))

    async def send(self, call: SandboxCall) -> str:
        """The same for a call that may have been sent before."""
        reply = await self.sandbox.call(call)
        return "\n".join(block.text for block in reply.content if isinstance(block, TextBlock))

    async def bash(self, command: str, **arguments: object) -> str:
        """The output of a command."""
        return await self("bash", command=command, **arguments)


class Trial:
    """One check's session, and the servers that it may have."""

    def __init__(self, session_id: str, make: Callable[[], Sandboxes], blobs: Blobs) -> None:
        self.session_id, self.blobs = session_id, blobs
        self._make, self._ids = make, count(1)
        self.server = make()
        self._servers = [self.server]

    async def open(self) -> Hands:
        """The session's sandbox, by the newest server."""
        return Hands(await self.server.open(self.session_id), self._ids)

    async def restart(self) -> None:
        """Let another server take the place of the newest one."""
        await self.server.close()
        self.server = self._make()
        self._servers.append(self.server)

    async def end(self) -> None:
        """Leave nothing."""
        await self.server.destroy(self.session_id)
        for server in self._servers:
            await server.close()


Check = Callable[[Trial], Awaitable[str | None]]


async def sandbox_outcomes(
    make: Callable[[], Sandboxes], blobs: Blobs, *, isolates: bool, prefix: str
) -> AsyncGenerator[Outcome]:
    """Run the checks one by one. `make` makes what one server process would have; sessions get ids under `prefix`."""
    checks: Sequence[tuple[str, Check]] = [*PROMISES, *(WALLS if isolates else ())]
    for number, (name, check) in enumerate(checks):
        trial = Trial(f"{prefix}{number}", make, blobs)
        try:
            with anyio.fail_after(CHECK_SECONDS_MAX):
                yield Outcome(name, await check(trial))
        except CorralError as error:
            yield Outcome(name, error.message)
        except TimeoutError:
            yield Outcome(name, f"it did not end within {CHECK_SECONDS_MAX:g} s")
        finally:
            with anyio.move_on_after(CHECK_SECONDS_MAX, shield=True):
                await trial.end()


def _unlike(wanted: str, got: str) -> str | None:
    return None if got == wanted else f"it should say {wanted!r} and says {got[:300]!r}"


# ------------------------------------------------------------------------------------------------- promises


async def _runs(trial: Trial) -> str | None:
    hands = await trial.open()
    return _unlike("hi\n3", await hands.bash("echo hi; (exit 3); echo $?"))


async def _keeps_the_shell(trial: Trial) -> str | None:
    hands = await trial.open()
    await hands.bash("mkdir deep && cd deep && export COLOUR=green")
    return _unlike("deep green", await hands.bash("echo $(basename $PWD) $COLOUR"))


async def _has_files(trial: Trial) -> str | None:
    hands = await trial.open()
    await hands("write", file_path="a/b.txt", content="one\ntwo\n")
    await hands("edit", file_path="a/b.txt", old_string="two", new_string="2")
    found = await hands("grep", pattern="2", path="a/b.txt")
    read = await hands("read", file_path="a/b.txt")
    return _unlike("one\n2\n", read) or _unlike("2:2", found)


async def _runs_once(trial: Trial) -> str | None:
    hands = await trial.open()
    call = SandboxCall(call_id="sevt_same", operation="bash", arguments={"command": "echo run >> log"})
    await hands.send(call)
    await hands.send(call)
    return _unlike("1", await hands.bash("wc -l < log | tr -d ' '"))


async def _cancels(trial: Trial) -> str | None:
    hands = await trial.open()
    await hands.bash("mkfifo gate")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hands.bash, "echo go > gate; sleep 1000; touch survived")
        await hands.bash("cat gate")
        tasks.cancel_scope.cancel()
    return _unlike("gate", await hands.bash("ls"))


async def _keeps_time(trial: Trial) -> str | None:
    hands = await trial.open()
    said = await hands.bash("sleep 1000", timeout_ms=300)
    return None if "timed out" in said else _unlike("timed out", said)


async def _outlives_the_server(trial: Trial) -> str | None:
    hands = await trial.open()
    await hands.bash("echo first >> log")
    command = {"command": "echo run >> log; echo done"}
    await hands.send(SandboxCall(call_id="sevt_kept", operation="bash", arguments=command))
    await trial.restart()
    hands = await trial.open()
    again = await hands.send(SandboxCall(call_id="sevt_kept", operation="bash", arguments=command, resumed=True))
    return _unlike("done", again) or _unlike("first\nrun", await hands.bash("cat log"))


async def _mounts(trial: Trial) -> str | None:
    await trial.open()
    async with trial.blobs.put(_bytes(b"mounted")) as blob:
        await trial.server.mount(trial.session_id, [Mount("deep/file", blob.sha256)], trial.blobs)
    hands = await trial.open()
    return _unlike("mounted", await hands("read", file_path="/mnt/session/uploads/deep/file"))


async def _gives_outputs(trial: Trial) -> str | None:
    hands = await trial.open()
    await hands("write", file_path=OUTPUT, content="made")
    found = [output.path for output in await trial.server.outputs(trial.session_id) or ()]
    if found != [b"made.txt"]:
        return f"the outputs should be `made.txt` and are {found}"
    read = b"".join([chunk async for chunk in trial.server.read_output(trial.session_id, found[0])])
    return _unlike("made", read.decode("utf-8", "replace"))


async def _leaves_nothing(trial: Trial) -> str | None:
    hands = await trial.open()
    await hands.bash("mkdir shut; chmod 0 shut; touch $'odd\\377'; sleep 1000 & setsid sleep 1000 &")
    await trial.server.destroy(trial.session_id)
    if await trial.server.outputs(trial.session_id) is not None:
        return "its files are still there"
    hands = await trial.open()
    return _unlike("", (await hands.bash("ls -A")).replace("(no output)", ""))


async def _bytes(data: bytes) -> AsyncIterator[bytes]:
    yield data


PROMISES: Sequence[tuple[str, Check]] = [
    ("runs commands", _runs),
    ("keeps the shell between commands", _keeps_the_shell),
    ("writes, edits, searches and reads files", _has_files),
    ("runs a call once, however often it is sent", _runs_once),
    ("stops a command that is cancelled", _cancels),
    ("stops a command that takes too long", _keeps_time),
    ("is found again by the next server, with its results", _outlives_the_server),
    ("shows mounted files", _mounts),
    ("gives outputs back", _gives_outputs),
    ("leaves nothing when it is destroyed", _leaves_nothing),
]


# ---------------------------------------------------------------------------------------------------- walls


async def _refuses_the_network(trial: Trial) -> str | None:
    hands = await trial.open()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        places = [f"127.0.0.1/{listener.getsockname()[1]}", "169.254.169.254/80"]
        for place in places:
            said = await hands.bash(
                f"timeout 5 bash -c 'exec 3<>/dev/tcp/{place}' 2>/dev/null && echo reached || echo no"
            )
            if said != "no":
                return f"{place.replace('/', ':')} answers inside"
    return None


async def _keeps_uploads(trial: Trial) -> str | None:
    await trial.open()
    async with trial.blobs.put(_bytes(b"mounted")) as blob:
        await trial.server.mount(trial.session_id, [Mount("file", blob.sha256)], trial.blobs)
    hands = await trial.open()
    said = await hands.bash("cd /mnt/session/uploads; (echo x > file; rm -f file; touch new) 2>/dev/null; cat *")
    return _unlike("mounted", said)


async def _keeps_the_kernel(trial: Trial) -> str | None:
    hands = await trial.open()
    opened = (
        'for each in $(find /proc/sys -type f 2>/dev/null); do (: >> "$each") 2>/dev/null && echo "$each"; done; true'
    )
    said = (await hands.bash(opened)).replace("(no output)", "")
    return f"these open for writing: {said[:300]}" if said else None


async def _keeps_privileges_away(trial: Trial) -> str | None:
    hands = await trial.open()
    wanted = "NoNewPrivs: 1 CapEff: 0000000000000000 CapBnd: 0000000000000000"
    look = "for each in NoNewPrivs CapEff CapBnd; do grep $each: /proc/self/status; done | tr '\\t\\n' '  '"
    said = (await hands.bash(f"{look}; echo; id -u")).splitlines()
    if said[-1] == "0":
        return "commands run as root"
    return _unlike(wanted, said[0].strip())


async def _stays_apart(trial: Trial) -> str | None:
    hands = await trial.open()
    said = await hands.bash("ls -d /proc/[0-9]* | wc -l")
    return None if said.isdigit() and int(said) < PROCESSES_MAX else f"it sees {said} processes"


WALLS: Sequence[tuple[str, Check]] = [
    ("reaches neither this machine nor its cloud by network", _refuses_the_network),
    ("cannot change mounted files", _keeps_uploads),
    ("opens no kernel setting for writing", _keeps_the_kernel),
    ("has no privilege and cannot gain any", _keeps_privileges_away),
    ("sees only its own processes", _stays_apart),
]
