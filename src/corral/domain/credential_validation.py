"""What a probe of a credential against its MCP server came to, as the wire shows it.

Source: the API's public documentation; SDK types `beta_managed_agents_credential_validation*`.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal, TypeAlias

import msgspec

ValidationStatus: TypeAlias = Literal["valid", "invalid", "unknown"]
RefreshStatus: TypeAlias = Literal["succeeded", "failed", "connect_error", "no_refresh_token"]


class ProbedResponse(msgspec.Struct, frozen=True, kw_only=True):
    """What a server answered to a probe, with secrets taken out."""

    status_code: int
    content_type: str
    body: str
    body_truncated: bool


class ProbedStep(msgspec.Struct, frozen=True, kw_only=True):
    """The MCP method that failed."""

    method: str
    http_response: ProbedResponse | None = None


class ProbedRefresh(msgspec.Struct, frozen=True, kw_only=True):
    """What the token endpoint said."""

    status: RefreshStatus
    http_response: ProbedResponse | None = None


class Validation(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="vault_credential_validation"):
    """What a probe of a credential came to."""

    credential_id: str
    vault_id: str
    has_refresh_token: bool
    status: ValidationStatus
    validated_at: datetime
    mcp_probe: ProbedStep | None = None
    refresh: ProbedRefresh | None = None
