"""The first minutes in a container: fetches the listening socket, since an engine lets nothing be inherited.

The server waits at a door: a socket in a directory that is mounted read-only. It looks at who knocks (the kernel says
which process that is), hands over the listening socket, and takes the door away, all before any tool has run. Then
this process is the daemon of `server.py`. What the image lacks is said at the door too.
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


def main() -> None:
    """Fetch the socket, then run until orphaned."""
    missing = [path for path in ("/bin/bash",) if not os.access(path, os.X_OK)]
    with socket.socket(socket.AF_UNIX) as door:
        door.settimeout(SECONDS_MAX)
        door.connect(DOOR)
        door.sendall(f"the image has no {missing[0]}".encode() if missing else READY)
        _, descriptors, _, _ = socket.recv_fds(door, 1, 1)
    if len(descriptors) != 1:
        sys.exit("the server hung up at the door")
    values = json.loads(sys.argv[1])
    sys.argv[1] = json.dumps({**values, "listener": descriptors[0]})
    server.main()
