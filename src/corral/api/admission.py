"""Who may come in: key, workspace, API version, betas, rate. Checked before a handler sees anything.

The order is deliberate: without a key nobody learns anything else, and only a request that would be served counts
against the rate. `Endpoint` is here because these rules differ by endpoint; the table of them is `routes.py`.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import NamedTuple

import msgspec
from starlette.datastructures import Headers

from corral.api import betas
from corral.api.call import Handler
from corral.api.dependencies import Services
from corral.api.rates import Group, Rates
from corral.domain.api_key import ApiKey
from corral.errors import Denied, Invalid, Unauthenticated

API_VERSIONS = ("2023-06-01", "2026-10-21")
NOBODY = ApiKey(id="", workspace_id="", sha256="", created_at=datetime.min.replace(tzinfo=UTC))
"""The caller of an endpoint that is open to all; its workspace is nobody's."""


class Endpoint(NamedTuple):
    """A row of the route table."""

    method: str
    path: str
    handler: Handler
    summary: str
    rate: Group = "read"
    beta: str | None = betas.MANAGED_AGENTS
    """The beta that must be asked for."""
    query: type[msgspec.Struct] | None = None
    body: type[msgspec.Struct] | None = None
    answer: type[msgspec.Struct] | None = None
    """What is sent back, for the OpenAPI document."""
    is_open: bool = False
    """Needs no key."""
    is_stream: bool = False
    is_form: bool = False
    """The body is multipart/form-data."""
    is_binary: bool = False
    """The answer is the bytes of a file."""


async def admit(services: Services, rates: Rates, endpoint: Endpoint, headers: Headers) -> ApiKey:
    """The caller's key. Raises `Unauthenticated`, `Denied`, `Invalid`, `NotFound` or `RateLimited`."""
    if endpoint.is_open:
        return NOBODY
    key = await services.authenticate(_secret(headers))
    workspace = headers.get("anthropic-workspace-id")
    if workspace is not None and workspace != key.workspace_id:
        raise Denied("anthropic-workspace-id: this API key belongs to another workspace")
    version = headers.get("anthropic-version")
    if version is not None and version not in API_VERSIONS:
        raise Invalid(f"anthropic-version: `{version[:100]}` is not one of {', '.join(API_VERSIONS)}")
    betas.check(",".join(headers.getlist("anthropic-beta")), endpoint.beta)
    rates.take(key.id, endpoint.rate, services.clock.now())
    return key


def _secret(headers: Headers) -> str:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    secret = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "").strip()
    if not secret:
        raise Unauthenticated()
    return secret
