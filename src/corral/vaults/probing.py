"""HTTP requests that carry a secret: bounded in size and time, never redirected, and scrubbed before anybody reads."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import anyio
import httpx2

from corral.config_sections import McpSettings
from corral.domain.credential_validation import ProbedResponse
from corral.domain.scrubbing import scrubbed
from corral.outbound.transport import OutboundTransport

BODY_BYTES_MAX = 4 * 1024 * 1024
SHOWN_CHARACTERS_MAX = 2_000
TOKENS = re.compile(r'("(?:access_token|refresh_token|id_token|client_secret)"\s*:\s*)"(?:[^"\\]|\\.)*"?')


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
        """The reply as a person may see it: short, and without these secrets, however they are spelled."""
        hidden = tuple(secrets)
        text = TOKENS.sub(r'\1"[redacted]"', scrubbed(self.body.decode("utf-8", "replace"), hidden))
        return ProbedResponse(
            status_code=self.status,
            content_type=scrubbed(self.headers.get("content-type", ""), hidden)[:SHOWN_CHARACTERS_MAX],
            body=text[:SHOWN_CHARACTERS_MAX],
            body_truncated=len(text) > SHOWN_CHARACTERS_MAX or len(self.body) >= BODY_BYTES_MAX,
        )


class Prober:
    """Makes such requests."""

    def __init__(self, seconds_max: float, mcp: McpSettings) -> None:
        self._seconds_max = seconds_max
        self._http = httpx2.AsyncClient(
            timeout=seconds_max, follow_redirects=False, transport=OutboundTransport(mcp), trust_env=False
        )

    async def post(
        self,
        url: str,
        *,
        headers: Mapping[str, str],
        form: Mapping[str, str] | None = None,
        json: object = None,
        enough: Callable[[bytes], bool] = lambda body: False,
    ) -> Reply:
        """One POST, whose answer is read up to its end, its limit, or until it is `enough`, which is asked about lines
        as they come, each once.

        Raises `httpx2.HTTPError` or `httpx2.InvalidURL` when there is no answer in time."""
        try:
            with anyio.fail_after(self._seconds_max):
                async with self._http.stream("POST", url, headers=dict(headers), data=form, json=json) as response:
                    body, asked = bytearray(), 0
                    async for chunk in response.aiter_bytes():
                        body += chunk
                        end = body.rfind(b"\n", len(body) - len(chunk)) + 1
                        if len(body) >= BODY_BYTES_MAX or (end and enough(bytes(body[asked:end]))):
                            break
                        asked = end or asked
                    return Reply(response.status_code, response.headers, bytes(body[:BODY_BYTES_MAX]))
        except TimeoutError as error:
            raise httpx2.ReadTimeout("no answer in time") from error
        except UnicodeError as error:
            raise httpx2.InvalidURL("the URL or a header cannot be sent") from error

    async def close(self) -> None:
        """Drop connections."""
        await self._http.aclose()
