"""Compares raw JSON with the official SDK's types, strictly.

The SDK itself parses leniently: unknown fields, missing fields and wrong literals all pass. Here none does. A field
may be absent only where the contract says so, and those places are listed.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any, cast

from pydantic import BaseModel, TypeAdapter

MAY_BE_ABSENT = {
    ("BetaManagedAgentsAgentToolUseEvent", "evaluation"),
    ("BetaManagedAgentsAgentToolUseEvent", "session_thread_id"),
    ("BetaManagedAgentsAgentMCPToolUseEvent", "evaluation"),
    ("BetaManagedAgentsAgentMCPToolUseEvent", "session_thread_id"),
    ("BetaManagedAgentsAgentCustomToolUseEvent", "session_thread_id"),
    ("BetaManagedAgentsUserToolConfirmationEvent", "session_thread_id"),
    ("BetaManagedAgentsUserCustomToolResultEvent", "session_thread_id"),
    ("BetaManagedAgentsSessionUpdatedEvent", "title"),
    ("BetaManagedAgentsSessionUpdatedEvent", "metadata"),
    ("BetaManagedAgentsSessionUpdatedEvent", "agent"),
    ("BetaManagedAgentsSessionUpdatedEvent", "budget"),
    ("BetaManagedAgentsWebSearchToolConfig", "allowed_domains"),
    ("BetaManagedAgentsWebSearchToolConfig", "blocked_domains"),
    ("BetaManagedAgentsWebSearchToolConfig", "user_location"),
    ("BetaManagedAgentsWebFetchToolConfig", "allowed_domains"),
    ("BetaManagedAgentsWebFetchToolConfig", "blocked_domains"),
    ("BetaManagedAgentsWebFetchToolConfig", "max_content_tokens"),
}


THE_CLIENTS_OWN = {"BetaManagedAgentsCustomToolInputSchema"}
"""Echoed as it was sent."""


def problems(raw: object, shape: Any) -> list[str]:
    """What is wrong with the JSON, as the SDK's type has it."""
    parsed = _adapter(shape).validate_python(raw)
    return list(_differences(parsed, type(parsed).__name__))


@cache
def _adapter(shape: Any) -> TypeAdapter[Any]:
    return TypeAdapter(shape)


def assert_is(raw: object, shape: Any) -> None:
    """The JSON is exactly of the SDK's type."""
    found = problems(raw, shape)
    assert not found, "\n".join(found)


def _differences(value: object, path: str) -> Iterator[str]:
    if isinstance(value, BaseModel):
        kind = type(value).__name__
        if kind in THE_CLIENTS_OWN:
            return
        for name in value.model_extra or {}:
            yield f"{path}.{name}: {kind} has no such field"
        for name in type(value).model_fields:
            if name not in value.model_fields_set and (kind, name) not in MAY_BE_ABSENT:
                yield f"{path}.{name}: {kind} should have this field"
        for name in value.model_fields_set:
            yield from _differences(getattr(value, name), f"{path}.{name}")
    elif isinstance(value, list):
        for index, item in enumerate(cast(list[object], value)):
            yield from _differences(item, f"{path}.{index}")
    elif isinstance(value, dict):
        for key, item in cast(dict[str, object], value).items():
            yield from _differences(item, f"{path}.{key}")
