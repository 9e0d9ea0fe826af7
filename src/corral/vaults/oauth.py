"""The refresh-token grant of OAuth 2.0 (RFC 6749, section 6; resource indicators by RFC 8707): one exchange.

When to refresh and where the result is kept is in `credentials.py`.
"""

from __future__ import annotations

import base64
import re
from datetime import datetime, timedelta
from typing import NamedTuple
from urllib.parse import quote

import httpx2
import msgspec

from corral.domain.credential import ClientSecretBasic, ClientSecretPost, Refresh, SecretHalf
from corral.domain.credential_validation import ProbedResponse, RefreshStatus
from corral.vaults.probing import Prober

LIFETIME_SECONDS_MAX = 10 * 365 * 86_400
TOKEN = re.compile(r"[\x21-\x7e]{1,16384}")
"""What can stand in a header (RFC 6749, appendix A.12)."""


class Refreshed(NamedTuple):
    """How the exchange went. Never logged: its text hides the tokens."""

    status: RefreshStatus
    token: str = ""
    refresh_token: str | None = None
    expires_at: datetime | None = None
    response: ProbedResponse | None = None

    def __repr__(self) -> str:
        return f"Refreshed({self.status})"


class _Tokens(msgspec.Struct):
    access_token: str
    token_type: str = "Bearer"
    expires_in: float | None = None
    refresh_token: str | None = None


async def refresh(prober: Prober, settings: Refresh | None, secret: SecretHalf, now: datetime) -> Refreshed:
    """Ask the token endpoint for a new access token."""
    if settings is None or not secret.refresh_token:
        return Refreshed("no_refresh_token")
    # The client's id is there whatever the authentication: RFC 6749 allows it, and some servers insist (section 3.2.1).
    form = {"grant_type": "refresh_token", "refresh_token": secret.refresh_token, "client_id": settings.client_id}
    headers, hidden = {"accept": "application/json"}, [secret.value, secret.refresh_token, secret.client_secret]
    match settings.token_endpoint_auth:
        case ClientSecretBasic():
            # RFC 6749, section 2.3.1: both parts are form-encoded before they are joined.
            pair = f"{quote(settings.client_id, safe='')}:{quote(secret.client_secret or '', safe='')}"
            headers["authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()
            hidden.append(pair)
        case ClientSecretPost():
            form["client_secret"] = secret.client_secret or ""
        case _:
            pass
    form |= {name: value for name in ("scope", "resource") if (value := getattr(settings, name))}
    try:
        reply = await prober.post(settings.token_endpoint, headers=headers, form=form)
    except (httpx2.HTTPError, httpx2.InvalidURL):
        return Refreshed("connect_error")
    try:
        if reply.status != 200:
            raise ValueError
        tokens = msgspec.json.decode(reply.body, type=_Tokens, strict=False)
        if not TOKEN.fullmatch(tokens.access_token) or tokens.token_type.lower() != "bearer":
            raise ValueError
        if tokens.refresh_token and not TOKEN.fullmatch(tokens.refresh_token):
            raise ValueError
    except (ValueError, msgspec.DecodeError):
        return Refreshed("failed", response=reply.shown(hidden))
    seconds = tokens.expires_in
    lasts = seconds is not None and 0 < seconds <= LIFETIME_SECONDS_MAX
    expires_at = now + timedelta(seconds=seconds) if seconds is not None and lasts else None
    return Refreshed("succeeded", tokens.access_token, tokens.refresh_token, expires_at)
