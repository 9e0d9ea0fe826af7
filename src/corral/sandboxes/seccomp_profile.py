"""The filter of `seccomp.py` in the form that container engines take: names and conditions, compiled by libseccomp.

The same lists, so both backends allow the same. Two things are coarser: what nobody knows is answered with EPERM
where an engine older than Docker 23 ignores `defaultErrnoRet`, and so is a socket of a refused family. libseccomp
compares all 64 bits of an argument and the kernel looks at the low half only, so conditions have masks.

Source: the runtime specification's `seccomp` object, as Docker reads it.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from typing import TypeAlias

from corral.sandboxes.seccomp import (
    DAEMON,
    MISSING,
    NAMESPACE_FLAGS,
    PERSONALITIES,
    REFUSED,
    SOCKET_FAMILIES,
    TERMINAL_REQUESTS,
    numbers,
)

Rule: TypeAlias = "dict[str, object]"

ARCHITECTURES = {"x86_64": "SCMP_ARCH_X86_64", "aarch64": "SCMP_ARCH_AARCH64"}
LOW_HALF = 0xFFFFFFFF
BITS = 32


def profile(machine: str) -> dict[str, object]:
    """The profile for an architecture that `seccomp.knows`."""
    conditional = {"clone", "socket", "socketpair", "personality", "prlimit64", "ioctl"}
    known = set(numbers(machine)) - REFUSED - MISSING - conditional
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": errno.ENOSYS,
        "architectures": [ARCHITECTURES[machine]],
        "syscalls": [
            _allow(sorted(known)),
            {"names": sorted(MISSING), "action": "SCMP_ACT_ERRNO", "errnoRet": errno.ENOSYS},
            {"names": sorted(REFUSED & set(numbers(machine))), "action": "SCMP_ACT_ERRNO", "errnoRet": errno.EPERM},
            _when("clone", 0, NAMESPACE_FLAGS, 0),
            *(_when("socket", 0, LOW_HALF, family) for family in SOCKET_FAMILIES),
            _when("socketpair", 0, LOW_HALF, SOCKET_FAMILIES[0]),
            *(_when("personality", 0, LOW_HALF, value) for value in PERSONALITIES),
            *(_when("prlimit64", 0, mask, value) for mask, value in all_but((DAEMON,))),
            *(_when("ioctl", 1, mask, value) for mask, value in all_but(TERMINAL_REQUESTS)),
        ],
    }


def _allow(names: Sequence[str]) -> Rule:
    return {"names": list(names), "action": "SCMP_ACT_ALLOW"}


def _when(name: str, argument: int, mask: int, value: int) -> Rule:
    """Let a call pass whose argument is `value` where `mask` has ones."""
    condition = {"index": argument, "value": mask, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ"}
    return {**_allow([name]), "args": [condition]}


def all_but(values: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Masks and values that cover every number but these: conditions can say `equal`, and not `none of`.

    A number other than all of them leaves them at some first bit, counted from the top.
    """
    for bit in reversed(range(BITS)):
        mask = LOW_HALF & ~((1 << bit) - 1)
        taken = {value & mask for value in values}
        beside = {prefix ^ (1 << bit) for prefix in taken} - taken
        yield from ((mask, prefix) for prefix in sorted(beside))
