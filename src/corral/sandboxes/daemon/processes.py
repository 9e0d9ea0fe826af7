"""Starts, reaps and kills processes inside the sandbox.

As process 1 of its namespace the daemon inherits every orphan and must reap those too, so all reaping is done here,
by one thread, and nothing uses `subprocess`. What the processes are for is in `shell.py` and `files.py`.
"""

from __future__ import annotations

import os
import signal
import threading
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

OOM_SCORE = 800
"""Of 1,000: how much sooner than others."""
REAP_LOOKS_MAX, REAP_SECONDS = 100, 0.01
IGNORED_HERE = (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT)
"""Python ignores the first two; `server.py` the third, which a process inside could otherwise end us with."""


class Child:
    """A process of ours and, through `exited` becoming readable, the news that it ended."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.status: int | None = None
        self.exited, self._notify = os.pipe()

    def end(self, status: int) -> None:
        """Called once, by the reaper."""
        self.status = status
        os.close(self._notify)

    def close(self) -> None:
        """Stop waiting for the news."""
        os.close(self.exited)


class Processes:
    """The children of this process."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._environment = environment
        self._children: dict[int, Child] = {}
        self._lock = threading.Lock()
        self._started = threading.Semaphore(0)
        self._paused = False
        threading.Thread(target=self._reap, daemon=True).start()

    def start(self, argv: list[str], descriptors: dict[int, int]) -> Child:
        """Spawn `argv` in a process group of its own with `descriptors` as {number inside: ours}."""
        actions: list[Any] = [(os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0)]
        actions += [(os.POSIX_SPAWN_OPEN, number, "/dev/null", os.O_WRONLY, 0) for number in (1, 2)]
        actions += [(os.POSIX_SPAWN_DUP2, ours, theirs) for theirs, ours in descriptors.items()]
        for _ in range(REAP_LOOKS_MAX):
            try:
                return self._spawn(argv, actions)
            except BlockingIOError:
                # No process is left to us; what was killed a moment ago still counts.
                time.sleep(REAP_SECONDS)
        return self._spawn(argv, actions)

    def _spawn(self, argv: list[str], actions: list[Any]) -> Child:
        with self._lock:
            # The lock keeps the reaper from meeting a child that is not in the table yet.
            pid = os.posix_spawn(
                argv[0], argv, self._environment, file_actions=actions, setpgroup=0, setsigdef=IGNORED_HERE
            )
            child = self._children[pid] = Child(pid)
        _offer_first(pid)
        self._started.release()
        return child

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, 0)
            except ChildProcessError:
                # An orphan can only come from a child, so there is nothing to wait for until one is started.
                self._started.acquire()
                continue
            with self._lock:
                child = self._children.pop(pid, None)
            if child is not None:
                child.end(os.waitstatus_to_exitcode(status))

    def pause(self) -> None:
        """Stop whatever runs, until `resume`; it keeps its memory and costs no time."""
        self._paused = True
        _signal_all(signal.SIGSTOP)

    def resume(self) -> None:
        """Let everything go on. Cheap when nothing is paused."""
        if self._paused:
            self._paused = False
            _signal_all(signal.SIGCONT)

    def kill(self, child: Child) -> None:
        """Kill the child's process group and whatever else descends from it."""
        others = _descendants_elsewhere(child.pid)
        # The group first: a shell that saw its command die before itself would go on to the next one.
        _kill(os.killpg, child.pid)
        for pid in others:
            _kill(os.kill, pid)

    def purge(self) -> None:
        """Kill all in the sandbox but this process, whatever it descends from, and wait a moment for it to be gone."""
        if os.getpid() == 1:
            _kill(os.kill, -1)
            for _ in range(REAP_LOOKS_MAX):
                if sum(map(str.isdigit, os.listdir("/proc"))) <= 1:
                    break
                time.sleep(REAP_SECONDS)
        else:
            # Not in a namespace of our own, so that would be everything that our user runs.
            self.kill_all()

    def kill_all(self) -> None:
        """Kill every child as `kill` does."""
        with self._lock:
            children = list(self._children.values())
        for child in children:
            self.kill(child)


def _offer_first(pid: int) -> None:
    """When memory runs out, let the kernel end this process and what it starts, rather than us."""
    try:
        with open(f"/proc/{pid}/oom_score_adj", "wb", buffering=0) as file:
            file.write(b"%d" % OOM_SCORE)
    except OSError:
        # Gone already.
        return


def _signal_all(number: signal.Signals) -> None:
    """Signal everything but ourselves: the namespace if it is ours, else our descendants."""
    own = os.getpid()
    try:
        if own == 1:
            os.kill(-1, number)
            return
    except ProcessLookupError:
        return
    for pid in _descendants_elsewhere(own):
        try:
            os.kill(pid, number)
        except (ProcessLookupError, PermissionError):
            pass


def _kill(how: Callable[[int, int], None], pid: int) -> None:
    try:
        how(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass


def _descendants_elsewhere(root: int) -> list[int]:
    """Those that are not in the process group of `root`."""
    children: dict[int, list[int]] = {}
    groups: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    parent, group = map(int, file.read().rpartition(b")")[2].split()[1:3])
            except (OSError, ValueError):
                continue
            children.setdefault(parent, []).append(int(name))
            groups[int(name)] = group
    found = list(children.get(root, ()))
    for pid in found:
        found.extend(children.get(pid, ()))
    return [pid for pid in found if groups[pid] != root]
