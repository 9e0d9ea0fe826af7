"""The child process that runs the local model: llama.cpp's own HTTP server on a free loopback port.

`python -m corral.providers.local_server` reads one line of JSON (`ServerOrder`) from standard input, prints the URL
when the model is loaded, and lives until standard input closes, which happens when its parent ends, however it ends.
It is a process of its own because llama.cpp may abort, takes gigabytes, and gives them back only by exiting.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Any

import msgspec


class ServerOrder(msgspec.Struct, frozen=True, kw_only=True):
    """What to serve and how."""

    file: str
    template: str | None
    """In place of the model's own chat template."""
    key: str
    """Callers must show it; other users of this machine can reach the port too."""
    context_tokens: int
    threads: int


def main() -> None:
    """Serve until standard input ends."""
    order = msgspec.json.decode(sys.stdin.buffer.readline(), type=ServerOrder)
    # llama.cpp writes its log to both streams; the URL is all that the parent should read.
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    server = _serve(order)
    answer.write(f"{server.listening_address}\n")
    answer.flush()
    sys.stdin.buffer.read()
    # An orderly shutdown waits for the running generation; nobody reads it any more.
    os._exit(0)


def _serve(order: ServerOrder) -> Any:
    # The wheel has no types, and is an extra that need not be installed.
    xllamacpp: Any = import_module("xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path = order.file
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.api_keys = [order.key]
    params.n_ctx = order.context_tokens
    params.n_parallel = 1
    params.cpuparams.n_threads = order.threads
    params.verbosity = 0
    params.ui = False
    params.use_jinja = True
    if order.template is not None:
        params.chat_template = order.template
    return xllamacpp.Server(params)


if __name__ == "__main__":
    main()
