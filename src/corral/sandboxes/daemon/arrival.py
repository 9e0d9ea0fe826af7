"""The first minutes in a container: fetches a descriptor, since an engine lets nothing be inherited.

The server waits at a door: a socket in a directory that is mounted read-only. It looks at who knocks (the kernel says
which process that is), hands over the one descriptor, and takes the door away, all before any tool has run. For a
session that is the listening socket, and this process then is the daemon of `server.py`; for a build see `building.py`.
What the image lacks is said at the door too.
"""

from __future__ import annotations

import json
import os
import socket
import sys

from corral.sandboxes.daemon import server

DOOR = "/opt/corral/door/socket"
SECONDS_MAX = 60.0
READY = b"ready"


def arrive() -> tuple[socket.socket, int]:
    """The connection to the server, and what it handed over."""
    missing = [path for path in ("/bin/bash",) if not os.access(path, os.X_OK)]
    door = socket.socket(socket.AF_UNIX)
    door.settimeout(SECONDS_MAX)
    door.connect(DOOR)
    door.sendall(f"the image has no {missing[0]}".encode() if missing else READY)
    _, descriptors, _, _ = socket.recv_fds(door, 1, 1)
    if len(descriptors) != 1:
        sys.exit("the server hung up at the door")
    return door, descriptors[0]


def main() -> None:
    """Fetch the socket, then run until orphaned."""
    door, descriptor = arrive()
    door.close()
    values = json.loads(sys.argv[1])
    sys.argv[1] = json.dumps({**values, "listener": descriptor})
    server.main()
