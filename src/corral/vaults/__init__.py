"""Secrets at rest and in use: how they are sealed, found for a session, and kept fresh.

What a vault and a credential are is in `domain/`; their endpoints are in `api/`. Nothing here puts a secret into a
sandbox, an event, a log line or an error.
"""
