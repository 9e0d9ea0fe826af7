"""Frames and connections: hears the server outside, and ends the daemon when nobody has been there for too long.

Started by `local.py` with its settings as one JSON argument. One thread does all reading; every call has its own.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import socket
import struct
import sys
import threading
import time

from corral.sandboxes.daemon.calls import Calls
from corral.sandboxes.daemon.files import Files, Names
from corral.sandboxes.daemon.processes import Processes
from corral.sandboxes.daemon.shell import Bash

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

PROTOCOL = 1
PIECE_BYTES = 65_536
SEND_SECONDS_MAX = 30
STACK_BYTES = 512 * 1024
SET_DUMPABLE = 4
FORWARD_BACKLOG = 64


class Limits:
    """The settings: those of `SandboxSettings` that concern the daemon, and what `local.py` adds."""

    listener: int
    held: bool
    root: str
    names: dict[str, str]
    environment: dict[str, str]
    resources: dict[str, int]
    command_seconds: float
    command_seconds_max: float
    output_bytes_max: int
    text_file_bytes_max: int
    image_base64_bytes_max: int
    pdf_bytes_max: int
    glob_results_max: int
    frame_bytes_max: int
    remembered_calls_max: int
    orphan_seconds_max: float
    egress_socket: str
    """Where the way out is; empty when there is none."""
    egress_port: int

    def __init__(self, values: dict[str, Any]) -> None:
        self.__dict__.update(values)


class Peer:
    """One connection."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self._buffer = bytearray()
        self._lock = threading.Lock()
        # A server that stops reading must not hold our threads for ever.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", SEND_SECONDS_MAX, 0))

    def send(self, number: int, body: bytes) -> None:
        """Answer request `number`; a connection that does not take it is over."""
        frame = b'{"n":%d,%s}' % (number, body)
        try:
            with self._lock:
                self.connection.sendall(struct.pack(">I", len(frame)) + frame)
        except OSError:
            self._hang_up()

    def _hang_up(self) -> None:
        try:
            self.connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def receive(self, limit: int) -> Iterator[dict[str, Any]]:
        """The requests that have arrived whole; OSError or ValueError when the connection is over or broken."""
        piece = self.connection.recv(PIECE_BYTES)
        if not piece:
            raise ConnectionResetError
        self._buffer += piece
        while len(self._buffer) >= 4:
            size = int.from_bytes(self._buffer[:4], "big")
            if size > limit:
                raise ConnectionAbortedError
            if len(self._buffer) < 4 + size:
                return
            frame = bytes(self._buffer[4 : 4 + size])
            del self._buffer[: 4 + size]
            yield json.loads(frame)


class Server:
    """The listening socket and its connections. Several may be open while one server hands over to the next."""

    def __init__(self, listener: socket.socket, calls: Calls, processes: Processes, limits: Limits) -> None:
        self._listener, self._calls, self._processes, self._limits = listener, calls, processes, limits
        self._instance = os.urandom(8).hex()
        self._peers: dict[int, Peer] = {}
        self._alone_since = time.monotonic()

    def serve(self) -> None:
        """Returns when there has been no connection for `orphan_seconds_max`."""
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        while self._peers or self._seconds_left() > 0:
            for descriptor, _ in poll.poll(None if self._peers else self._seconds_left() * 1000):
                if descriptor == self._listener.fileno():
                    connection = self._listener.accept()[0]
                    self._peers[connection.fileno()] = Peer(connection)
                    poll.register(connection, select.POLLIN)
                elif not self._attend(self._peers[descriptor]):
                    poll.unregister(descriptor)
                    self._peers.pop(descriptor).connection.close()
                    self._alone_since = time.monotonic()

    def _seconds_left(self) -> float:
        return max(0.0, self._alone_since + self._limits.orphan_seconds_max - time.monotonic())

    def _attend(self, peer: Peer) -> bool:
        try:
            for message in peer.receive(self._limits.frame_bytes_max):
                self._handle(peer, message)
        except (OSError, ValueError):
            return False
        return True

    def _handle(self, peer: Peer, message: dict[str, Any]) -> None:
        number, action = message["n"], message["do"]
        if action == "call":
            self._processes.resume()
            return self._calls.submit(peer, message)
        if action == "hello":
            return peer.send(number, b'"protocol":%d,"instance":"%s"' % (PROTOCOL, self._instance.encode()))
        if action == "cancel":
            self._calls.cancel(message["call_id"])
        elif action == "forget":
            self._calls.forget(message["call_ids"])
        elif action == "purge":
            self._processes.purge()
        elif action == "pause":
            if not self._calls.running():
                self._processes.pause()
        elif action == "end":
            self._alone_since = float("-inf")
            self._processes.kill_all()
            os._exit(0)
        peer.send(number, b'"done":true')


def limit_resources(resources: dict[str, int]) -> None:
    """Hard limits for this process and all it starts."""
    for name, value in resources.items():
        number = getattr(resource, name)
        hard = resource.getrlimit(number)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(number, (value, value))


def hide() -> None:
    """Keep others of our user out of our memory, descriptors and working directory in /proc."""
    try:
        import ctypes
    except ImportError:
        return
    ctypes.CDLL(None).prctl(SET_DUMPABLE, 0, 0, 0, 0)


def offer_way_out(port: int, path: str) -> None:
    """Listen where programs look for the proxy; what forwards is loaded when the first one comes."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(FORWARD_BACKLOG)

    def forward() -> None:
        poll = select.poll()
        poll.register(listener, select.POLLIN)
        poll.poll()
        from corral.sandboxes.daemon.forward import Forwarder

        Forwarder(listener, path).serve()

    threading.Thread(target=forward, daemon=True).start()


def _await_release() -> dict[str, str]:
    """Say that we are ready, and wait until we are written down and some session's; its variables."""
    try:
        os.write(0, b"\n")
    except OSError:
        # Nobody waits for that: what we are told is there already, or nothing will be.
        pass
    line = b""
    while not line.endswith(b"\n"):
        try:
            piece = os.read(0, PIECE_BYTES)
        except OSError:
            piece = b""
        if not piece:
            # The server died before, or has no use for us. The next one would start another.
            os._exit(0)
        line += piece
    return json.loads(line)


def main() -> None:
    """Run until orphaned."""
    limits = Limits(json.loads(sys.argv[1]))
    limit_resources(limits.resources)
    hide()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.stack_size(STACK_BYTES)
    os.chdir(limits.root)
    listener = socket.socket(fileno=limits.listener)
    # It was inherited, and must not be any further.
    listener.set_inheritable(False)
    if limits.egress_socket:
        offer_way_out(limits.egress_port, limits.egress_socket)
    processes = Processes(limits.environment)
    files = Files(processes, limits, Names(limits.root, limits.names))
    bash = Bash(processes, limits)
    tools = {"bash": bash.run, "read": files.read, "write": files.write}
    tools.update({"edit": files.edit, "glob": files.glob, "grep": files.grep})
    if limits.held:
        for name, value in _await_release().items():
            limits.environment.setdefault(name, value)
    nowhere = os.open("/dev/null", os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    os.close(nowhere)
    Server(listener, Calls(tools, limits.remembered_calls_max, processes.purge), processes, limits).serve()
    processes.kill_all()
    # Threads of running calls must not keep the process.
    os._exit(0)
