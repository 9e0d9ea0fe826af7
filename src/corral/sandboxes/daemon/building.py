"""What a build's first process is: it sets limits, leads connections to the way out, runs one command, and ends.

Started by the workshops (`packages/workshop.py`) with a JSON argument and the command. Where nothing is inherited, it
fetches at the door (`arrival.py`) where its output goes. The connection stays open then: on it the server learns how
the command ended, and with the server's end of it goes the build.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading

from corral.sandboxes.daemon.arrival import arrive
from corral.sandboxes.daemon.server import hide, limit_resources, offer_way_out


def main() -> None:
    """Run the command to its end, and answer with its exit code."""
    given, command = json.loads(sys.argv[1]), sys.argv[2:]
    server = _attach() if given["at_door"] else None
    limit_resources(given["resources"])
    hide()
    if given["egress_socket"]:
        offer_way_out(given["egress_port"], given["egress_socket"])
    os.umask(0o022)
    try:
        code = subprocess.call(command, stdin=subprocess.DEVNULL)
    except OSError as error:
        os.write(2, f"{command[0]}: {error.strerror}\n".encode())
        code = 127
    code = code if code >= 0 else 128 - code
    if server is not None:
        server.sendall(b"%d\n" % code)
    os._exit(code)


def _attach() -> socket.socket:
    server, output = arrive()
    for descriptor in (1, 2):
        os.dup2(output, descriptor)
    os.close(output)
    server.settimeout(None)
    threading.Thread(target=_end_with, args=(server,), daemon=True).start()
    return server


def _end_with(server: socket.socket) -> None:
    """The kernel ends everything else inside with its first process."""
    try:
        server.recv(1)
    except OSError:
        pass
    os._exit(1)
