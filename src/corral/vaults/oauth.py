"""The refresh-token grant of OAuth 2.0 (RFC 6749, section 6; resource indicators by RFC 8707): one exchange.

When to refresh and where the result is kept is in `credentials.py`.
"""

from __future__ import annotations

import base64
from datetime import datetime, timedelta
from typing import NamedTuple
from urllib.parse import quote

import httpx2
import msgspec

from corral.domain.credential import ClientSecretBasic, ClientSecretPost, Refresh, SecretHalf
from corral.domain.credential_validation import ProbedResponse, RefreshStatus
from corral.vaults import probing

LIFETIME_SECONDS_MAX = 10 * 365 * 86_400


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


async def refresh(http: httpx2.AsyncClient, settings: Refresh | None, secret: SecretHalf, now: datetime) -> Refreshed:
    """Ask the token endpoint for a new access token."""
    if settings is None or not secret.refresh_token:
        return Refreshed("no_refresh_token")
    form = {"grant_type": "refresh_token", "refresh_token": secret.refresh_token}
    headers = {"accept": "application/json"}
    match settings.token_endpoint_auth:
        case ClientSecretBasic():
            # RFC 6749, section 2.3.1: both parts are form-encoded before they are joined.
            pair = f"{quote(settings.client_id, safe='')}:{quote(secret.client_secret or '', safe='')}"
            headers["authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()
        case ClientSecretPost():
            form |= {"client_id": settings.client_id, "client_secret": secret.client_secret or ""}
        case _:
            form["client_id"] = settings.client_id
    form |= {name: value for name in ("scope", "resource") if (value := getattr(settings, name))}
    try:
        reply = await probing.post(http, settings.token_endpoint, headers=headers, form=form)
    except (httpx2.HTTPError, httpx2.InvalidURL):
        return Refreshed("connect_error")
    try:
        if reply.status != 200:
            raise ValueError
        tokens = msgspec.json.decode(reply.body, type=_Tokens, strict=False)
        if not tokens.access_token or tokens.token_type.lower() != "bearer":
            raise ValueError
    except (ValueError, msgspec.DecodeError):
        hidden = (secret.value, secret.refresh_token, secret.client_secret)
        return Refreshed("failed", response=reply.shown(hidden))
    seconds = tokens.expires_in
    lasts = seconds is not None and 0 < seconds <= LIFETIME_SECONDS_MAX
    expires_at = now + timedelta(seconds=seconds) if seconds is not None and lasts else None
    return Refreshed("succeeded", tokens.access_token, tokens.refresh_token, expires_at)
