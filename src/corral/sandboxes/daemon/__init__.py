"""The program inside the sandbox: it runs tool calls and remembers what came of them.

It is not a security boundary (whatever encloses it is), so it never checks that a path stays inside; and it is not
trusted: the server validates every reply (`connection.py`). Standard library only, Python 3.9 or later, and nothing
imported from the rest of Corral, because it runs on whatever interpreter the sandbox's base has; few imports at all,
because they are most of a sandbox's cold start.

    server.py     frames, connections, when to end         calls.py      every call runs once; kept results
    shell.py      bash                                     files.py      read write edit glob grep
    processes.py  start, reap and kill                    forward.py    the way to the egress proxy

Frames are a 4-byte big-endian length and JSON, on a listening socket that the server bound and this process
inherited. A request has a number `n` and an action `do`: hello, call, cancel, forget, pause, purge (kill all but the
daemon) or end; the answer repeats `n`.
"""
