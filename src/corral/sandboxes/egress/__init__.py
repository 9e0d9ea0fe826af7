"""The way out of sandboxes: one proxy process for all of a server's sandboxes, and no other way.

    outlet.py      the server's end: starts the proxy, hands it one listening unix socket for each sandbox
    attachment.py  which sandboxes are served, and until when
    proxy.py       the proxy process: takes orders, accepts connections
    exchange.py    one connection from a sandbox: CONNECT, TLS, requests and answers
    upstream.py    one connection to a host: resolve, check each address, connect to what was checked
    secrets.py     placeholders for secrets on the way out, secrets for placeholders on the way in; replacing.py does it
    line.py        HTTP/1.1 over a stream of bytes        authority.py   the certificates that it answers with
    orders.py      what server and proxy say to each other
    registries.py  package managers: their hosts, and how this machine is set up to reach them
    inside.py      what a sandbox is told: variables and mounts
    rewriting.py   what the proxy adds to requests            rehearsal.py  what it does once while it is still root
    trial.py       the proxy put to the test, for `corral doctor`

Which socket a connection comes in by says which sandbox it is from. What may be reached is decided in
`domain/egress.py`. HTTP/2 is not spoken: clients are offered HTTP/1.1, which all of them know.
"""
