"""One command of a build, run to its end: bounded in time, in bytes on disk, and in what is kept of its words.

Hostile code writes the output, so nothing of it is trusted: lines are cut, the log has a limit, and control
characters do not reach it. Blocking; called from a worker thread, which must be the one that starts the command: it may
be told to die when its parent thread does.
"""

from __future__ import annotations

import os
import re
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import IO, Protocol

from corral.errors import PackagesFailed

PIECE_BYTES = 65_536
TAIL_LINES = 40
LINE_CHARACTERS_MAX = 400
LOG_BYTES_MAX = 8 * 1024 * 1024
MEASURE_SECONDS = 3.0
GRACE_SECONDS = 10.0
UNPRINTABLE = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|[^\t\x20-\x7e\xa0-\uffff]")


class Command(Protocol):
    """One command that runs, enclosed. It has ended when its first process has."""

    output: int
    """A descriptor to read what it says."""
    ended: int
    """A descriptor that can be read when it has ended."""

    def end(self) -> None:
        """Kill it and all that it has started, without waiting. From any thread, until it is closed."""
        ...

    def close(self, seconds_max: float) -> int:
        """Wait so long for its end, after `end` or by itself, and let go of it; its exit code."""
        ...


class Bounds:
    """What all commands of one build share: a deadline, a place that may not outgrow a size, and a way to stop."""

    def __init__(self, place: Path, *, seconds_max: float, bytes_max: int) -> None:
        self.place, self.seconds_max, self.bytes_max = place, seconds_max, bytes_max
        self._deadline = time.monotonic() + seconds_max
        self._lock = threading.Lock()
        self._command: Command | None = None
        self._stopped = False

    def stop(self) -> None:
        """End what runs, and let nothing more run. From any thread; never waits."""
        with self._lock:
            self._stopped = True
            if self._command is not None:
                self._command.end()

    def begin(self, start: Callable[[], Command]) -> Command:
        """Start the next command. One that starts while `stop` is called ends at once."""
        if self._stopped:
            raise PackagesFailed("The server stopped while the environment's packages were being installed.")
        command = start()
        with self._lock:
            self._command = command
            if self._stopped:
                command.end()
        return command

    def finish(self, command: Command) -> int:
        """Let the command end, if it has not yet; its exit code."""
        with self._lock:
            self._command = None
        command.end()
        return command.close(GRACE_SECONDS)

    def exceeded(self) -> str | None:
        """Which bound is crossed, if one is."""
        if self._stopped:
            return "the server is stopping"
        if time.monotonic() > self._deadline:
            return f"it took longer than {self.seconds_max:g} seconds (`packages.build_seconds_max`)"
        if tree_bytes(self.place) > self.bytes_max:
            return f"it needs more than {self.bytes_max >> 20} MiB on disk (`packages.layer_bytes_max`)"
        return None


def run(start: Callable[[], Command], bounds: Bounds, log: IO[bytes]) -> str | None:
    """Run a command; None when it succeeded, else the last things that it said."""
    command = bounds.begin(start)
    tail: deque[str] = deque(maxlen=TAIL_LINES)
    try:
        broken = _follow(command, bounds.exceeded, log, tail)
    finally:
        code = bounds.finish(command)
    if broken is not None:
        return broken
    said = "\n".join(tail)
    return None if code == 0 else said or f"exit code {code}"


def _follow(command: Command, exceeded: Callable[[], str | None], log: IO[bytes], tail: deque[str]) -> str | None:
    """Read until the command has ended. Its own end counts, not that of what it may have left behind."""
    os.set_blocking(command.output, False)
    poll = select.poll()
    poll.register(command.output, select.POLLIN)
    poll.register(command.ended, select.POLLIN)
    rest, measured = b"", time.monotonic()
    while True:
        ready = dict(poll.poll(MEASURE_SECONDS * 1000))
        if time.monotonic() - measured > MEASURE_SECONDS or command.ended in ready:
            measured = time.monotonic()
            if broken := exceeded():
                return broken
        if command.output in ready and (piece := _read(command.output)) is not None:
            if not piece:
                poll.unregister(command.output)
            rest = _note(rest + piece, log, tail)
        elif command.ended in ready:
            _note(rest + b"\n", log, tail)
            # Killed beneath us is how `stop` looks from here.
            return exceeded()


def _read(descriptor: int) -> bytes | None:
    try:
        return os.read(descriptor, PIECE_BYTES)
    except BlockingIOError:
        return None


def _note(data: bytes, log: IO[bytes], tail: deque[str]) -> bytes:
    """Keep whole lines; the unfinished rest is the answer."""
    *lines, rest = data.split(b"\n")
    for line in lines:
        text = UNPRINTABLE.sub("", line.decode("utf-8", "replace"))[:LINE_CHARACTERS_MAX].rstrip()
        if text:
            tail.append(text)
            if log.tell() < LOG_BYTES_MAX:
                log.write(text.encode() + b"\n")
    return rest[-PIECE_BYTES:]


def tree_bytes(place: Path) -> int:
    """Bytes on disk below `place`, which may be changing; links are not followed."""
    total = 0
    waiting = [str(place)]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    total += entry.stat(follow_symlinks=False).st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
        except OSError:
            # Gone or closed meanwhile; what is left of it is counted the next time.
            continue
    return total
