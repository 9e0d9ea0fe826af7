"""What the installed SDK can send is what our structs read: names, nulls and literals, all the way down.

A field that a new version of the SDK has would be refused as unknown, and nobody would notice before a user did.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from importlib import import_module
from typing import Any, Literal, Union, get_args, get_origin

import msgspec
import pytest
from typing_extensions import get_type_hints, is_typeddict

from corral.api import (
    agents,
    credentials,
    environments,
    events,
    files,
    models,
    resources,
    session_changes,
    sessions,
    vaults,
)
from corral.api import stream as streams
from corral.domain import agent, credential_params, environment, resource, vault

HEADERS = {"betas", "workspace_id"}
IN_THE_PATH = {("CredentialUpdateParams", "vault_id"), ("ResourceUpdateParams", "session_id")}
NEVER_SENT_AS_NULL = {("FileListParams", "ids")}
"""The SDK leaves it out of the query."""
REFUSED_WHOLE = {
    "BetaManagedAgentsGitHubRepositoryResourceParams",
    "BetaManagedAgentsMemoryStoreResourceParam",
    "BetaManagedAgentsMultiagentCoordinatorParams",
    "BetaManagedAgentsMultiagent20261001Params",
}
"""Known by their `type` alone until they are built."""
READ_AS_JSON = {"BetaManagedAgentsCustomToolInputSchemaParam"}

READ: dict[str, Any] = {
    "agent_create_params.AgentCreateParams": agent.AgentCreate,
    "agent_update_params.AgentUpdateParams": agent.AgentUpdate,
    "agent_list_params.AgentListParams": agents.ListQuery,
    "agent_retrieve_params.AgentRetrieveParams": agents.RetrieveQuery,
    "agents.version_list_params.VersionListParams": agents.VersionsQuery,
    "environment_create_params.EnvironmentCreateParams": environment.EnvironmentCreate,
    "environment_update_params.EnvironmentUpdateParams": environment.EnvironmentUpdate,
    "environment_list_params.EnvironmentListParams": environments.ListQuery,
    "session_create_params.SessionCreateParams": sessions.SessionCreate,
    "session_update_params.SessionUpdateParams": session_changes.SessionUpdate,
    "session_list_params.SessionListParams": sessions.ListQuery,
    "sessions.event_list_params.EventListParams": events.ListQuery,
    "sessions.event_send_params.EventSendParams": events.EventsSend,
    "sessions.event_stream_params.EventStreamParams": streams.StreamQuery,
    "sessions.resource_add_params.ResourceAddParams": resource.FileResourceParams,
    "sessions.resource_list_params.ResourceListParams": resources.ListQuery,
    "sessions.resource_update_params.ResourceUpdateParams": resources.ResourceUpdate,
    "vault_create_params.VaultCreateParams": vault.VaultCreate,
    "vault_update_params.VaultUpdateParams": vault.VaultUpdate,
    "vault_list_params.VaultListParams": vaults.ListQuery,
    "vaults.credential_create_params.CredentialCreateParams": credential_params.CredentialCreate,
    "vaults.credential_update_params.CredentialUpdateParams": credential_params.CredentialUpdate,
    "vaults.credential_list_params.CredentialListParams": credentials.ListQuery,
    "file_list_params.FileListParams": files.ListQuery,
    "file_upload_params.FileUploadParams": files.FileUpload,
    "model_list_params.ModelListParams": models.ListQuery,
}


def members(kind: Any) -> Iterator[Any]:
    """What a field may hold: unions and lists opened, `Required` and the like taken off."""
    inner = get_args(kind)
    if get_origin(kind) in (Literal, None):
        yield kind
    elif get_origin(kind) in (Union, types.UnionType):
        for each in inner:
            yield from members(each)
    else:
        yield kind
        for each in inner:
            yield from (part for part in members(each) if part is not type(None) or is_wrapper(kind))


def is_wrapper(kind: Any) -> bool:
    return str(kind).startswith(("typing.Required", "typing_extensions.Required"))


def literals(kinds: list[Any]) -> set[str]:
    return {value for kind in kinds if get_origin(kind) is Literal for value in get_args(kind)}


def tag_of(params: Any) -> str | None:
    named = literals(list(members(get_type_hints(params, include_extras=True).get("type", str))))
    return next(iter(named)) if len(named) == 1 else None


def struct_for(params: Any, kinds: list[Any]) -> Any:
    """The struct of ours that reads this one of the SDK's."""
    structs = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, msgspec.Struct)]
    tagged = [each for each in structs if each.__struct_config__.tag == tag_of(params)]
    found = tagged or [each for each in structs if each.__struct_config__.tag is None]
    return found[0] if len(found) == 1 else None


def differences(params: Any, struct: Any, path: str) -> Iterator[str]:
    fields = {field.encode_name: field for field in msgspec.structs.fields(struct)}
    for name, kind in get_type_hints(params, include_extras=True).items():
        if name in HEADERS or (params.__name__, name) in IN_THE_PATH or name == struct.__struct_config__.tag_field:
            continue
        start, period, bound = name.partition("created_at_")
        field = fields.get(f"{start}created_at[{bound}]" if period else name)
        if field is None:
            yield f"{path}.{name}: not read"
            continue
        theirs, ours = list(members(kind)), list(members(field.type))
        if type(None) in theirs and type(None) not in ours and (params.__name__, name) not in NEVER_SENT_AS_NULL:
            yield f"{path}.{name}: may be null"
        if literals(ours) and literals(theirs) - literals(ours):
            yield f"{path}.{name}: {literals(theirs) - literals(ours)} not read"
        for each in theirs:
            if is_typeddict(each) and each.__name__ not in REFUSED_WHOLE | READ_AS_JSON:
                inner = struct_for(each, ours)
                where = f"{path}.{name}<{each.__name__}>"
                yield from differences(each, inner, where) if inner else iter([f"{where}: not read"])


@pytest.mark.parametrize("name", READ)
def test_all_that_the_sdk_can_send_is_read(name: str) -> None:
    module, _, params = name.rpartition(".")
    sent = getattr(import_module(f"anthropic.types.beta.{module}"), params)
    assert list(differences(sent, READ[name], params)) == []
