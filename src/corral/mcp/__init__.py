"""Tools from elsewhere: the MCP servers that agents name, reached from here and never from a sandbox.

`servers.py` keeps the connections of sessions, `connection.py` is one of them, through the official SDK.
"""
