"""What of the official SDK Corral serves, and what it refuses today, as data.

`test_sdk_surface.py` compares both tables with the SDK that is installed and with the routes that are served, so a new
version of the SDK, and a new endpoint of ours, must be decided on here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

OUTSIDE = ("messages", "beta.messages", "completions", "organization", "beta.organization")
"""Other products: models themselves, and the administration of an organisation at the hosted service. Not watched."""

WATCHED = ("beta.organization.webhooks",)
"""Part of what is outside that a server of managed agents has, too."""

SERVED: Mapping[str, str] = {
    "beta.agents.archive": "POST /v1/agents/{}/archive",
    "beta.agents.create": "POST /v1/agents",
    "beta.agents.list": "GET /v1/agents",
    "beta.agents.retrieve": "GET /v1/agents/{}",
    "beta.agents.update": "POST /v1/agents/{}",
    "beta.agents.versions.list": "GET /v1/agents/{}/versions",
    "beta.environments.archive": "POST /v1/environments/{}/archive",
    "beta.environments.create": "POST /v1/environments",
    "beta.environments.delete": "DELETE /v1/environments/{}",
    "beta.environments.list": "GET /v1/environments",
    "beta.environments.retrieve": "GET /v1/environments/{}",
    "beta.environments.update": "POST /v1/environments/{}",
    "beta.files.delete": "DELETE /v1/files/{}",
    "beta.files.download": "GET /v1/files/{}/content",
    "beta.files.list": "GET /v1/files",
    "beta.files.retrieve_metadata": "GET /v1/files/{}",
    "beta.files.upload": "POST /v1/files",
    "beta.models.list": "GET /v1/models",
    "beta.models.retrieve": "GET /v1/models/{}",
    "beta.sessions.archive": "POST /v1/sessions/{}/archive",
    "beta.sessions.create": "POST /v1/sessions",
    "beta.sessions.delete": "DELETE /v1/sessions/{}",
    "beta.sessions.events.list": "GET /v1/sessions/{}/events",
    "beta.sessions.events.send": "POST /v1/sessions/{}/events",
    "beta.sessions.events.stream": "GET /v1/sessions/{}/events/stream",
    "beta.sessions.list": "GET /v1/sessions",
    "beta.sessions.resources.add": "POST /v1/sessions/{}/resources",
    "beta.sessions.resources.delete": "DELETE /v1/sessions/{}/resources/{}",
    "beta.sessions.resources.list": "GET /v1/sessions/{}/resources",
    "beta.sessions.resources.retrieve": "GET /v1/sessions/{}/resources/{}",
    "beta.sessions.resources.update": "POST /v1/sessions/{}/resources/{}",
    "beta.sessions.retrieve": "GET /v1/sessions/{}",
    "beta.sessions.update": "POST /v1/sessions/{}",
    "beta.vaults.archive": "POST /v1/vaults/{}/archive",
    "beta.vaults.create": "POST /v1/vaults",
    "beta.vaults.credentials.archive": "POST /v1/vaults/{}/credentials/{}/archive",
    "beta.vaults.credentials.create": "POST /v1/vaults/{}/credentials",
    "beta.vaults.credentials.delete": "DELETE /v1/vaults/{}/credentials/{}",
    "beta.vaults.credentials.list": "GET /v1/vaults/{}/credentials",
    "beta.vaults.credentials.mcp_oauth_validate": "POST /v1/vaults/{}/credentials/{}/mcp_oauth_validate",
    "beta.vaults.credentials.retrieve": "GET /v1/vaults/{}/credentials/{}",
    "beta.vaults.credentials.update": "POST /v1/vaults/{}/credentials/{}",
    "beta.vaults.delete": "DELETE /v1/vaults/{}",
    "beta.vaults.list": "GET /v1/vaults",
    "beta.vaults.retrieve": "GET /v1/vaults/{}",
    "beta.vaults.update": "POST /v1/vaults/{}",
    "files.delete": "DELETE /v1/files/{}",
    "files.download": "GET /v1/files/{}/content",
    "files.list": "GET /v1/files",
    "files.retrieve_metadata": "GET /v1/files/{}",
    "files.upload": "POST /v1/files",
    "models.list": "GET /v1/models",
    "models.retrieve": "GET /v1/models/{}",
}
"""Method of the SDK -> the endpoint that it calls."""

COMPOSED = {
    "beta.sessions.events.tool_runner": "made of events.stream, events.list and events.send",
    "beta.webhooks.parse_unverified": "asks no server",
    "beta.webhooks.unwrap": "asks no server",
}
"""Methods without an endpoint of their own, and what they need."""


class Refused(NamedTuple):
    """Methods of one resource that this server answers with 404."""

    methods: str
    until: str


REFUSED: Mapping[str, Refused] = {
    "beta.deployment_runs": Refused("list retrieve", "deployments"),
    "beta.deployments": Refused("archive create list pause retrieve run unpause update", "deployments"),
    "beta.dreams": Refused("archive cancel create list retrieve", "dreams"),
    "beta.environments.work": Refused(
        "ack heartbeat list poll poller retrieve stats stop update worker", "self-hosted environments"
    ),
    "beta.memory_stores": Refused("archive create delete list retrieve update", "memory"),
    "beta.memory_stores.memories": Refused("create delete list retrieve update", "memory"),
    "beta.memory_stores.memory_versions": Refused("list redact retrieve", "memory"),
    "beta.organization.webhooks": Refused(
        "create delete list regenerate_signing_secret retrieve update", "webhook endpoints"
    ),
    "beta.sessions.threads": Refused("archive list retrieve", "threads"),
    "beta.sessions.threads.events": Refused("list stream", "threads"),
    "beta.skills": Refused("create delete list retrieve", "skills"),
    "beta.skills.versions": Refused("create delete download list retrieve", "skills"),
    "beta.tunnels": Refused("archive create list retrieve reveal_token rotate_token", "MCP tunnels"),
    "beta.tunnels.certificates": Refused("archive create list retrieve", "MCP tunnels"),
    "beta.user_profiles": Refused("create create_enrollment_url delete list retrieve update", "user profiles"),
    "beta.user_profiles.action_urls": Refused("create", "user profiles"),
    "skills": Refused("create delete list retrieve", "skills"),
    "skills.versions": Refused("create delete list retrieve", "skills"),
    "user_profiles": Refused("create delete list retrieve update", "user profiles"),
    "user_profiles.action_urls": Refused("create", "user profiles"),
}

EVENTS_SERVED = frozenset(
    """
    user.message user.interrupt user.tool_confirmation user.custom_tool_result system.message
    agent.message agent.thinking agent.tool_use agent.tool_result agent.custom_tool_use agent.thread_context_compacted
    agent.mcp_tool_use agent.mcp_tool_result
    session.error session.updated session.usage session.deleted
    session.status_running session.status_rescheduled session.status_idle session.status_terminated
    session.thread_status_running session.thread_status_rescheduled session.thread_status_idle
    session.thread_status_terminated
    span.model_request_start span.model_request_end
    event_start event_delta
    """.split()
)

EVENTS_REFUSED: Mapping[str, str] = {
    "user.tool_result": "self-hosted environments",
    "user.define_outcome": "outcomes",
    "span.outcome_evaluation_start": "outcomes",
    "span.outcome_evaluation_ongoing": "outcomes",
    "span.outcome_evaluation_end": "outcomes",
    "agent.thread_message_sent": "threads",
    "agent.thread_message_received": "threads",
    "session.thread_created": "threads",
    "workflow_run.created": "workflow runs",
    "workflow_run.status_running": "workflow runs",
    "workflow_run.status_idle": "workflow runs",
    "workflow_run.status_ended": "workflow runs",
    "workflow_run.error": "workflow runs",
    "workflow_run.phase_started": "workflow runs",
    "workflow_run.phase_ended": "workflow runs",
}
"""Event types that this server neither takes nor writes, and what they come with."""
