"""Connections to places that others name: MCP servers, token endpoints, web pages, hosts that sandboxes ask for.

    addresses.py   what a name leads to, and which addresses are this machine's
    transport.py   HTTP to MCP servers and token endpoints, over connections that were judged when they were made
    tunnel.py      connections through the operator's own proxy, to addresses that were judged here

What is allowed is one rule, in `domain/address.py`, with a policy for each of them.
"""
