"""The features that Corral promises, by their number in the contract, and what of each is still to come.

Tests say which features they cover (`@pytest.mark.requirement("F001")`); `test_requirements.py` holds both ways: a
feature without a test is not promised, and a test cannot name a feature that does not exist. Known gaps and choices of
our own are data here, not skipped tests.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Requirement(NamedTuple):
    """One feature of the contract."""

    feature: str
    source: str
    """Area of the API and where in it."""
    later: str | None = None
    """What of the feature is not built, and what it waits for."""
    divergence: str | None = None
    """Where Corral does otherwise than the contract, or had to choose."""
    deferred: bool = False
    """True when nothing of the feature is built, so that no test can cover it."""


REQUIREMENTS: Mapping[str, Requirement] = {
    "F001": Requirement("Create agent from model string, get defaults echoed", "agents: POST /v1/agents"),
    "F002": Requirement("Model config object (effort, speed, inference_geo)", "agents: agents.model"),
    "F003": Requirement("Retrieve latest and by version", "agents: GET /v1/agents/{id}?version="),
    "F004": Requirement("Update bumps version by one", "agents: POST /v1/agents/{id}"),
    "F005": Requirement("No-op update keeps version", "agents: POST /v1/agents/{id}"),
    "F006": Requirement("Optimistic concurrency 409", "agents: update.version"),
    "F007": Requirement("Unconditional update without version", "agents: update"),
    "F008": Requirement("Null clears, omit keeps, metadata patch", "agents: update"),
    "F009": Requirement("List with limit, page, created_at, include_archived", "agents: GET /v1/agents"),
    "F010": Requirement("Version history list", "agents: GET /v1/agents/{id}/versions"),
    "F011": Requirement("Archive is permanent and read-only", "agents: POST archive"),
    "F012": Requirement(
        "Validation of names, counts, unreferenced MCP servers",
        "agents: create",
        divergence="`tools` takes 128 entries and 256 tools in all; the contract's texts name one or the other.",
    ),
    "F013": Requirement("execution_identity aws_role stored and echoed", "agents: create"),
    "F014": Requirement("agent_toolset with default_config and configs", "tools: agents.tools"),
    "F015": Requirement("Custom tool schema rules", "tools: agents.tools"),
    "F016": Requirement(
        "mcp_toolset default always_ask",
        "tools: agents.tools",
    ),
    "F017": Requirement("bash persistent shell, restart, timeout", "tools: runtime"),
    "F018": Requirement(
        "read text, view_range, image, PDF blocks",
        "tools: runtime",
        later="PDF blocks are pinned by the sandbox contract suite.",
    ),
    "F019": Requirement("write and edit semantics (unique match)", "tools: runtime"),
    "F020": Requirement("glob and grep", "tools: runtime"),
    "F021": Requirement(
        "web_search with domain filters and location",
        "tools: runtime",
        divergence="Whose search it is, is the operator's choice; without one it is not offered.",
    ),
    "F022": Requirement("web_fetch with url_not_allowed, max tokens", "tools: runtime"),
    "F023": Requirement("web_fetch url_sources restriction", "tools: agents.tools"),
    "F024": Requirement("Oversize output spill to file (100k chars)", "tools: runtime"),
    "F025": Requirement("Disabled tool call denied without evaluation", "tools: runtime"),
    "F026": Requirement("always_ask pause and confirm allow/deny", "policy: events"),
    "F027": Requirement("deny_message reaches model; only with deny", "policy: events"),
    "F028": Requirement("auto policy judgement with reason_code", "policy: events"),
    "F029": Requirement("Confirm of non-ask call rejected", "policy: events"),
    "F030": Requirement("Connect streamable HTTP server and run tool", "mcp: runtime"),
    "F031": Requirement("Per-tool enable list", "mcp: mcp_toolset.configs"),
    "F032": Requirement("Failure is session.error, session survives", "mcp: events"),
    "F033": Requirement("Auth by vault URL match, first vault wins", "mcp: vault_ids"),
    "F034": Requirement("Create cloud env, defaults", "env: POST /v1/environments"),
    "F035": Requirement(
        "Limited networking enforced",
        "env: config.networking.limited",
        divergence="HTTP and WebSocket through a proxy; raw TCP, UDP and HTTP/2 do not leave a sandbox",
    ),
    "F036": Requirement("allow_package_managers and packages install", "env: config.networking.allow_package_managers"),
    "F037": Requirement("allow_mcp_servers opens the hosts of the agent's MCP servers", "env: config.networking"),
    "F038": Requirement("Update merges nested config, type immutable", "env: POST /v1/environments/{id}"),
    "F039": Requirement(
        "Archive, delete, list, pagination",
        "env: environments.*",
        divergence="A second environment of one name is a 409; the newest texts only recommend unique names.",
    ),
    "F040": Requirement("Archived env refused for new session", "env: POST /v1/sessions"),
    "F056": Requirement("Create with string, pinned, overrides agent forms", "session: POST /v1/sessions"),
    "F057": Requirement("Overrides tri-state and 400s", "session: agent_with_overrides"),
    "F058": Requirement(
        "initial_events start running",
        "session: create",
        later="`user.define_outcome` is refused until outcomes are built.",
    ),
    "F059": Requirement(
        "initial_events validation is atomic",
        "session: create",
        later="`user.define_outcome` is refused until outcomes are built.",
    ),
    "F060": Requirement(
        "Retrieve with usage, stats, resources, vault_ids",
        "session: GET",
        later="`outcome_evaluations` is empty until outcomes are built.",
    ),
    "F061": Requirement(
        "List filters and both cursors",
        "session: GET /v1/sessions",
        later="`memory_store_id` and `deployment_id` find nothing until those resources are built.",
    ),
    "F062": Requirement("statuses[] filter", "session: GET"),
    "F063": Requirement("Update title and metadata patch", "session: POST"),
    "F064": Requirement("Update tools/mcp mid-session, idle only", "session: POST"),
    "F065": Requirement("Archive terminates, delete removes", "session: POST/DELETE"),
    "F066": Requirement("Cannot archive/delete while running", "session: POST/DELETE"),
    "F067": Requirement("session.deleted closes streams", "session: SSE"),
    "F068": Requirement("rescheduling on transient failure, recovery", "session: runtime"),
    "F069": Requirement("Crash-safe resume of running sessions", "session: runtime"),
    "F070": Requirement("Send returns echoed events with ids", "events: POST events"),
    "F071": Requirement("One bad event rejects the request", "events: POST events"),
    "F072": Requirement("List asc, desc, types[], created_at filters", "events: GET events"),
    "F073": Requirement("Event pagination limit 1000 cursor", "events: GET events"),
    "F074": Requirement("processed_at null then set, same id twice", "events: SSE"),
    "F075": Requirement("Results processed on receipt", "events: SSE"),
    "F076": Requirement("Message queueing in order", "events: POST events"),
    "F077": Requirement("Image, document, file blocks in messages", "events: POST events"),
    "F078": Requirement("redacted block refused", "events: POST events"),
    "F079": Requirement("requires_action partial answers re-idle", "events: events"),
    "F080": Requirement("Messages rejected during requires_action", "events: POST events"),
    "F081": Requirement("Custom tool round trip with is_error", "events: events"),
    "F082": Requirement("system.message placement and model gate", "events: POST events"),
    "F083": Requirement(
        "Interrupt ends with end_turn",
        "events: POST events",
        later="Interrupts of single child threads come with threads.",
    ),
    "F084": Requirement("Interrupt overtakes queued messages", "events: POST events"),
    "F085": Requirement("session.usage right before idle", "events: SSE"),
    "F086": Requirement("stop_reason refusal with stop_details", "events: events"),
    "F087": Requirement("Named SSE frames, ping, error", "stream: GET stream"),
    "F088": Requirement("No replay; headers flushed immediately", "stream: GET stream"),
    "F089": Requirement("Idle stream stays open past 10 minutes", "stream: GET stream"),
    "F090": Requirement("event_deltas agent.message", "stream: GET stream"),
    "F091": Requirement("event_deltas agent.thinking start only", "stream: GET stream"),
    "F092": Requirement("Bad event_deltas -> 400", "stream: GET stream"),
    "F093": Requirement("model_request_end closes orphan preview", "stream: GET stream"),
    "F094": Requirement("Many concurrent subscribers see identical order", "stream: GET stream"),
    "F113": Requirement("File mount read-only copy, new file_id", "resources: runtime"),
    "F114": Requirement("Add, list and delete resources live", "resources: sessions.resources"),
    "F118": Requirement("Outputs via files scope_id", "resources: GET /v1/files"),
    "F119": Requirement("Upload, metadata, delete, list cursor, ids[]", "files: /v1/files"),
    "F120": Requirement("Download rules and expiry", "files: /content"),
    "F124": Requirement("Vault CRUD, archive cascade", "vault: /v1/vaults"),
    "F125": Requirement(
        "Credential types, secrets never returned",
        "vault: credentials",
        divergence="Names that the sandbox sets itself (PATH, LD_*, *_PROXY ...) are refused as `secret_name`.",
    ),
    "F126": Requirement("Unique key 409 and 20 limit", "vault: credentials"),
    "F127": Requirement("OAuth refresh before call", "vault: runtime"),
    "F128": Requirement("mcp_oauth_validate verdicts", "vault: POST validate"),
    "F129": Requirement("Env-var placeholder and egress substitution", "vault: runtime"),
    "F130": Requirement("injection_location create/update rules", "vault: credentials"),
    "F131": Requirement("Rotation reaches running sessions", "vault: runtime"),
    "F141": Requirement("Cap, pause, raise resumes", "budget: budget"),
    "F142": Requirement("Error reasons", "budget: sessions.update"),
    "F143": Requirement("Token and cache accounting per session/thread", "usage: usage"),
    "F144": Requirement("Auto compaction event, long sessions survive", "compaction: runtime"),
    "F154": Requirement("Bearer and x-api-key auth, 401 shape", "platform: all"),
    "F155": Requirement("Beta header gate and version tolerance", "platform: all"),
    "F156": Requirement("Error envelope, request-id, details.error_code", "platform: all"),
    "F157": Requirement(
        "429 with retry-after; x-should-retry on 409",
        "platform: all",
        divergence="Rate limits are off unless `[server] rate_limits` is set: the machine is the user's own.",
    ),
    "F158": Requirement("Workspace isolation header", "platform: all"),
    "F159": Requirement("Body limits 413", "platform: all"),
    "F160": Requirement(
        "Models list for price table and validation",
        "platform: /v1/models",
        divergence="Always in the beta form, which has one field more: `allowed_fallback_models`.",
    ),
}
