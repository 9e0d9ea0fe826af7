"""All URLs of the API, in one table, and the app that serves them.

A new endpoint is a handler in the file of its noun and a row here; key, betas, rate limits, envelopes, metrics and the
OpenAPI document follow from the row.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeAlias

from starlette.routing import Router
from starlette.types import ASGIApp

from corral.api import (
    agents,
    credentials,
    environments,
    events,
    files,
    health,
    metrics,
    models,
    openapi,
    resources,
    sessions,
    stream,
    vaults,
)
from corral.api.admission import Endpoint
from corral.api.dependencies import Services
from corral.api.middleware import Gateway
from corral.api.pages import Page
from corral.api.session_changes import SessionUpdate
from corral.domain.agent import Agent, AgentCreate, AgentUpdate
from corral.domain.credential import Credential
from corral.domain.credential_params import CredentialCreate, CredentialUpdate
from corral.domain.credential_validation import Validation
from corral.domain.environment import Environment, EnvironmentCreate, EnvironmentUpdate
from corral.domain.event import AnyEvent
from corral.domain.file import FileMetadata
from corral.domain.model import Model
from corral.domain.resource import FileResource, FileResourceParams
from corral.domain.session import SessionView
from corral.domain.vault import Vault, VaultCreate, VaultUpdate

Lifespan: TypeAlias = Callable[[Any], AbstractAsyncContextManager[None]]
"""What runs around the server, in Starlette's form."""

AGENT = "/v1/agents/{agent_id}"
ENVIRONMENT = "/v1/environments/{environment_id}"
SESSION = "/v1/sessions/{session_id}"
RESOURCE = f"{SESSION}/resources/{{resource_id}}"
FILE = "/v1/files/{file_id}"
VAULT = "/v1/vaults/{vault_id}"
CREDENTIAL = f"{VAULT}/credentials/{{credential_id}}"

# fmt: off
ENDPOINTS: tuple[Endpoint, ...] = (
    Endpoint("POST", "/v1/agents", agents.create, "Create an agent",
             rate="create", body=AgentCreate, answer=Agent),
    Endpoint("GET", "/v1/agents", agents.list_, "List agents",
             query=agents.ListQuery, answer=Page[Agent]),
    Endpoint("GET", AGENT, agents.retrieve, "Retrieve an agent, or one version of it",
             query=agents.RetrieveQuery, answer=Agent),
    Endpoint("POST", AGENT, agents.update, "Update an agent",
             rate="create", body=AgentUpdate, answer=Agent),
    Endpoint("POST", f"{AGENT}/archive", agents.archive, "Archive an agent",
             rate="create", answer=Agent),
    Endpoint("GET", f"{AGENT}/versions", agents.list_versions, "List an agent's versions",
             query=agents.VersionsQuery, answer=Page[Agent]),

    Endpoint("POST", "/v1/environments", environments.create, "Create an environment",
             rate="environment", body=EnvironmentCreate, answer=Environment),
    Endpoint("GET", "/v1/environments", environments.list_, "List environments",
             rate="environment", query=environments.ListQuery, answer=Page[Environment]),
    Endpoint("GET", ENVIRONMENT, environments.retrieve, "Retrieve an environment",
             rate="environment", answer=Environment),
    Endpoint("POST", ENVIRONMENT, environments.update, "Update an environment",
             rate="environment", body=EnvironmentUpdate, answer=Environment),
    Endpoint("DELETE", ENVIRONMENT, environments.delete, "Delete an environment",
             rate="environment", answer=environments.EnvironmentDeleted),
    Endpoint("POST", f"{ENVIRONMENT}/archive", environments.archive, "Archive an environment",
             rate="environment", answer=Environment),

    Endpoint("POST", "/v1/sessions", sessions.create, "Create a session",
             rate="create", body=sessions.SessionCreate, answer=SessionView),
    Endpoint("GET", "/v1/sessions", sessions.list_, "List sessions",
             query=sessions.ListQuery, answer=sessions.SessionsPage),
    Endpoint("GET", SESSION, sessions.retrieve, "Retrieve a session",
             answer=SessionView),
    Endpoint("POST", SESSION, sessions.update, "Update a session",
             rate="create", body=SessionUpdate, answer=SessionView),
    Endpoint("DELETE", SESSION, sessions.delete, "Delete a session",
             rate="create", answer=sessions.SessionDeleted),
    Endpoint("POST", f"{SESSION}/archive", sessions.archive, "Archive a session",
             rate="create", answer=SessionView),
    Endpoint("GET", f"{SESSION}/events", events.list_, "List a session's events",
             query=events.ListQuery, answer=Page[AnyEvent]),
    Endpoint("POST", f"{SESSION}/events", events.send, "Send events to a session",
             rate="create", body=events.EventsSend, answer=events.EventsSent),
    Endpoint("GET", f"{SESSION}/events/stream", stream.stream, "Stream a session's events",
             query=stream.StreamQuery, is_stream=True),

    Endpoint("POST", f"{SESSION}/resources", resources.add, "Add a resource to a session",
             rate="create", body=FileResourceParams, answer=FileResource),
    Endpoint("GET", f"{SESSION}/resources", resources.list_, "List a session's resources",
             query=resources.ListQuery, answer=Page[FileResource]),
    Endpoint("GET", RESOURCE, resources.retrieve, "Retrieve a resource of a session",
             answer=FileResource),
    Endpoint("POST", RESOURCE, resources.update, "Update the token of a resource",
             rate="create", body=resources.ResourceUpdate, answer=FileResource),
    Endpoint("DELETE", RESOURCE, resources.delete, "Remove a resource from a session",
             rate="create", answer=resources.ResourceDeleted),

    Endpoint("POST", "/v1/vaults", vaults.create, "Create a vault",
             rate="create", body=VaultCreate, answer=Vault),
    Endpoint("GET", "/v1/vaults", vaults.list_, "List vaults",
             query=vaults.ListQuery, answer=Page[Vault]),
    Endpoint("GET", VAULT, vaults.retrieve, "Retrieve a vault",
             answer=Vault),
    Endpoint("POST", VAULT, vaults.update, "Update a vault",
             rate="create", body=VaultUpdate, answer=Vault),
    Endpoint("DELETE", VAULT, vaults.delete, "Delete a vault and its credentials",
             rate="create", answer=vaults.VaultDeleted),
    Endpoint("POST", f"{VAULT}/archive", vaults.archive, "Archive a vault and purge its secrets",
             rate="create", answer=Vault),
    Endpoint("POST", f"{VAULT}/credentials", credentials.create, "Add a credential to a vault",
             rate="create", body=CredentialCreate, answer=Credential),
    Endpoint("GET", f"{VAULT}/credentials", credentials.list_, "List a vault's credentials",
             query=credentials.ListQuery, answer=Page[Credential]),
    Endpoint("GET", CREDENTIAL, credentials.retrieve, "Retrieve a credential",
             answer=Credential),
    Endpoint("POST", CREDENTIAL, credentials.update, "Update a credential",
             rate="create", body=CredentialUpdate, answer=Credential),
    Endpoint("DELETE", CREDENTIAL, credentials.delete, "Delete a credential",
             rate="create", answer=credentials.CredentialDeleted),
    Endpoint("POST", f"{CREDENTIAL}/archive", credentials.archive, "Archive a credential and purge its secrets",
             rate="create", answer=Credential),
    Endpoint("POST", f"{CREDENTIAL}/mcp_oauth_validate", credentials.validate, "Try a credential on its MCP server",
             rate="create", answer=Validation),

    Endpoint("POST", "/v1/files", files.upload, "Upload a file",
             beta=None, rate="create", is_form=True, body=files.FileUpload, answer=FileMetadata),
    Endpoint("GET", "/v1/files", files.list_, "List files",
             beta=None, query=files.ListQuery, answer=files.FilesPage),
    Endpoint("GET", FILE, files.retrieve, "Retrieve a file's metadata",
             beta=None, answer=FileMetadata),
    Endpoint("GET", f"{FILE}/content", files.content, "Download a file",
             beta=None, is_binary=True),
    Endpoint("DELETE", FILE, files.delete, "Delete a file",
             beta=None, rate="create", answer=files.FileDeleted),

    Endpoint("GET", "/v1/models", models.list_, "List models",
             beta=None, query=models.ListQuery, answer=models.ModelsPage),
    Endpoint("GET", "/v1/models/{model_id}", models.retrieve, "Retrieve a model",
             beta=None, answer=Model),

    Endpoint("GET", "/healthz", health.show, "Whether the server answers",
             beta=None, answer=health.Health, is_open=True),
    Endpoint("GET", "/metrics", metrics.show, "Metrics for Prometheus",
             beta=None),
)
# fmt: on


WATCHED = frozenset({"/healthz", "/metrics"})
"""All that a worker answers, which serves nobody."""


def create_app(services: Services, *, serves: bool = True, lifespan: Lifespan | None = None) -> ASGIApp:
    """The API as an ASGI app, or of a process that does not serve, its health and metrics.

    Starting and stopping the parts behind it is `lifespan`'s, or the caller's."""
    endpoints = [*ENDPOINTS, openapi.endpoint(ENDPOINTS)]
    if not serves:
        endpoints = [endpoint for endpoint in endpoints if endpoint.path in WATCHED]
    fallback = Router(lifespan=lifespan)
    return Gateway(endpoints, services, metrics.Metrics(services.registry), fallback)
