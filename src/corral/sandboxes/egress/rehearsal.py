"""Does once, while it still can, everything that a proxy will do as another user.

Libraries import parts of themselves at first use, and the files of the server's Python may be where only its own user
can read them. So names are looked up, TLS is spoken in memory and a connection is tried before that user is left.
"""

from __future__ import annotations

import socket
import ssl
from contextlib import suppress

import anyio
import anyio.to_thread
from anyio.abc import UNIXSocketStream
from anyio.streams.tls import TLSStream

from corral.sandboxes.egress.authority import Authority

NOBODY = "rehearsal.invalid"
SECONDS_MAX = 5.0
PORT_OF_NOBODY = 1


async def rehearse(authority: Authority) -> None:
    """See the module. Nothing leaves the machine."""
    near, far = socket.socketpair()
    client = ssl.create_default_context()
    streams = [await UNIXSocketStream.from_socket(each) for each in (near, far)]
    with anyio.move_on_after(SECONDS_MAX):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_handshake, streams[0], authority.context(NOBODY), None)
            tasks.start_soon(_handshake, streams[1], client, NOBODY)
    with anyio.move_on_after(SECONDS_MAX), suppress(OSError):
        await anyio.to_thread.run_sync(socket.getaddrinfo, "localhost", None, abandon_on_cancel=True)
    with anyio.move_on_after(SECONDS_MAX), suppress(OSError):
        await (await anyio.connect_tcp("127.0.0.1", PORT_OF_NOBODY)).aclose()


async def _handshake(stream: UNIXSocketStream, context: ssl.SSLContext, host: str | None) -> None:
    # The client does not trust the authority, so both sides learn how refusals go.
    try:
        with suppress(ssl.SSLError, anyio.BrokenResourceError, anyio.EndOfStream):
            await TLSStream.wrap(
                stream, server_side=host is None, hostname=host, ssl_context=context, standard_compatible=False
            )
    finally:
        await stream.aclose()
