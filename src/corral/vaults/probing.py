"""HTTP requests that carry a secret: bounded in size and time, never redirected, and scrubbed before anybody reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import httpx2

from corral.domain.credential_validation import ProbedResponse

SECONDS_MAX = 30.0
BODY_BYTES_MAX = 64 * 1024
SHOWN_CHARACTERS_MAX = 2_000
SECRET_CHARACTERS_MIN = 4
"""Shorter ones would turn every text into stars."""


class Reply(NamedTuple):
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def is_error(self) -> bool:
        """Whether the server refused or failed."""
        return self.status >= 400

    def shown(self, secrets: Iterable[str | None]) -> ProbedResponse:
        """The reply as a person may see it: short, and without these secrets."""
        text = scrubbed(self.body.decode("utf-8", "replace"), secrets)
        return ProbedResponse(
            status_code=self.status,
            content_type=self.headers.get("content-type", ""),
            body=text[:SHOWN_CHARACTERS_MAX],
            body_truncated=len(text) > SHOWN_CHARACTERS_MAX or len(self.body) >= BODY_BYTES_MAX,
        )


def client() -> httpx2.AsyncClient:
    """A client for such requests; close it."""
    return httpx2.AsyncClient(timeout=SECONDS_MAX, follow_redirects=False)


async def post(
    http: httpx2.AsyncClient,
    url: str,
    *,
    headers: Mapping[str, str],
    form: Mapping[str, str] | None = None,
    json: object = None,
) -> Reply:
    """One POST. Raises `httpx2.HTTPError` when there is no answer."""
    async with http.stream("POST", url, headers=dict(headers), data=form, json=json) as response:
        body = bytearray()
        async for chunk in response.aiter_bytes():
            body += chunk
            if len(body) >= BODY_BYTES_MAX:
                break
        return Reply(response.status_code, response.headers, bytes(body[:BODY_BYTES_MAX]))


def scrubbed(text: str, secrets: Iterable[str | None]) -> str:
    """The text without the secrets."""
    for secret in secrets:
        if secret is not None and len(secret) >= SECRET_CHARACTERS_MIN:
            text = text.replace(secret, "[redacted]")
    return text
