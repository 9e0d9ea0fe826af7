"""bash: one persistent shell, and extra ones while it is busy.

A command that arrives while another runs gets a shell of its own, which starts in the persistent one's directory
and with its exported variables as of its last finished command; what it changes there is not kept.

Output travels on one pipe and the news that a command ended on another, so no output can imitate that news, and a
background process that keeps the output open delays nothing.
"""

from __future__ import annotations

import os
import re
import select
import threading
import time
from collections import deque

from corral.sandboxes.daemon.calls import Call, Failure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from corral.sandboxes.daemon.processes import Processes

    Ending = tuple[int | None, str, str]
    """Exit code, or None when the command did not end by itself; directory; exported variables."""

OUTPUT, CONTROL = 198, 199
"""Numbers of the shell's descriptors, out of the way of `exec 3>file`."""
NEWS_BYTES_MAX = 1 << 20
PIPE_BYTES_MAX = 1 << 20
PIECE_BYTES = 65_536
ANSI = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?")


class Tail:
    """The last `limit` bytes that came out of a pipe, read by a thread of its own so that no writer ever blocks."""

    def __init__(self, source: int, limit: int) -> None:
        self._source, self._limit = source, limit
        self._pieces: deque[bytes] = deque()
        self._size, self._truncated, self._ended = 0, False, False
        self._lock = threading.Lock()
        os.set_blocking(source, False)
        threading.Thread(target=self._pump, daemon=True).start()

    def _pump(self) -> None:
        poll = select.poll()
        poll.register(self._source, select.POLLIN)
        while not self._ended:
            poll.poll()
            with self._lock:
                self._read()
        os.close(self._source)

    def _read(self) -> int:
        try:
            piece = b"" if self._ended else os.read(self._source, PIECE_BYTES)
        except BlockingIOError:
            return 0
        self._ended = not piece
        self._pieces.append(piece)
        self._size += len(piece)
        while self._size - len(self._pieces[0]) >= self._limit and len(self._pieces) > 1:
            self._size -= len(self._pieces.popleft())
            self._truncated = True
        return len(piece)

    def take(self) -> str:
        """What has come since the last time, the pipe's present content included."""
        with self._lock:
            # A background writer that keeps refilling the pipe must not keep us here.
            left = PIPE_BYTES_MAX
            while left > 0 and (count := self._read()):
                left -= count
            data = b"".join(self._pieces)
            truncated = self._truncated or len(data) > self._limit
            self._pieces.clear()
            self._size, self._truncated = 0, False
        text = ANSI.sub("", data[-self._limit :].decode("utf-8", "replace")).rstrip("\n")
        return f"[output truncated: these are its last {self._limit} bytes]\n{text}" if truncated else text


class Shell:
    """One bash process."""

    def __init__(self, processes: Processes, output_bytes_max: int) -> None:
        commands, self._commands = os.pipe()
        output, output_inside = os.pipe()
        self._control, control_inside = os.pipe()
        inside = {0: commands, OUTPUT: output_inside, CONTROL: control_inside}
        try:
            self.child = processes.start(["/bin/bash", "--noprofile", "--norc"], inside)
        except OSError:
            for descriptor in (self._commands, output, self._control):
                os.close(descriptor)
            raise
        finally:
            for descriptor in inside.values():
                os.close(descriptor)
        self.output = Tail(output, output_bytes_max)

    def run(self, command: str, seconds: float) -> Ending:
        """Run one command to its end or its time limit.

        `eval` needs no terminator of ours after the command, so broken syntax is just a command that failed. The
        lines after it must not begin with a keyword: bash 5.2 misreads one that follows a syntax error in eval.
        """
        nonce = os.urandom(16).hex()
        script = f"eval {_quote(command)} </dev/null >&{OUTPUT} 2>&1 {OUTPUT}>&- {CONTROL}>&-\n"
        script += f'builtin printf \'%d\\0%s\\0\' "$?" "${{PWD-}}" >&{CONTROL}\n'
        script += f"declare -px >&{CONTROL}\nbuiltin printf '\\0%s' {nonce} >&{CONTROL}\n"
        try:
            _write_all(self._commands, script.encode("utf-8", "replace"))
        except BrokenPipeError:
            return -1, "", ""
        return self._await_news(b"\0" + nonce.encode(), time.monotonic() + seconds)

    def _await_news(self, last: bytes, deadline: float) -> Ending:
        poll, news = select.poll(), bytearray()
        poll.register(self._control, select.POLLIN)
        poll.register(self.child.exited, select.POLLIN)
        while True:
            ready = dict(poll.poll(max(0.0, (deadline - time.monotonic()) * 1000)))
            if ready.get(self._control, 0) & select.POLLIN:
                news += os.read(self._control, PIECE_BYTES)
                if news.endswith(last):
                    return _parse(news)
                if len(news) > NEWS_BYTES_MAX:
                    # Exported variables too large to carry over; the exit code is what matters.
                    news[:] = news.split(b"\0")[0] + b"\0\0\0" + news[-len(last) :]
            elif self._control in ready:
                # The command closed the shell's own descriptor, so only its exit can be noticed now.
                poll.unregister(self._control)
            elif ready:
                return self.child.status, "", ""
            elif time.monotonic() >= deadline:
                return None, "", ""

    def close(self) -> None:
        """Let the shell end by itself; its background processes go on."""
        os.close(self._commands)
        os.close(self._control)
        self.child.close()


class Bash:
    """The tool."""

    def __init__(self, processes: Processes, limits: Any) -> None:
        self._processes, self._limits = processes, limits
        self._main: Shell | None = None
        self._busy = False
        self._directory, self._exports = "", ""
        self._lock = threading.Lock()

    def run(self, call: Call) -> str:
        """Run the call's command in the persistent shell if that is free, else in an extra one."""
        arguments, seconds = call.arguments, self._limits.command_seconds
        if arguments.get("restart"):
            self._restart()
            return "bash was restarted"
        if arguments.get("timeout_ms"):
            seconds = min(arguments["timeout_ms"] / 1000, self._limits.command_seconds_max)
        shell, extra = self._enter()
        ending: Ending = None, "", ""
        try:
            call.on_cancel(lambda: self._processes.kill(shell.child))
            ending = shell.run(arguments["command"].replace("\0", ""), seconds)
        finally:
            call.on_cancel(None)
            ended = self._leave(shell, ending, extra=extra, broken=ending[0] is None or call.cancelled)
        return self._report(call, ending[0], shell.output.take(), fresh=ended and not extra, seconds=seconds)

    def _enter(self) -> tuple[Shell, bool]:
        with self._lock:
            if not self._busy:
                shell = self._main_shell()
                self._busy = True
                return shell, False
            before = f"{self._exports}\ncd -- {_quote(self._directory)}" if self._directory else ""
        shell = Shell(self._processes, self._limits.output_bytes_max)
        if before:
            shell.run(before, self._limits.command_seconds)
            shell.output.take()
        return shell, True

    def _main_shell(self) -> Shell:
        if self._main is not None and self._main.child.status is not None:
            self._main.close()
            self._main = None
        if self._main is None:
            self._main = Shell(self._processes, self._limits.output_bytes_max)
            self._directory, self._exports = "", ""
        return self._main

    def _leave(self, shell: Shell, ending: Ending, *, extra: bool, broken: bool) -> bool:
        if broken:
            self._processes.kill(shell.child)
        with self._lock:
            ended = broken or shell.child.status is not None
            if extra or ended or self._main is not shell:
                shell.close()
                self._main = None if self._main is shell else self._main
            elif ending[1]:
                self._directory, self._exports = ending[1], ending[2]
            self._busy = self._busy and extra
        return ended

    def _report(self, call: Call, code: int | None, output: str, *, fresh: bool, seconds: float) -> str:
        if call.cancelled:
            raise Failure(_join(output, "bash: cancelled; the command and its shell were killed"))
        if code is None:
            raise Failure(_join(output, f"bash: timed out after {seconds:g}s; the command and its shell were killed"))
        if fresh:
            output = _join(output, "[the shell exited; the next command starts a fresh one]")
        if code:
            raise Failure(output or f"(no output; exit code {code})")
        return output or "(no output)"

    def _restart(self) -> None:
        with self._lock:
            shell, busy, self._main = self._main, self._busy, None
            self._directory, self._exports = "", ""
        # Also what has left the shell and would outlive it: this is how one gets rid of a fork bomb.
        self._processes.purge()
        if shell is not None:
            self._processes.kill(shell.child)
            if not busy:
                # Otherwise the call that uses it notices, closes it and reports.
                shell.close()


def _parse(news: bytearray) -> Ending:
    fields = news.decode("utf-8", "replace").split("\0")
    return int(fields[0]), fields[1], fields[2]


def _quote(text: str) -> str:
    return "'" + text.replace("'", "'\"'\"'") + "'"


def _join(*parts: str) -> str:
    return "\n".join(part for part in parts if part)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
