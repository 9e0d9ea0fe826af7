"""Checks the arguments a model gave a tool, and says what is wrong in words for that model.

A tool's arguments are a msgspec Struct; `parse` makes one from JSON, a little forgiving (`"30"` will do for 30)
because small models are not exact. What the values mean is the tool's and the sandbox's business.
"""

from __future__ import annotations

import re
from typing import TypeVar

import msgspec

from corral.domain.content import JsonObject
from corral.errors import Invalid
from corral.interfaces.sandbox import SandboxCall, SandboxOperation


class Arguments(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Base of every tool's arguments."""


A = TypeVar("A", bound=Arguments)

MISSING = re.compile(r"Object missing required field `(?P<name>[^`]+)`")
UNKNOWN = re.compile(r"Object contains unknown field `(?P<name>[^`]+)`")
PLACE = re.compile(r"(?P<problem>.*) - at `\$\.(?P<name>[^`]+)`", re.DOTALL)


def parse(tool: str, kind: type[A], arguments: JsonObject) -> A:
    """The arguments as a `kind`; raises `Invalid`."""
    try:
        return msgspec.convert(dict(arguments), kind, strict=False)
    except msgspec.ValidationError as error:
        raise Invalid(f"{tool}: {_explain(str(error))}") from error


def require(tool: str, **values: str | None) -> None:
    """Raise `Invalid` when one of the texts is empty."""
    for name, value in values.items():
        if not value:
            raise Invalid(f"{tool}: {name} is required")


def to_call(call_id: str, operation: SandboxOperation, arguments: Arguments) -> SandboxCall:
    """The call that carries these arguments into the sandbox."""
    return SandboxCall(call_id=call_id, operation=operation, arguments=msgspec.to_builtins(arguments))


def _explain(problem: str) -> str:
    if found := MISSING.match(problem):
        return f"{found['name']} is required"
    if found := UNKNOWN.match(problem):
        return f"there is no argument {found['name']}"
    if found := PLACE.fullmatch(problem):
        return f"{found['name']}: {_plain(found['problem'])}"
    return _plain(problem)


def _plain(problem: str) -> str:
    return problem.replace("`", "").replace(" | null", "").lower()
