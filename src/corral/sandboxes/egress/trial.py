"""A trial of the way out, for `corral doctor`: the proxy starts, and refuses a sandbox that may reach nothing.

Nothing leaves the machine: the name that is asked for is refused before anybody looks it up.
"""

from __future__ import annotations

import os
import socket

import anyio
import anyio.to_thread

from corral.domain.egress import EgressPolicy
from corral.errors import SandboxUnavailable
from corral.interfaces.sandbox import Fact
from corral.sandboxes.connection import short_socket_path
from corral.sandboxes.directory import remove_tree
from corral.sandboxes.egress.inside import SOCKET_NAME
from corral.sandboxes.egress.outlet import Egress

KEY = "trial"
ASKED = b"CONNECT nobody.invalid:443 HTTP/1.1\r\nHost: nobody.invalid:443\r\n\r\n"
REFUSED = b"x-corral-egress: host_not_allowed"
SECONDS_MAX = 30.0
ANSWER_BYTES_MAX = 4_096


async def explain(egress: Egress) -> Fact:
    """What became of it. Ends the proxy if no sandbox needs it."""
    place = egress.directory / f"{KEY}-{os.getpid()}"
    try:
        await egress.attach(KEY, place, os.geteuid(), EgressPolicy())
        with short_socket_path(place / SOCKET_NAME) as path:
            answer = await anyio.to_thread.run_sync(_ask, path)
    except (OSError, SandboxUnavailable) as error:
        return Fact("egress proxy", False, f"does not answer: {error}")
    finally:
        await egress.detach(KEY)
        await egress.close()
        await anyio.to_thread.run_sync(remove_tree, place)
    if REFUSED not in answer.lower():
        return Fact("egress proxy", False, f"does not refuse what nothing allows, but says {answer[:100]!r}")
    return Fact("egress proxy", True, f"starts, and refused what nothing allows; {egress.in_words()}")


def _ask(path: str) -> bytes:
    answer = b""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(SECONDS_MAX)
        connection.connect(path)
        connection.sendall(ASKED)
        connection.shutdown(socket.SHUT_WR)
        while len(answer) < ANSWER_BYTES_MAX and (piece := connection.recv(ANSWER_BYTES_MAX)):
            answer += piece
    return answer
