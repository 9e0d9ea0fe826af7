"""The system calls that a sandbox may make, as a program for the kernel's filter.

An allow-list: what is known and not refused below passes, everything else does not, so a call that a later kernel adds
is refused until somebody has looked at it. Refused are calls that reach beyond the sandbox (mounts, namespaces,
modules, clocks, keys), into other processes (ptrace and its kin), or into kernel code with a record of escapes and no
use to an agent (io_uring, bpf, userfaultfd, perf). bubblewrap sets the program last, for everything inside.

No library that is on every machine compiles these filters, and this one is a list and three rules, so it is compiled
here. It is a wall behind walls: namespaces, capabilities and the uid hold without it.

Source: linux/seccomp.h, linux/filter.h, and the attacks in `tests/escape`.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import struct
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from importlib.resources import files
from typing import NamedTuple

REFUSED = frozenset(
    # mounts and roots
    "mount umount2 pivot_root chroot move_mount open_tree fsopen fsconfig fsmount fspick mount_setattr quotactl "
    "quotactl_fd swapon swapoff nfsservctl "
    # namespaces, names and handles of files outside
    "unshare setns name_to_handle_at open_by_handle_at sethostname setdomainname "
    # other processes
    "ptrace process_vm_readv process_vm_writev process_madvise process_mrelease kcmp pidfd_getfd migrate_pages "
    "move_pages "
    # the kernel itself
    "init_module finit_module delete_module create_module query_module get_kernel_syms kexec_load kexec_file_load "
    "reboot "
    "acct syslog iopl ioperm modify_ldt uselib _sysctl sysfs ustat vhangup lookup_dcookie vserver afs_syscall tuxcall "
    "getpmsg putpmsg security "
    # clocks
    "settimeofday clock_settime clock_adjtime adjtimex "
    # keys, programs in the kernel, event sources
    "add_key request_key keyctl bpf perf_event_open userfaultfd fanotify_init fanotify_mark memfd_secret".split()
)
MISSING = frozenset("clone3 io_uring_setup io_uring_enter io_uring_register".split())
"""Answered as if the kernel did not have them: programs then take the older way, whose arguments can be looked at."""

NAMESPACE_FLAGS = 0x7E020000
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET."""
SOCKET_FAMILIES = (1, 2, 10)
"""AF_UNIX, AF_INET and AF_INET6; there is no network, but programs that ask for one should hear so from the network."""
TERMINAL_REQUESTS = (0x5412, 0x541C)
"""TIOCSTI types into a terminal that others read; TIOCLINUX does so on a console."""
PERSONALITIES = (0x0, 0xFFFFFFFF)
DAEMON = 1
"""The first process, whose limits others of its user could lower until it ends, and all with it."""

X32_BIT = 0x40000000
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

LOAD_WORD, JUMP_EQUAL, JUMP_GREATER, JUMP_AT_LEAST, JUMP_ANY_BIT, RETURN = 0x20, 0x15, 0x25, 0x35, 0x45, 0x06
ALLOW, FAIL = 0x7FFF0000, 0x00050000
NUMBER, ARCHITECTURE = 0, 4


class Instruction(NamedTuple):
    """One `struct sock_filter`."""

    code: int
    value: int
    if_true: int = 0
    if_false: int = 0


def knows(machine: str) -> bool:
    """Whether there is a filter for this architecture."""
    return machine in ARCHITECTURES


def open_program() -> int:
    """A descriptor that bubblewrap reads the filter for this machine from. The caller closes it."""
    descriptor = os.memfd_create("seccomp")
    os.write(descriptor, program(platform.machine()))
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


@cache
def program(machine: str) -> bytes:
    """The filter for an architecture, as bubblewrap and the kernel read it."""
    return b"".join(
        struct.pack("=HBBI", each.code, each.if_true, each.if_false, each.value)
        for each in _instructions(ARCHITECTURES[machine], numbers(machine))
    )


def numbers(machine: str) -> dict[str, int]:
    """What the system calls of an architecture are called and numbered."""
    return json.loads(files("corral.sandboxes").joinpath("system_calls.json").read_text(encoding="ascii"))[machine]


def _instructions(architecture: int, numbers: dict[str, int]) -> Iterator[Instruction]:
    yield Instruction(LOAD_WORD, ARCHITECTURE)
    yield Instruction(JUMP_EQUAL, architecture, if_true=1)
    yield _fail(errno.ENOSYS)
    yield Instruction(LOAD_WORD, NUMBER)
    yield Instruction(JUMP_AT_LEAST, X32_BIT, if_false=1)
    yield _fail(errno.ENOSYS)
    yield from _when(numbers["clone"], 0, Instruction(JUMP_ANY_BIT, NAMESPACE_FLAGS, if_false=1), errno.EPERM)
    yield from _only(numbers["socket"], 0, SOCKET_FAMILIES, errno.EAFNOSUPPORT)
    yield from _only(numbers["socketpair"], 0, SOCKET_FAMILIES[:1], errno.EAFNOSUPPORT)
    yield from _only(numbers["personality"], 0, PERSONALITIES, errno.EPERM)
    yield from _when(numbers["prlimit64"], 0, Instruction(JUMP_EQUAL, DAEMON, if_false=1), errno.EPERM, falls_on=True)
    for request in TERMINAL_REQUESTS:
        yield from _when(numbers["ioctl"], 1, Instruction(JUMP_EQUAL, request, if_false=1), errno.EPERM, falls_on=True)
    for first, last in _ranges(number for name, number in numbers.items() if name not in REFUSED | MISSING):
        yield from _between(first, last, Instruction(RETURN, ALLOW))
    for first, last in _ranges(number for name, number in numbers.items() if name in REFUSED):
        yield from _between(first, last, _fail(errno.EPERM))
    yield _fail(errno.ENOSYS)


def _when(
    number: int, argument: int, test: Instruction, error: int, *, falls_on: bool = False
) -> Sequence[Instruction]:
    """Fail a call whose argument passes `test`; let it pass otherwise, or go on to the next rule (`falls_on`)."""
    body = [Instruction(LOAD_WORD, _argument(argument)), test, _fail(error)]
    body.append(Instruction(LOAD_WORD, NUMBER) if falls_on else Instruction(RETURN, ALLOW))
    return [Instruction(JUMP_EQUAL, number, if_false=len(body)), *body]


def _only(number: int, argument: int, values: Sequence[int], error: int) -> Sequence[Instruction]:
    """Let a call pass with one of these values as its argument, and with no other."""
    count = len(values)
    tests = [Instruction(JUMP_EQUAL, value, if_true=count - index) for index, value in enumerate(values)]
    body = [Instruction(LOAD_WORD, _argument(argument)), *tests, _fail(error), Instruction(RETURN, ALLOW)]
    return [Instruction(JUMP_EQUAL, number, if_false=len(body)), *body]


def _between(first: int, last: int, answer: Instruction) -> Sequence[Instruction]:
    return (Instruction(JUMP_AT_LEAST, first, if_false=2), Instruction(JUMP_GREATER, last, if_true=1), answer)


def _ranges(numbers: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Numbers as runs without gaps."""
    ordered = sorted(numbers)
    start = previous = ordered[0]
    for number in ordered[1:]:
        if number != previous + 1:
            yield start, previous
            start = number
        previous = number
    yield start, previous


def _fail(error: int) -> Instruction:
    return Instruction(RETURN, FAIL | error)


def _argument(index: int) -> int:
    """Where the low half of an argument is; both architectures are little-endian."""
    return 16 + 8 * index
