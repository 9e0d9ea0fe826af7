"""Where tools run: one file for each backend, registered by name in `app/sandboxes.py`.

    bubblewrap.py    the default: Linux namespaces, an unprivileged user, one way out
    docker.py        containers of Docker's engine, with the same daemon inside
    process.py       no isolation at all; only when asked for by name

What backends share: `local.py` finds, starts and destroys sandboxes on this machine, `directory.py` is the place on
disk of one session's sandbox, `programs.py` finds what a sandbox needs from the host, `connection.py` talks to the
program inside (`daemon/`). Backends do not import one another.
"""
