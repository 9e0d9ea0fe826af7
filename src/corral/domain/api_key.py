"""API keys: who may call, and on which workspace.

The server stores a key's SHA-256 and never the key: it is long and random, so a plain hash is enough and a leaked
database opens nothing. A key belongs to one workspace, and everything made with it is seen only with keys of that
workspace.
"""

from __future__ import annotations

import hashlib
import secrets
from datetime import datetime

import msgspec

DEFAULT_WORKSPACE = "wrkspc_default"
SECRET_CHARACTERS_MAX = 512


class ApiKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key as stored."""

    id: str
    workspace_id: str
    sha256: str
    created_at: datetime
    name: str | None = None
    revoked_at: datetime | None = None


def new_secret() -> str:
    """A fresh key, for a client to keep."""
    return "sk-corral-" + secrets.token_urlsafe(32)


def sha256(secret: str) -> str:
    """What is stored of a key, and how it is looked up."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
