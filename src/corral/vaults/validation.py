"""Tries an OAuth credential on its MCP server: `initialize`, `tools/list`, and one refresh after a 401.

Plain JSON-RPC over HTTP rather than the MCP client, because the answer reports status codes and bodies of the server.
A verdict is `invalid` only when the server has said so; what may be different in an hour is `unknown`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import httpx2
import msgspec

from corral.domain.credential_validation import ProbedStep, ValidationStatus
from corral.vaults.probing import Prober, Reply

PROTOCOL_VERSION = "2025-06-18"
UNAUTHORIZED = 401
TOO_MANY_REQUESTS = 429
SERVER_ERROR = 500


class Probe(NamedTuple):
    """How far it went: the step that failed, or none."""

    failed: ProbedStep | None
    status: ValidationStatus
    unauthorized: bool = False


class _Hello(msgspec.Struct):
    protocolVersion: str  # the protocol's spelling


async def probe(prober: Prober, url: str, token: str, hidden: Iterable[str | None] = ()) -> Probe:
    """Say hello and list the tools with this token. What the server answers is shown without it and the `hidden`."""
    hidden = (token, *hidden)
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
    reply, failure = await _step(prober, url, headers, method="initialize", params=hello, hidden=hidden)
    if reply is None or failure is not None:
        return failure or Probe(None, "unknown")
    headers["mcp-protocol-version"] = _agreed(reply.body)
    session = reply.headers.get("mcp-session-id")
    if session is not None:
        headers["mcp-session-id"] = session
    try:
        note = {"jsonrpc": "2.0", "method": "notifications/initialized"}
        await prober.post(url, headers=headers, json=note)
    except (httpx2.HTTPError, httpx2.InvalidURL):
        return Probe(ProbedStep(method="notifications/initialized"), "unknown")
    _, failure = await _step(prober, url, headers, method="tools/list", params={}, hidden=hidden)
    return failure or Probe(None, "valid")


async def _step(
    prober: Prober,
    url: str,
    headers: Mapping[str, str],
    *,
    method: str,
    params: object,
    hidden: Iterable[str | None],
) -> tuple[Reply | None, Probe | None]:
    request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
    try:
        reply = await prober.post(url, headers=headers, json=request, enough=_is_answer)
    except (httpx2.HTTPError, httpx2.InvalidURL):
        return None, Probe(ProbedStep(method=method), "unknown")
    if not reply.is_error and _is_answer(reply.body):
        return reply, None
    step = ProbedStep(method=method, http_response=reply.shown(hidden))
    gone = reply.is_error and reply.status < SERVER_ERROR and reply.status != TOO_MANY_REQUESTS
    return reply, Probe(step, "invalid" if gone else "unknown", reply.status == UNAUTHORIZED)


def _is_answer(body: bytes) -> bool:
    """Whether this is a JSON-RPC result, plain or as an event of a stream."""
    return _result(body) is not None


def _agreed(hello: bytes) -> str:
    """The version that the server wants to speak."""
    try:
        return msgspec.json.decode(_result(hello) or b"", type=_Hello).protocolVersion
    except msgspec.DecodeError:
        return PROTOCOL_VERSION


def _result(body: bytes) -> msgspec.Raw | None:
    for line in (body, *(line[5:] for line in body.splitlines() if line.startswith(b"data:"))):
        try:
            answer = msgspec.json.decode(line, type=dict[str, msgspec.Raw])
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue
        if "result" in answer:
            return answer["result"]
    return None
