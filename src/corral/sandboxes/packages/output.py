"""One command of a build, run to its end: bounded in time, in bytes on disk, and in what is kept of its words.

Hostile code writes the output, so nothing of it is trusted: lines are cut, the log has a limit, and control
characters do not reach it. Blocking; called from a worker thread, which must be the one that starts the process: it is
told to die when its parent thread does.
"""

from __future__ import annotations

import os
import re
import select
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import IO

from corral.errors import PackagesFailed
from corral.sandboxes.child import end

PIECE_BYTES = 65_536
TAIL_LINES = 40
LINE_CHARACTERS_MAX = 400
LOG_BYTES_MAX = 8 * 1024 * 1024
MEASURE_SECONDS = 3.0
GRACE_SECONDS = 10.0
UNPRINTABLE = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|[^\t\x20-\x7e\xa0-\uffff]")


class Bounds:
    """What all commands of one build share: a deadline, a place that may not outgrow a size, and a way to stop."""

    def __init__(self, place: Path, *, seconds_max: float, bytes_max: int) -> None:
        self.place, self.seconds_max, self.bytes_max = place, seconds_max, bytes_max
        self._deadline = time.monotonic() + seconds_max
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False

    def stop(self) -> None:
        """End what runs, and let nothing more start. From any thread."""
        with self._lock:
            self._stopped = True
            if self._process is not None:
                end(self._process)

    def begin(self, start: Callable[[], subprocess.Popen[bytes]]) -> subprocess.Popen[bytes]:
        """Start the next command."""
        with self._lock:
            if self._stopped:
                raise PackagesFailed("The server stopped while the environment's packages were being installed.")
            self._process = start()
            return self._process

    def exceeded(self) -> str | None:
        """Which bound is crossed, if one is."""
        if self._stopped:
            return "the server is stopping"
        if time.monotonic() > self._deadline:
            return f"it took longer than {self.seconds_max:g} seconds (`packages.build_seconds_max`)"
        if tree_bytes(self.place) > self.bytes_max:
            return f"it needs more than {self.bytes_max >> 20} MiB on disk (`packages.layer_bytes_max`)"
        return None


def run(start: Callable[[], subprocess.Popen[bytes]], bounds: Bounds, log: IO[bytes]) -> str | None:
    """Run a command whose output is a pipe; None when it succeeded, else the last things that it said."""
    process = bounds.begin(start)
    assert process.stdout is not None, "the output must be a pipe"
    tail: deque[str] = deque(maxlen=TAIL_LINES)
    try:
        broken = _follow(process, bounds, log, tail)
    finally:
        end(process)
        process.stdout.close()
        code = process.wait(GRACE_SECONDS)
    if broken is not None:
        return broken
    said = "\n".join(tail)
    return None if code == 0 else said or f"exit code {code}"


def _follow(process: subprocess.Popen[bytes], bounds: Bounds, log: IO[bytes], tail: deque[str]) -> str | None:
    """Read until the command has ended. Its own end counts, not that of what it may have left behind."""
    assert process.stdout is not None
    descriptor = process.stdout.fileno()
    os.set_blocking(descriptor, False)
    ended = os.pidfd_open(process.pid)
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    poll.register(ended, select.POLLIN)
    rest, measured = b"", time.monotonic()
    try:
        while True:
            ready = dict(poll.poll(MEASURE_SECONDS * 1000))
            if time.monotonic() - measured > MEASURE_SECONDS or ended in ready:
                measured = time.monotonic()
                if broken := bounds.exceeded():
                    return broken
            if descriptor in ready and (piece := _read(descriptor)) is not None:
                if not piece:
                    poll.unregister(descriptor)
                rest = _note(rest + piece, log, tail)
            elif ended in ready:
                _note(rest + b"\n", log, tail)
                # Killed beneath us is how `stop` looks from here.
                return bounds.exceeded()
    finally:
        os.close(ended)


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
