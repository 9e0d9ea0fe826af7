"""What every sandbox backend promises, and what those that isolate promise beyond that.

The checks are written against `Sandboxes` and `Sandbox` alone; only those about isolation and death know a backend.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import json
import os
import secrets
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import ParamSpec

import anyio
import anyio.to_thread
import msgspec
import pytest

from corral.domain.content import Base64Source, DocumentBlock, ImageBlock, TextBlock
from corral.domain.environment import SEALED
from corral.errors import SandboxLost, SandboxUnavailable
from corral.interfaces.sandbox import Sandbox, SandboxCall, SandboxOperation, SandboxReply
from corral.sandboxes.connection import Connection, greet, listen, short_socket_path
from corral.sandboxes.lifecycle import RESTARTED
from corral.sandboxes.local import LocalSandboxes
from tests import docker_engine
from tests.contracts.conftest import SETTINGS, Machine

P = ParamSpec("P")
SECONDS_MAX = 60
PNG = b"\x89PNG\r\n\x1a\n" + bytes(32)
SESSION = "sesn_1"


def contract(check: Callable[P, Awaitable[None]]) -> Callable[P, Awaitable[None]]:
    """An async check that must end."""

    @functools.wraps(check)
    async def bounded(*args: P.args, **kwargs: P.kwargs) -> None:
        with anyio.fail_after(SECONDS_MAX):
            await check(*args, **kwargs)

    return pytest.mark.anyio(bounded)


class Hands:
    """Calls tools with fresh ids."""

    def __init__(self, sandbox: Sandbox, ids: Iterator[int]) -> None:
        self.sandbox, self._ids = sandbox, ids

    async def __call__(self, operation: SandboxOperation, **arguments: object) -> SandboxReply:
        call_id = f"sevt_{next(self._ids)}"
        return await self.sandbox.call(SandboxCall(call_id=call_id, operation=operation, arguments=arguments))

    async def bash(self, command: str, **arguments: object) -> str:
        """The output of a command that must succeed."""
        return expect(await self("bash", command=command, **arguments))


def text(reply: SandboxReply) -> str:
    """The one text of a reply."""
    (block,) = reply.content
    assert isinstance(block, TextBlock)
    return block.text


def expect(reply: SandboxReply) -> str:
    """The text of a success."""
    assert not reply.is_error, text(reply)
    return text(reply)


def refusal(reply: SandboxReply) -> str:
    """The text of an error."""
    assert reply.is_error, text(reply)
    return text(reply)


def command(call_id: str, script: str, *, resumed: bool = False) -> SandboxCall:
    """A bash call with a given id."""
    return SandboxCall(call_id=call_id, operation="bash", arguments={"command": script}, resumed=resumed)


@pytest.fixture
def ids() -> Iterator[int]:
    """Numbers for call ids."""
    return count(1)


@pytest.fixture
async def hands(server: LocalSandboxes, ids: Iterator[int]) -> Hands:
    """A running sandbox."""
    return Hands(await server.open(SESSION), ids)


# ----------------------------------------------------------------------------------------------------- bash


@contract
async def test_bash_keeps_directory_variables_and_functions_between_calls(hands: Hands) -> None:
    await hands.bash("mkdir -p deep && cd deep && export COLOUR=green && plain=1 && greet() { echo hello $1; }")
    assert await hands.bash("basename $PWD; echo $COLOUR $plain; greet you") == "deep\ngreen 1\nhello you"


@contract
async def test_bash_merges_output_in_order_and_strips_escapes(hands: Hands) -> None:
    script = "echo one; echo two >&2; printf '\\033[31mred\\033[0m \\033]0;title\\007end\\n'"
    assert await hands.bash(script) == "one\ntwo\nred end"


@contract
async def test_a_failing_command_is_an_error_with_its_output(hands: Hands) -> None:
    assert refusal(await hands("bash", command="echo no; exit_code() { return 3; }; exit_code")) == "no"
    assert "3" in refusal(await hands("bash", command="(exit 3)"))


@contract
async def test_bash_survives_broken_syntax_and_redirected_shells(hands: Hands) -> None:
    await hands.bash("kept=1")
    for broken in ('echo "', "if true; then", "echo )", "}"):
        assert "syntax error" in refusal(await hands("bash", command=broken)) or broken == 'echo "'
    await hands("bash", command="exec >/dev/null 2>&1")
    assert await hands.bash("cat <<EOF\n$kept ok\nEOF") == "1 ok"


@contract
async def test_bash_reads_nothing_from_stdin(hands: Hands) -> None:
    assert await hands.bash("cat; read line || echo closed") == "closed"


@contract
async def test_a_shell_that_exits_is_replaced_and_says_so(hands: Hands) -> None:
    answer = expect(await hands("bash", command="gone=1; echo bye; exit 0"))
    assert answer.startswith("bye\n") and "fresh" in answer
    assert await hands.bash("echo [$gone]") == "[]"


@contract
async def test_restart_forgets_the_shell_but_not_the_files(hands: Hands) -> None:
    await hands.bash("export COLOUR=green; touch kept")
    await hands("bash", restart=True)
    assert await hands.bash("echo [$COLOUR]; ls") == "[]\nkept"


@contract
async def test_a_command_over_its_time_is_killed_with_its_children_and_says_so(hands: Hands) -> None:
    marker = f"1000.{secrets.randbelow(10**9)}"
    answer = refusal(
        await hands("bash", command=f"echo begun; lost=1; sleep {marker} & sleep {marker}", timeout_ms=300)
    )
    assert answer.startswith("begun\n") and "timed out after 0.3s" in answer
    assert await hands.bash(f"{until_gone(marker)}; echo [$lost]") == "[]"


def until_gone(argument: str) -> str:
    """A script that ends when no process has this argument any more; a killed one takes a moment to go."""
    pattern = f"{argument[:-1]}[{argument[-1]}]"
    return f"while cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' '\\n' | grep -qx '{pattern}'; do :; done"


@contract
async def test_a_flood_keeps_the_tail_and_marks_the_cut(hands: Hands) -> None:
    answer = await hands.bash("head -c 20000000 /dev/zero | tr '\\0' x; echo; echo last")
    first, _, rest = answer.partition("\n")
    assert "truncated" in first and rest.endswith("x\nlast") and len(rest) <= SETTINGS.output_bytes_max


@contract
async def test_background_processes_that_keep_the_output_open_delay_nothing(hands: Hands) -> None:
    assert await hands.bash("mkfifo gate; (cat gate; echo late) & echo now") == "now"
    assert "late" in await hands.bash("echo > gate; wait; echo done")


@contract
async def test_output_that_is_not_text_is_replaced(hands: Hands) -> None:
    assert await hands.bash("printf 'a\\377\\000b'") == "a\ufffd\0b"


@contract
async def test_commands_run_in_parallel_and_extra_shells_inherit_but_do_not_keep(hands: Hands) -> None:
    await hands.bash("mkdir sub; cd sub; export COLOUR=green; mkfifo there back")
    answers: dict[str, str] = {}

    async def run(name: str, script: str) -> None:
        answers[name] = await hands.bash(script)

    async with anyio.create_task_group() as tasks:
        # Each needs the other to be running.
        tasks.start_soon(run, "first", "echo ping > there; cat back")
        tasks.start_soon(run, "second", "cat there; echo $COLOUR > back; export COLOUR=red; cd /")
    assert answers == {"first": "green", "second": "ping"}
    # Which of the two got the persistent shell is not said; the other one's changes are gone.
    assert await hands.bash("echo $COLOUR; basename $PWD") in ("green\nsub", "red\n/")


# ---------------------------------------------------------------------------------------------------- files


@contract
async def test_write_makes_parents_and_read_gives_it_back(hands: Hands) -> None:
    assert expect(await hands("write", file_path="a/b/c.txt", content="h\u00e9llo\n")) == "wrote 7 bytes to a/b/c.txt"
    assert expect(await hands("read", file_path="a/b/c.txt")) == "h\u00e9llo\n"
    assert expect(await hands("read", file_path="/workspace/a/b/c.txt")) == "h\u00e9llo\n"


@contract
async def test_write_keeps_the_mode_and_follows_links(hands: Hands) -> None:
    await hands.bash("echo old > real; chmod 755 real; ln -s real link")
    expect(await hands("write", file_path="link", content="new"))
    assert await hands.bash("stat -c %a real; cat real; test -L link; ls -A") == "755\nnewlink\nreal"


@contract
async def test_read_shows_line_ranges_of_files_of_any_size(hands: Hands) -> None:
    await hands.bash("seq 1 100000 > big; printf 'a\\nb\\nc' > small")
    assert expect(await hands("read", file_path="big", view_range=[99999, 0])) == "99999\n100000\n"
    assert expect(await hands("read", file_path="small", view_range=[1, 2])) == "a\nb"
    assert expect(await hands("read", file_path="small", view_range=[3, -1])) == "c"
    assert "view_range" in refusal(await hands("read", file_path="big"))
    assert "fewer" in refusal(await hands("read", file_path="big", view_range=[1, 0]))
    assert "no lines" in expect(await hands("read", file_path="small", view_range=[9, 10]))


@contract
async def test_files_that_cannot_be_read_are_named_as_the_model_named_them(hands: Hands) -> None:
    await hands.bash("mkdir d; mkfifo pipe; ln -s self self; printf 'a\\377b' > odd; : > empty")
    assert refusal(await hands("read", file_path="foo.txt")) == "read: foo.txt: no such file or directory"
    assert refusal(await hands("read", file_path="d")) == "read: d: is a directory"
    assert refusal(await hands("read", file_path="pipe")) == "read: pipe: not a regular file"
    assert refusal(await hands("read", file_path="/dev/zero")) == "read: /dev/zero: not a regular file"
    assert refusal(await hands("read", file_path="self")) == "read: self: too many levels of symbolic links"
    assert refusal(await hands("write", file_path="pipe", content="")) == "write: pipe: not a regular file"
    assert refusal(await hands("write", file_path="odd/x", content="")) == "write: odd/x: not a directory"
    assert expect(await hands("read", file_path="odd")) == "a\ufffdb"
    assert expect(await hands("read", file_path="empty")) == "(empty file)"


@contract
async def test_pictures_and_pdfs_come_as_blocks(hands: Hands, ids: Iterator[int]) -> None:
    encoded = base64.b64encode(PNG).decode()
    await hands.bash(
        f"echo {encoded} | base64 -d > a.png; cp a.png wrong.pdf; echo '%PDF-1.4' > b.PDF; echo hi > c.jpg"
    )
    (image,) = (await hands("read", file_path="a.png")).content
    assert image == ImageBlock(source=Base64Source(media_type="image/png", data=encoded))
    (document,) = (await hands("read", file_path="b.PDF")).content
    assert isinstance(document, DocumentBlock)
    assert "not supported" in refusal(await hands("read", file_path="a.png", view_range=[1, 2]))
    assert refusal(await hands("read", file_path="wrong.pdf")) == "read: wrong.pdf: the content is not a PDF"
    assert "not a PNG" in refusal(await hands("read", file_path="c.jpg"))
    await hands.bash("head -c 3073 /dev/zero > big.png; head -c 8193 /dev/zero > big.pdf")
    assert "larger than the limit of 3072" in refusal(await hands("read", file_path="big.png"))
    assert "larger than the limit of 8192" in refusal(await hands("read", file_path="big.pdf"))


@contract
async def test_edit_wants_exactly_one_match_unless_told_otherwise(hands: Hands) -> None:
    await hands.bash("printf 'a b a\\377' > f")
    assert refusal(await hands("edit", file_path="f", old_string="c", new_string="d")).endswith("not found in f")
    assert "appears 2 times" in refusal(await hands("edit", file_path="f", old_string="a", new_string="x"))
    assert expect(await hands("edit", file_path="f", old_string="b", new_string="B")) == "edited f (1 replacement)"
    everywhere = await hands("edit", file_path="f", old_string="a", new_string="x", replace_all=True)
    assert expect(everywhere) == "edited f (2 replacements)"
    assert await hands.bash("od -An -c f | tr -d ' '") == "xBx377"
    missing = await hands("edit", file_path="none", old_string="a", new_string="b")
    assert refusal(missing) == "edit: none: no such file or directory"


@contract
async def test_glob_lists_newest_first_and_stays_below(hands: Hands) -> None:
    await hands.bash(
        "mkdir d; touch -d 2001-01-01 old.py; touch -d 2003-01-01 d/new.py; touch -d 2002-01-01 mid.py x.c"
    )
    assert expect(await hands("glob", pattern="**/*.py")).split() == [
        "/workspace/d/new.py", "/workspace/mid.py", "/workspace/old.py",
    ]  # fmt: skip
    assert expect(await hands("glob", pattern="*.py", path="d")) == "/workspace/d/new.py"
    assert expect(await hands("glob", pattern="*.rs")) == "no matches"
    await hands.bash("touch 1.t 2.t 3.t 4.t 5.t 6.t 7.t")
    assert expect(await hands("glob", pattern="*.t")).splitlines()[5:] == ["[2 more not shown]"]
    for pattern in ("/etc/*", "../*", "a/../../b"):
        assert refusal(await hands("glob", pattern=pattern)).startswith("glob: the pattern must be relative")
    assert refusal(await hands("glob", pattern="*", path="none")) == "glob: none: no such directory"


@contract
async def test_names_that_are_not_text_do_not_break_the_reply(hands: Hands) -> None:
    await hands.bash("touch $'bad\\377name.q'")
    assert expect(await hands("glob", pattern="*.q")) == "/workspace/bad\ufffdname.q"


@contract
async def test_grep_finds_lines_and_knows_no_match_from_a_bad_pattern(hands: Hands) -> None:
    await hands.bash("mkdir d; echo needle > d/a.txt; printf 'x\\n-v needle\\n' > b.txt")
    found = expect(await hands("grep", pattern="need"))
    assert sorted(found.splitlines()) == ["/workspace/b.txt:2:-v needle", "/workspace/d/a.txt:1:needle"]
    assert expect(await hands("grep", pattern="-v", path="b.txt")) == "2:-v needle"
    assert expect(await hands("grep", pattern="nothing")) == "no matches"
    assert "regex" in refusal(await hands("grep", pattern="("))
    assert refusal(await hands("grep", pattern="x", path="none")) == "grep: none: no such file or directory"
    await hands.bash("seq 1 100000 > many")
    assert expect(await hands("grep", pattern="1")).endswith("[output truncated after 4096 bytes]")


# ------------------------------------------------------------------------------------------- calls by their id


@contract
async def test_a_call_sent_again_attaches_to_the_running_one_and_runs_once(hands: Hands) -> None:
    await hands.bash("mkfifo gate")
    call = command("sevt_x", "echo run >> log; cat gate")
    replies: list[SandboxReply] = []

    async def send() -> None:
        replies.append(await hands.sandbox.call(call))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(send)
        tasks.start_soon(send)
        await hands.bash("echo through > gate")
    replies.append(await hands.sandbox.call(call))
    assert [text(reply) for reply in replies] == ["through"] * 3
    assert await hands.bash("cat log") == "run"


@contract
async def test_a_forgotten_call_is_not_run_again(hands: Hands) -> None:
    call = command("sevt_x", "echo run >> log")
    await hands.sandbox.call(call)
    await hands.sandbox.forget(["sevt_x", "sevt_unknown"])
    assert "no longer kept" in refusal(await hands.sandbox.call(call))
    assert await hands.bash("cat log") == "run"


@contract
async def test_only_the_newest_results_are_kept_and_older_ids_still_do_not_run(hands: Hands) -> None:
    for number in range(SETTINGS.remembered_calls_max + 1):
        await hands.sandbox.call(command(f"sevt_x{number}", "echo run >> log"))
    assert "no longer kept" in refusal(await hands.sandbox.call(command("sevt_x0", "echo run >> log")))
    assert await hands.bash("wc -l < log") == str(SETTINGS.remembered_calls_max + 1)


@contract
async def test_cancelling_kills_the_command_and_the_next_one_works(hands: Hands) -> None:
    marker = f"1000.{secrets.randbelow(10**9)}"
    await hands.bash("lost=1; mkfifo gate")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hands.bash, f"echo go > gate; sleep {marker}; echo survived > proof")
        await hands.bash("cat gate")
        tasks.cancel_scope.cancel()
    # Whether it ran in the persistent shell or in an extra one is not said.
    assert await hands.bash(f"{until_gone(marker)}; ls; echo [$lost]") in ("gate\n[]", "gate\n[1]")


@contract
async def test_a_cancelled_call_stays_known_as_cancelled(hands: Hands) -> None:
    await hands.bash("mkfifo gate")
    call = command("sevt_x", "echo run >> log; echo go > gate; sleep 1000")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hands.sandbox.call, call)
        await hands.bash("cat gate")
        tasks.cancel_scope.cancel()
    assert "cancelled" in refusal(await hands.sandbox.call(call))
    assert await hands.bash("cat log") == "run"


# ------------------------------------------------------------------------------------------ birth, death, restarts


@contract
async def test_opening_at_the_same_time_makes_one_sandbox(machine: Machine, server: LocalSandboxes) -> None:
    opened: list[Sandbox] = []

    async def open_one() -> None:
        opened.append(await server.open(SESSION))

    async with anyio.create_task_group() as tasks:
        for _ in range(8):
            tasks.start_soon(open_one)
    assert len({id(sandbox) for sandbox in opened}) == 1
    record = machine.directory(SESSION).record()
    assert record is not None and record.predecessors == 0


@contract
async def test_the_next_server_finds_the_sandbox_and_collects_the_running_call(
    machine: Machine, server: LocalSandboxes, hands: Hands
) -> None:
    await hands.bash("export COLOUR=green; mkfifo started gate")
    call = command("sevt_x", "echo run >> log; echo > started; cat gate; echo $COLOUR")
    async with anyio.create_task_group() as tasks:

        async def lose() -> None:
            with pytest.raises(SandboxLost):
                await hands.sandbox.call(call)

        tasks.start_soon(lose)
        await hands.bash("cat started")
        await server.close()
    successor = machine.server()
    found = Hands(await successor.open(SESSION), count(1000))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(found.bash, "echo through > gate")
        again = msgspec.structs.replace(call, resumed=True)
        assert expect(await found.sandbox.call(again)) == "through\ngreen"
    assert await found.bash("cat log") == "run"
    await successor.close()


SERVER_TO_KILL = """
import sys, anyio
from pathlib import Path
from corral.interfaces.sandbox import SandboxCall
from tests.contracts.conftest import Machine
async def main():
    sandbox = await Machine(sys.argv[1], Path(sys.argv[2])).server().open("sesn_1")
    script = "echo run >> log; echo > started; cat gate"
    await sandbox.call(SandboxCall(call_id="prepare", operation="bash", arguments={"command": "mkfifo started gate"}))
    async with anyio.create_task_group() as tasks:
        call = SandboxCall(call_id="sevt_x", operation="bash", arguments={"command": script})
        tasks.start_soon(sandbox.call, call)
        await sandbox.call(SandboxCall(call_id="wait", operation="bash", arguments={"command": "cat started"}))
        print("ready", flush=True)
anyio.run(main)
"""


@contract
async def test_a_server_killed_in_the_middle_of_a_call_loses_nothing(machine: Machine) -> None:
    here = Path(__file__).parents[2]
    path = os.pathsep.join([str(here), *sys.path])
    argv = [sys.executable, "-c", SERVER_TO_KILL, machine.backend, str(machine.root)]
    environment = {"PYTHONPATH": path, "DOCKER_HOST": docker_engine.host()}
    async with await anyio.open_process(argv, env=environment, cwd="/", stderr=subprocess.DEVNULL) as victim:
        assert victim.stdout is not None
        assert await victim.stdout.receive() == b"ready\n"
        victim.kill()
        await victim.wait()
    successor = machine.server()
    found = Hands(await successor.open(SESSION), count(1000))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(found.bash, "echo through > gate")
        assert expect(await found.sandbox.call(command("sevt_x", "unused", resumed=True))) == "through"
    assert await found.bash("cat log") == "run"
    await successor.close()


@contract
async def test_a_resumed_call_runs_when_there_never_was_a_sandbox(hands: Hands) -> None:
    assert text(await hands.sandbox.call(command("sevt_x", "echo fine", resumed=True))) == "fine"


@contract
async def test_when_the_sandbox_dies_calls_are_lost_and_files_are_kept(
    machine: Machine, server: LocalSandboxes, hands: Hands
) -> None:
    await hands.bash("mkfifo started gate; echo kept > file")
    async with anyio.create_task_group() as tasks:

        async def lose() -> None:
            with pytest.raises(SandboxLost, match="unknown whether it took effect"):
                await hands.bash("echo > started; cat gate")

        tasks.start_soon(lose)
        await hands.bash("cat started")
        await anyio.to_thread.run_sync(machine.directory(SESSION).kill_instance)
    with pytest.raises(SandboxLost, match="not run"):
        await hands.bash("echo too late")
    successor = await server.open(SESSION)
    assert text(await successor.call(command("sevt_new", "cat file"))) == "kept"
    with pytest.raises(SandboxLost, match="check"):
        await successor.call(command("sevt_old", "echo again >> file", resumed=True))
    assert text(await successor.call(command("sevt_new", "unused", resumed=True))) == "kept"
    assert text(await successor.call(command("sevt_after", "cat file"))) == "kept"


@contract
async def test_a_sandbox_that_is_not_used_ends_and_its_files_stay(machine: Machine) -> None:
    server = machine.server(msgspec.structs.replace(SETTINGS, checkpoint_seconds=0.1, orphan_seconds_max=0.1))
    try:
        first = Hands(await server.open(SESSION), count())
        await first("write", file_path="kept.txt", content="still here")
        record = machine.directory(SESSION).record()
        assert record is not None
        await ended(record.pid)
        second = Hands(await server.open(SESSION), count(100))
        told, kept = (await second("bash", command="cat kept.txt")).content
        assert (told, kept) == (TextBlock(text=RESTARTED), TextBlock(text="still here"))
        again = machine.directory(SESSION).record()
        assert again is not None and again.pid != record.pid
    finally:
        await server.close()


async def ended(pid: int) -> None:
    """Until the process is gone."""
    try:
        watched = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        await anyio.wait_readable(watched)
    finally:
        os.close(watched)


@contract
async def test_a_sandbox_that_no_server_talks_to_ends_by_itself(machine: Machine) -> None:
    server = machine.server(msgspec.structs.replace(SETTINGS, orphan_seconds_max=0.2))
    await server.open(SESSION)
    record = machine.directory(SESSION).record()
    assert record is not None
    process = os.pidfd_open(record.pid)
    await server.close()
    await anyio.wait_readable(process)
    os.close(process)


@contract
async def test_destroy_leaves_nothing(machine: Machine, server: LocalSandboxes, hands: Hands) -> None:
    directory = machine.directory(SESSION)
    marker = f"1000.{secrets.randbelow(10**9)}"
    await hands.bash(f"sleep {marker} & mkdir -p shut/in; chmod 0 shut; touch $'odd\\377'; setsid sleep {marker} &")
    await hands.bash("for i in $(seq 300); do mkdir deeper && cd deeper; done")
    record = directory.record()
    assert record is not None
    await server.destroy(SESSION)
    await server.destroy(SESSION)
    assert not await anyio.Path(directory.path).exists()
    assert not await anyio.Path(f"/proc/{record.pid}").exists()
    assert not any((machine.root / "sandboxes" / "uids").glob("*"))
    assert not any(marker.encode() in line for line in command_lines())


def command_lines() -> Iterator[bytes]:
    """Of every process on this machine."""
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            yield place.read_bytes()
        except OSError:
            continue


@contract
async def test_sessions_do_not_see_each_other(server: LocalSandboxes, hands: Hands, ids: Iterator[int]) -> None:
    await hands.bash("echo mine > secret; echo mine > ~/secret")
    other = Hands(await server.open("sesn_2"), ids)
    assert await other.bash("ls -A . ~ | grep secret || echo none") == "none"
    assert refusal(await other("read", file_path="secret")).endswith("no such file or directory")


@contract
async def test_a_session_id_cannot_leave_the_directory(server: LocalSandboxes) -> None:
    for session_id in ("..", "a/b", "", "x" * 200):
        with pytest.raises(SandboxUnavailable):
            await server.open(session_id)


@contract
async def test_nothing_of_the_servers_environment_is_inside(
    monkeypatch: pytest.MonkeyPatch, server: LocalSandboxes, ids: Iterator[int]
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "secret-of-the-server")
    hands = Hands(await server.open(SESSION), ids)
    assert "secret-of-the-server" not in await hands.bash("env; cat /proc/$PPID/environ | tr '\\0' '\\n'")


# ------------------------------------------------------------------------------------------- hostile daemons


async def hostile(answer: bytes, path: Path) -> asyncio.Server:
    """A daemon that says hello properly and then sends `answer` to everything."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def send(data: bytes) -> None:
            writer.write(len(data).to_bytes(4, "big") + data)
            await writer.drain()

        try:
            await reader.readexactly(int.from_bytes(await reader.readexactly(4), "big"))
            await send(b'{"n":0,"protocol":1,"instance":"x"}')
            await reader.readexactly(int.from_bytes(await reader.readexactly(4), "big"))
            await send(answer)
            await reader.read()
        finally:
            writer.close()

    return await asyncio.start_unix_server(serve, path)


HOSTILE = {
    "not JSON": b"hello",
    "not an answer": b'{"n":1,"reply":7}',
    "an unknown field": b'{"n":1,"reply":{"content":[],"is_error":false},"more":1}',
    "a URL to fetch": json.dumps({
        "n": 1,
        "reply": {
            "content": [{"type": "image", "source": {"type": "url", "url": "https://attacker.example/?q=secret"}}],
            "is_error": False,
        },
    }).encode(),
    "too much": b'{"n":1,"reply":{"content":[{"type":"text","text":"' + b"x" * 70_000 + b'"}],"is_error":false}}',
}  # fmt: skip


@pytest.mark.parametrize("kind", list(HOSTILE))
@contract
async def test_an_answer_that_makes_no_sense_is_a_lost_sandbox(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    settings = msgspec.structs.replace(SETTINGS, reply_bytes_max=65_536)
    async with await hostile(HOSTILE[kind], path):
        hello = await greet(path, settings)
        assert hello is not None
        connection = Connection(path, settings, hello, has_predecessor=False)
        with pytest.raises(SandboxLost):
            await connection.call(command("sevt_x", "echo"))
        assert connection.lost
        await connection.close()


@contract
async def test_a_socket_path_of_any_length_will_do(tmp_path: Path) -> None:
    directory = tmp_path / ("x" * 200)
    directory.mkdir()
    with short_socket_path(directory / "socket") as short:
        async with await hostile(b"", Path(short)):
            hello = await greet(directory / "socket", SETTINGS)
            assert hello is not None
            hello.writer.close()


async def breaking(path: Path, instances: Iterator[str]) -> asyncio.Server:
    """Daemons that hang up on the first request; only the second connection gets an answer."""
    connections = count(1)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def receive() -> None:
            await reader.readexactly(int.from_bytes(await reader.readexactly(4), "big"))

        async def send(data: bytes) -> None:
            writer.write(len(data).to_bytes(4, "big") + data)
            await writer.drain()

        first = next(connections) == 1
        await receive()
        await send(b'{"n":0,"protocol":1,"instance":"%s"}' % next(instances).encode())
        # A client that hangs up instead is fine.
        with suppress(EOFError, OSError):
            await receive()
            if not first:
                await send(b'{"n":1,"reply":{"content":[{"type":"text","text":"here"}],"is_error":false}}')
                await reader.read()
        writer.close()

    return await asyncio.start_unix_server(serve, path)


@contract
async def test_a_broken_connection_is_made_again_and_the_request_repeated(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    async with await breaking(path, iter(["same", "same"])):
        hello = await greet(path, SETTINGS)
        assert hello is not None
        connection = Connection(path, SETTINGS, hello, has_predecessor=False)
        assert text(await connection.call(command("sevt_x", "echo"))) == "here"
        await connection.close()


@contract
async def test_another_daemon_on_the_same_socket_is_not_the_same_sandbox(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    async with await breaking(path, iter(["one", "another"])):
        hello = await greet(path, SETTINGS)
        assert hello is not None
        connection = Connection(path, SETTINGS, hello, has_predecessor=False)
        with pytest.raises(SandboxLost):
            await connection.call(command("sevt_x", "echo"))
        await connection.close()


# ------------------------------------------------------------------------------------ where it isolates


@pytest.fixture
def isolated(machine: Machine, hands: Hands) -> Hands:
    """A sandbox that isolates."""
    if not machine.isolates:
        pytest.skip("this backend isolates nothing")
    return hands


@contract
async def test_inside_there_is_no_network(isolated: Hands) -> None:
    assert await isolated.bash("ls /sys 2>/dev/null; tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' '") == "lo"
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0)
    port = listener.extra(anyio.abc.SocketAttribute.local_port)
    refused = await isolated("bash", command=f"exec 3<>/dev/tcp/127.0.0.1/{port}")
    assert "Connection refused" in refusal(refused)
    assert "unreachable" in refusal(await isolated("bash", command="exec 3<>/dev/tcp/169.254.169.254/80"))
    await listener.aclose()


@contract
async def test_inside_there_are_no_files_of_the_host(isolated: Hands, tmp_path: Path, machine: Machine) -> None:
    (tmp_path / "host").write_text("host", encoding="utf-8")
    for path in (
        tmp_path / "host",
        machine.root,
        machine.directory(SESSION).socket,
        Path(__file__),
        Path("/etc/shadow"),
    ):
        assert refusal(await isolated("read", file_path=str(path))).endswith("no such file or directory"), path
    known = set("bin dev etc home lib lib32 lib64 libx32 mnt opt proc sbin tmp usr workspace".split())
    # An image brings its own; /sys is masked.
    known |= (
        {".dockerenv", "boot", "media", "root", "run", "srv", "sys", "var"} if machine.backend == "docker" else set()
    )
    assert set((await isolated.bash("ls -A /")).split()) <= known


@contract
async def test_inside_only_the_sessions_own_places_can_be_written(isolated: Hands) -> None:
    await isolated.bash("touch /workspace/x /tmp/x ~/x /mnt/session/outputs/x /dev/shm/x")
    for place in ("/", "/usr", "/etc", "/opt/corral", "/opt/corral/lib", "/mnt/session/uploads", "/dev", "/home"):
        answer = refusal(await isolated("bash", command=f"touch {place}/x"))
        assert "Read-only" in answer or "Permission denied" in answer, place


OPEN_FOR_WRITING = """
import os
opened = []
for top in ("/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus", "/sys"):
    paths = [os.path.join(d, n) for d, _, names in os.walk(top) for n in names] or [top]
    for path in paths:
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
            opened.append(path)
        except OSError:
            pass
print(len(opened), opened[:5])
"""


@contract
async def test_inside_no_kernel_switch_opens_for_writing(isolated: Hands) -> None:
    expect(await isolated("write", file_path="look.py", content=OPEN_FOR_WRITING))
    assert await isolated.bash("python3 look.py") == "0 []"
    assert await isolated.bash("cat /proc/kcore /proc/keys /proc/timer_list 2>/dev/null | wc -c") == "0"


@contract
async def test_inside_is_an_unprivileged_user_for_good(isolated: Hands, machine: Machine) -> None:
    status = dict(
        line.split(":\t", 1) for line in (await isolated.bash("cat /proc/self/status")).splitlines() if ":\t" in line
    )
    assert status["NoNewPrivs"] == "1"
    assert all(int(status[name], 16) == 0 for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"))
    inside = machine.directory(SESSION).owner() if machine.backend == "docker" else 1000
    assert await isolated.bash("id -u; id -un") == f"{inside}\nagent"
    record = machine.directory(SESSION).record()
    assert record is not None
    outside = await anyio.Path(f"/proc/{record.pid}/status").read_text(encoding="ascii")
    uids = next(line.split()[1:] for line in outside.splitlines() if line.startswith("Uid:"))
    assert set(uids) == {str(machine.directory(SESSION).owner())} and "0" not in uids
    assert refusal(await isolated("bash", command="unshare --user true"))
    assert refusal(await isolated("bash", command="mount -t tmpfs none /tmp"))


@contract
async def test_inside_only_its_own_processes_exist_and_the_daemon_cannot_be_killed(isolated: Hands) -> None:
    assert await isolated.bash("head -c 7 /proc/1/comm; kill -9 1; echo; echo still here") == "python3\nstill here"
    assert int(await isolated.bash("ls /proc | grep -c '^[0-9]'")) < 8


@contract
async def test_two_sandboxes_of_root_have_different_users(
    isolated: Hands, machine: Machine, server: LocalSandboxes, ids: Iterator[int]
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give each sandbox a user of its own")
    await server.open("sesn_2")
    first, second = (machine.directory(name).owner() for name in (SESSION, "sesn_2"))
    assert first != second and min(first, second) >= SETTINGS.uid_first
    machine.directory(SESSION).kill_instance()
    with pytest.raises(SandboxLost):
        await isolated.bash("true")
    await Hands(await server.open(SESSION), ids).bash("touch again")
    assert machine.directory(SESSION).owner() == first


@contract
async def test_too_many_processes_hurt_only_the_sandbox(machine: Machine, ids: Iterator[int]) -> None:
    if not machine.isolates:
        pytest.skip("this backend limits nothing")
    server = machine.server(msgspec.structs.replace(SETTINGS, processes_max=40))
    hands = Hands(await server.open(SESSION), ids)
    await hands("bash", command="for i in $(seq 100); do sleep 1000 & done", timeout_ms=1_000)
    await hands("bash", restart=True)
    assert await hands.bash("echo recovered") == "recovered"
    await server.close()


@contract
async def test_a_daemon_that_was_never_written_down_ends_with_its_server(
    hands: Hands, machine: Machine, server: LocalSandboxes
) -> None:
    assert await hands.bash("echo made") == "made"
    directory = machine.directory(SESSION)
    await anyio.to_thread.run_sync(directory.kill_instance)
    listener = listen(directory.socket, 1)
    launched = await anyio.to_thread.run_sync(server.launch, directory, listener.fileno(), SEALED)
    listener.close()
    if launched.process is None:
        server.kill(directory)
        pytest.skip("an engine starts the daemon, and finds it by its label")
    # The server dies here, before it has noted the process.
    launched.release(None)
    assert await anyio.to_thread.run_sync(launched.process.wait, 30) == 0
