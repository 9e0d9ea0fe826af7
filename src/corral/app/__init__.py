"""The composition root: the only files that name concrete backends. One for each kind of part.

    server.py      the whole: `open_corral` puts a server together and takes it apart again
    working.py     what advances sessions in it: providers, sandboxes, tools and an engine around one harness
    storage.py     where things last, by the database's URL; blobs
    vaults.py      how secrets are sealed and read
    providers.py   models, and which of them a model id means
    sandboxes.py   where tools run
    engines.py     who runs what, when

A new backend is its own file and one line in a registry here. Nothing here decides anything about a session.
"""
