"""Tries an OAuth credential on its MCP server: `initialize`, `tools/list`, and one refresh after a 401.

Plain JSON-RPC over HTTP rather than the MCP client, because the answer reports status codes and bodies of the server.
A verdict is `invalid` only when the server has said so; what may be different in an hour is `unknown`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import httpx2
import msgspec

from corral.domain.credential_validation import ProbedStep, ValidationStatus
from corral.vaults import probing

PROTOCOL_VERSION = "2025-06-18"
UNAUTHORIZED = 401
TOO_MANY_REQUESTS = 429
SERVER_ERROR = 500


class Probe(NamedTuple):
    """How far it went: the step that failed, or none."""

    failed: ProbedStep | None
    status: ValidationStatus
    unauthorized: bool = False


async def probe(http: httpx2.AsyncClient, url: str, token: str) -> Probe:
    """Say hello and list the tools with this token."""
    headers = {
        "accept": "application/json, text/event-stream",
        "authorization": f"Bearer {token}",
        "mcp-protocol-version": PROTOCOL_VERSION,
    }
    hello = {
        "protocolVersion": PROTOCOL_VERSION,
        "capabilities": {},
        "clientInfo": {"name": "corral", "version": "1"},
    }
    reply, failure = await _step(http, url, headers, method="initialize", params=hello, token=token)
    if reply is None or failure is not None:
        return failure or Probe(None, "unknown")
    session = reply.headers.get("mcp-session-id")
    if session is not None:
        headers["mcp-session-id"] = session
    try:
        note = {"jsonrpc": "2.0", "method": "notifications/initialized"}
        await probing.post(http, url, headers=headers, json=note)
    except httpx2.HTTPError:
        return Probe(ProbedStep(method="notifications/initialized"), "unknown")
    _, failure = await _step(http, url, headers, method="tools/list", params={}, token=token)
    return failure or Probe(None, "valid")


async def _step(
    http: httpx2.AsyncClient, url: str, headers: Mapping[str, str], *, method: str, params: object, token: str
) -> tuple[probing.Reply | None, Probe | None]:
    request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
    try:
        reply = await probing.post(http, url, headers=headers, json=request)
    except (httpx2.HTTPError, httpx2.InvalidURL):
        return None, Probe(ProbedStep(method=method), "unknown")
    if not reply.is_error and _is_answer(reply.body):
        return reply, None
    step = ProbedStep(method=method, http_response=reply.shown([token]))
    gone = reply.is_error and reply.status < SERVER_ERROR and reply.status != TOO_MANY_REQUESTS
    return reply, Probe(step, "invalid" if gone else "unknown", reply.status == UNAUTHORIZED)


def _is_answer(body: bytes) -> bool:
    """Whether this is a JSON-RPC result, plain or as the first event of a stream."""
    for line in (body, *(line[5:] for line in body.splitlines() if line.startswith(b"data:"))):
        try:
            answer = msgspec.json.decode(line, type=dict[str, msgspec.Raw])
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue
        if "result" in answer:
            return True
    return False
