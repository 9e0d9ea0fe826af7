"""The proxy process: one for each server, not for each sandbox.

It is started by `outlet.py` with nothing but a socket to the server, becomes a user of its own when it was started by
root, and ends when the server does. Listening sockets come from the server, which keeps them too: when this process is
killed, connections wait in them until the next one is there.
"""

from __future__ import annotations

import array
import asyncio
import ctypes
import os
import resource
import socket
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Literal

import anyio
from anyio.abc import TaskGroup, UNIXSocketStream

from corral.domain.egress import EgressPolicy
from corral.sandboxes.egress import orders
from corral.sandboxes.egress.authority import Authority, Pair
from corral.sandboxes.egress.exchange import Exchange, Rules
from corral.sandboxes.egress.line import Limits
from corral.sandboxes.egress.rehearsal import rehearse
from corral.sandboxes.egress.rewriting import Rewriting
from corral.sandboxes.egress.secrets import Secrets
from corral.sandboxes.egress.upstream import Outside

REPORT_SECONDS = 0.1
OUTCOMES_MAX = 256
"""Kept apart in one report; what is beyond is counted without its host."""
REPORTED_TOGETHER = 32
NO_NEW_PRIVILEGES = 38
SET_DUMPABLE = 4


class Guest:
    """One sandbox, while it is served."""

    def __init__(self, policy: EgressPolicy, listener: socket.socket, secrets: Secrets, resolutions_max: int) -> None:
        self.policy, self.listener, self.secrets = policy, listener, secrets
        self.resolving = anyio.CapacityLimiter(resolutions_max)
        self.connections = 0
        self.scope = anyio.CancelScope()


class Reports:
    """Counts what happens, and tells the server now and then."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._counts: Counter[orders.Outcome] = Counter()
        self._planned: asyncio.TimerHandle | None = None

    def note(self, key: str, kind: Literal["refused", "failed", "connected"], reason: str, host: str) -> None:
        """One more of these."""
        outcome = orders.Outcome(key, kind, reason, host)
        if outcome not in self._counts and len(self._counts) >= OUTCOMES_MAX:
            outcome = orders.Outcome("", kind, reason, "")
        self._counts[outcome] += 1
        if self._planned is None:
            self._planned = asyncio.get_running_loop().call_later(REPORT_SECONDS, self._tell)

    def _tell(self) -> None:
        self._planned = None
        while self._counts:
            chosen = list(self._counts.items())[:REPORTED_TOGETHER]
            counted = tuple(orders.Counted(outcome, times) for outcome, times in chosen)
            try:
                self._control.send(orders.encode(orders.Counts(counted)), socket.MSG_DONTWAIT)
            except BlockingIOError:
                self._planned = asyncio.get_running_loop().call_later(REPORT_SECONDS, self._tell)
                return
            except OSError:
                return
            for outcome, _ in chosen:
                del self._counts[outcome]


class Proxy:
    """All guests."""

    def __init__(self, control: socket.socket, settings: orders.Configure) -> None:
        self._control, self._settings = control, settings
        self._authority = Authority(Pair(settings.certificate, settings.private_key), Path(settings.scratch))
        self._outside = Outside(
            settings.ground,
            settings.names,
            trusted=settings.trusted,
            proxy=settings.upstream_proxy,
            direct=settings.upstream_proxy_not_for,
            seconds_max=settings.connect_seconds_max,
        )
        self._rewriting = Rewriting(settings.credentials)
        self._limits = Limits(settings.header_bytes_max, settings.idle_seconds_max)
        self._guests: dict[str, Guest] = {}
        self._secrets: dict[str, Secrets] = {}
        self._connections = 0
        self._reports = Reports(control)

    async def run(self) -> None:
        """Take orders until the server is gone."""
        await rehearse(self._authority)
        if self._settings.uid is not None:
            _become(self._settings.uid)
        ctypes.CDLL(None).prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0)
        # Secrets will be in this memory: nobody but root looks into it, and no core of it is written.
        ctypes.CDLL(None).prctl(SET_DUMPABLE, 0, 0, 0, 0)
        try:
            self._control.send(orders.encode(orders.Ready()))
        except BrokenPipeError:
            return
        async with anyio.create_task_group() as tasks:
            while True:
                await anyio.wait_readable(self._control)
                data, descriptors = receive(self._control)
                if not data:
                    break
                self._obey(orders.decode_order(data), descriptors, tasks)
            tasks.cancel_scope.cancel()

    def _obey(self, order: orders.Order, descriptors: list[int], tasks: TaskGroup) -> None:
        match order:
            case orders.Serve(key=key, policy=policy):
                self._drop(key)
                listener = socket.socket(fileno=descriptors[0])
                listener.setblocking(False)
                secrets = self._secrets.setdefault(key, Secrets())
                guest = self._guests[key] = Guest(policy, listener, secrets, self._settings.resolutions_max)
                tasks.start_soon(self._welcome, key, guest)
            case orders.Drop(key=key):
                self._drop(key)
                self._secrets.pop(key, None)
            case orders.Entrust(key=key, substitution=substitution):
                self._secrets.setdefault(key, Secrets()).take(substitution)
            case orders.Forget(key=key, placeholder=placeholder):
                self._secrets.setdefault(key, Secrets()).forget(placeholder)
            case orders.Configure():
                pass

    def _drop(self, key: str) -> None:
        guest = self._guests.pop(key, None)
        if guest is not None:
            guest.scope.cancel()

    async def _welcome(self, key: str, guest: Guest) -> None:
        rules = Rules(
            guest.policy,
            self._authority,
            self._outside,
            self._rewriting,
            guest.secrets,
            self._limits,
            guest.resolving,
            partial(self._reports.note, key),
        )
        try:
            with guest.scope:
                async with anyio.create_task_group() as tasks:
                    while True:
                        await anyio.wait_readable(guest.listener)
                        self._accept(key, guest, rules, tasks)
        finally:
            guest.listener.close()

    def _accept(self, key: str, guest: Guest, rules: Rules, tasks: TaskGroup) -> None:
        try:
            connection = guest.listener.accept()[0]
        except OSError:
            # Gone again, or more than this process may open; the next is tried when there is one.
            return
        limits = self._settings
        if guest.connections >= limits.connections_max or self._connections >= limits.connections_total_max:
            self._reports.note(key, "refused", "too_many_connections", "")
            connection.close()
            return
        connection.setblocking(False)
        tasks.start_soon(self._attend, guest, rules, connection)

    async def _attend(self, guest: Guest, rules: Rules, connection: socket.socket) -> None:
        guest.connections += 1
        self._connections += 1
        try:
            await Exchange(rules).attend(await UNIXSocketStream.from_socket(connection))
        finally:
            guest.connections -= 1
            self._connections -= 1


def receive(control: socket.socket) -> tuple[bytes, list[int]]:
    """One message and the descriptors that came with it; no bytes when the other side is gone."""
    room = socket.CMSG_SPACE(array.array("i").itemsize)
    try:
        data, extras, *_ = control.recvmsg(orders.MESSAGE_BYTES_MAX, room, socket.MSG_CMSG_CLOEXEC)
    except ConnectionResetError:
        return b"", []
    found = array.array("i")
    for _, _, content in extras:
        found.frombytes(content)
    return data, list(found)


def _become(uid: int) -> None:
    """Give up root for good."""
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def main() -> None:
    """Run until the server is gone."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    data, _ = receive(control)
    if not data:
        return
    settings = orders.decode_order(data)
    assert isinstance(settings, orders.Configure), "the first order"
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    anyio.run(Proxy(control, settings).run)


if __name__ == "__main__":
    main()
