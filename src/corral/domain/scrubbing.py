"""Takes secrets out of text that others wrote, however they are spelled there, before anybody reads it."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from urllib.parse import quote, quote_plus

REDACTED = "[redacted]"
SECRET_CHARACTERS_MIN = 4
"""Shorter ones would turn every text into stars."""


def scrubbed(text: str, secrets: Iterable[str | None]) -> str:
    """The text without the secrets, as they are and as forms, JSON and base64 spell them."""
    for secret in secrets:
        if secret is not None and len(secret) >= SECRET_CHARACTERS_MIN:
            for spelled in _spellings(secret):
                text = text.replace(spelled, REDACTED)
    return text


def _spellings(secret: str) -> tuple[str, ...]:
    escaped = json.dumps(secret)[1:-1]
    encoded = base64.b64encode(secret.encode("utf-8", "surrogatepass")).decode()
    forms = (quote(secret, safe="", errors="replace"), quote_plus(secret, errors="replace"))
    return tuple(dict.fromkeys((secret, escaped, *forms, encoded)))
