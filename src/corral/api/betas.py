"""Values of the `anthropic-beta` header that clients may send.

Managed Agents endpoints need theirs; the others are accepted, because SDKs send them along, and mean nothing here. A
value that nobody knows is refused, so that a client learns of a typing error. The list is that of the official SDK.
"""

from __future__ import annotations

from corral.errors import Invalid, NotFound

MANAGED_AGENTS = "managed-agents-2026-04-01"
AGENT_MEMORY = "agent-memory-2026-07-22"

KNOWN = frozenset(
    {
        MANAGED_AGENTS,
        AGENT_MEMORY,
        "admin-user-sign-out-2026-10-08",
        "advisor-tool-2026-03-01",
        "analytics-usage-cost-2026-08-24",
        "cache-diagnosis-2026-04-07",
        "code-execution-2025-05-22",
        "compact-2026-01-12",
        "compact-2026-09-04",
        "computer-use-2024-10-22",
        "computer-use-2025-01-24",
        "computer-use-2025-11-24",
        "context-1m-2025-08-07",
        "context-management-2025-06-27",
        "dev-full-thinking-2025-05-14",
        "dreaming-2026-04-21",
        "experimental-claude-tag-2026-10-21",
        "extended-cache-ttl-2025-04-11",
        "fallback-credit-2026-06-01",
        "fallback-credit-2026-07-01",
        "fast-mode-2026-02-01",
        "files-api-2025-04-14",
        "inline-tools-2026-09-15",
        "interleaved-thinking-2025-05-14",
        "mcp-client-2025-04-04",
        "mcp-client-2025-11-20",
        "mcp-client-2026-09-15",
        "mcp-tunnels-2026-06-22",
        "message-batches-2024-09-24",
        "message-threads-2026-08-12",
        "mid-conversation-output-config-2026-07-01",
        "mid-conversation-system-clear-at-2026-08-21",
        "mid-conversation-tool-changes-2026-07-01",
        "model-context-window-exceeded-2025-08-26",
        "output-128k-2025-02-19",
        "output-300k-2026-03-24",
        "pdfs-2024-09-25",
        "prompt-caching-2024-07-31",
        "server-side-fallback-2026-06-01",
        "server-side-fallback-2026-07-01",
        "skills-2025-10-02",
        "spend-limit-reads-2026-09-26",
        "structured-outputs-2025-11-13",
        "task-budgets-2026-03-13",
        "telemetry-destinations-2026-08-11",
        "thinking-binding-controls-2026-08-01",
        "thinking-display-updates-2026-08-18",
        "thinking-token-count-2026-05-13",
        "token-counting-2024-11-01",
        "token-efficient-tools-2025-02-19",
        "user-profiles-2026-03-24",
        "user-profiles-2026-08-18",
        "user-profiles-2026-09-04",
        "user-profiles-billing-2026-10-01",
        "webhooks-2026-10-07",
    }
)
KNOWN_PREFIX = "ce-"
"""Betas of the organisation console, which have nothing to do with this API."""


def check(header: str, required: str | None) -> None:
    """Raises `Invalid` for an unknown value and `NotFound` when the required one is missing."""
    values = {value.strip() for value in header.split(",")} - {""}
    for value in sorted(values):
        if value not in KNOWN and not value.startswith(KNOWN_PREFIX):
            raise Invalid(f"anthropic-beta: unknown value `{value[:100]}`")
    if required is not None and required not in values:
        raise NotFound(f"Not found. This endpoint needs the header `anthropic-beta: {required}`.")
