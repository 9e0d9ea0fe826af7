"""An environment's packages: installed once for each distinct set, into a read-only layer that its sandboxes share.

    inside.py      where layers and an agent's own installs are in a sandbox, as paths and variables
    managers.py    what each package manager needs, runs, and says when it fails
    layers.py      which layer a set has, who builds it, and what is remembered of a failure
    workshop.py    where it is built: by whom, with which way out
    output.py      one command of a build: bounded in time, size and words

How a build is enclosed is the backend's part: installing runs strangers' code.
"""
