"""The installed SDK, the table of what is served of it, and the routes: all three say the same."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Iterator
from typing import Any, get_args

import anthropic
import pytest
from anthropic.types.beta.sessions import BetaManagedAgentsSessionEvent, BetaManagedAgentsStreamSessionEvents

from corral.api.routes import ENDPOINTS
from corral.domain.event import AnyEvent
from corral.domain.preview import EventDelta, EventStart
from tests.sdk_surface import COMPOSED, EVENTS_REFUSED, EVENTS_SERVED, OUTSIDE, REFUSED, SERVED, WATCHED

OURS = {"/healthz", "/metrics"}
"""Endpoints that no SDK knows."""


def methods_of(resource: Any, path: str = "") -> Iterator[str]:
    """Dotted names of all methods of a client's resources."""
    for name in dir(resource):
        attribute: object = inspect.getattr_static(resource, name)
        if name.startswith("_") or name in ("with_raw_response", "with_streaming_response"):
            continue
        if is_resource(attribute) and is_watched(f"{path}{name}"):
            yield from methods_of(getattr(resource, name), f"{path}{name}.")
        elif path and inspect.isfunction(attribute) and is_watched(f"{path}{name}"):
            yield f"{path}{name}"


def is_resource(attribute: object) -> bool:
    return isinstance(attribute, functools.cached_property)


def is_watched(name: str) -> bool:
    """Whether the name is ours to decide on, or on the way to one that is."""
    if any(f"{watched}.".startswith(f"{name}.") or name.startswith(f"{watched}.") for watched in WATCHED):
        return True
    return not any(name == outside or name.startswith(f"{outside}.") for outside in OUTSIDE)


def installed() -> set[str]:
    clients = (anthropic.Anthropic(api_key="none"), anthropic.AsyncAnthropic(api_key="none"))
    return {method for client in clients for method in methods_of(client)}


def refused() -> set[str]:
    return {f"{resource}.{method}" for resource, each in REFUSED.items() for method in each.methods.split()}


def tags(union: Any) -> set[str]:
    """Values of `type` in a union of events."""
    members = get_args(union) or (union,)
    if hasattr(members[0], "model_fields"):
        return {get_args(member.model_fields["type"].annotation)[0] for member in members if is_model(member)}
    return {name for member in members for name in tags(member)} if get_args(union) else set()


def is_model(member: Any) -> bool:
    return hasattr(member, "model_fields")


def test_every_method_of_the_sdk_is_served_or_refused_by_decision() -> None:
    decided = SERVED.keys() | COMPOSED.keys() | refused()
    assert installed() - decided == set(), "new in the SDK: decide in tests/sdk_surface.py"
    assert decided - installed() == set(), "no longer in the SDK"


def test_no_method_is_both_served_and_refused() -> None:
    assert (SERVED.keys() | COMPOSED.keys()) & refused() == set()


def test_what_is_served_is_what_the_routes_say() -> None:
    routes = {f"{each.method} {re.sub(r'{[^}]*}', '{}', each.path)}" for each in ENDPOINTS if each.path not in OURS}
    assert set(SERVED.values()) - routes == set(), "said to be served, but there is no such route"
    assert routes - set(SERVED.values()) == set(), "served: move its methods in tests/sdk_surface.py"


@pytest.mark.parametrize("union", [BetaManagedAgentsSessionEvent, BetaManagedAgentsStreamSessionEvents])
def test_every_event_of_the_sdk_is_served_or_refused_by_decision(union: Any) -> None:
    known = tags(union)
    assert len(known) > 40
    assert known - (EVENTS_SERVED | EVENTS_REFUSED.keys()) == set(), "new in the SDK: decide in tests/sdk_surface.py"
    if union is BetaManagedAgentsStreamSessionEvents:
        assert (EVENTS_SERVED | EVENTS_REFUSED.keys()) - known == set(), "no longer in the SDK"


def test_the_events_that_are_served_are_those_of_the_domain() -> None:
    events = (*get_args(AnyEvent), EventStart, EventDelta)
    assert {event.__struct_config__.tag for event in events} == EVENTS_SERVED
    assert EVENTS_SERVED & EVENTS_REFUSED.keys() == set()
