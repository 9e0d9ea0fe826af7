"""Strict reading of what clients send: JSON bodies and query strings, into the structs that say what is allowed.

Nothing unknown passes. Every refusal is an `Invalid` whose message begins with the dotted path of the field at fault
(`tools.0.configs.1.name: ...`). Rules that relate fields to one another are the domain's business.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Annotated, Any, NamedTuple, TypeAlias, TypeVar, get_origin
from urllib.parse import parse_qsl

import msgspec

from corral.errors import Invalid

T = TypeVar("T", bound=msgspec.Struct)

NESTING_MAX = 100
"""How deep a body may nest. Far below the interpreter's own limit, so whatever got in can also be written out."""
QUERY_PARAMETERS_MAX = 1_000
SHOWN_CHARACTERS_MAX = 200

Positive: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]

_AT = re.compile(r"(?P<what>.*) - at (?:`key` in )?`\$(?P<path>[^`]*)`", re.DOTALL)
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<field>.*)`", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(?P<field>.*)`", re.DOTALL)
_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]")


class NoQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An endpoint without query parameters."""


class NoBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An endpoint without a body; an empty object is as good as none."""


def body(raw: bytes, shape: type[T]) -> T:
    """The JSON object in `raw`. Raises `Invalid`."""
    if not raw.strip():
        raise Invalid("body: a JSON object is required")
    try:
        value: T = _decoder(shape).decode(raw)
    except msgspec.ValidationError as error:
        raise Invalid(explain(error)) from error
    except msgspec.DecodeError as error:
        raise Invalid(f"body: not valid JSON: {str(error)[:SHOWN_CHARACTERS_MAX]}") from error
    except UnicodeDecodeError as error:
        raise Invalid("body: not valid UTF-8") from error
    except RecursionError as error:
        raise Invalid(f"body: nested deeper than {NESTING_MAX} levels") from error
    if _NUL.search(raw):
        raise Invalid("body: text must not contain the NUL character (\\u0000)")
    if raw.count(b"[") + raw.count(b"{") > NESTING_MAX and _depth(raw) > NESTING_MAX:
        raise Invalid(f"body: nested deeper than {NESTING_MAX} levels")
    return value


@cache
def _decoder(shape: type[msgspec.Struct]) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(shape)


def _depth(raw: bytes) -> int:
    """The deepest level of valid JSON, or some level beyond the limit."""
    depth = deepest = 0
    for bracket in _STRING.sub(b"", raw).translate(None, _NOT_BRACKETS):
        depth += 1 if bracket in b"[{" else -1
        deepest = max(deepest, depth)
        if deepest > NESTING_MAX:
            break
    return deepest


def explain(error: msgspec.ValidationError) -> str:
    """The refusal, field first."""
    text = str(error)
    found = _AT.fullmatch(text)
    what, path = (found["what"], found["path"]) if found else (text, "")
    path = re.sub(r"\[(\d+)\]", r".\1", path).replace("[...]", "").lstrip(".")
    for pattern, message in ((_UNKNOWN, "unknown field"), (_MISSING, "field required")):
        if named := pattern.fullmatch(what):
            field = named["field"][:SHOWN_CHARACTERS_MAX]
            return f"{path}.{field}: {message}" if path else f"{field}: {message}"
    what = what if len(what) <= SHOWN_CHARACTERS_MAX else what[:SHOWN_CHARACTERS_MAX] + "…"
    return f"{path or 'body'}: {what[:1].lower()}{what[1:]}"


class _Parameter(NamedTuple):
    name: str
    repeats: bool


@cache
def _parameters(shape: type[msgspec.Struct]) -> dict[str, _Parameter]:
    """Parameters by the names they may be sent under: a list is `x` or `x[]`."""
    parameters: dict[str, _Parameter] = {}
    for field in msgspec.structs.fields(shape):
        parameter = _Parameter(field.encode_name, get_origin(field.type) is tuple)
        parameters[parameter.name] = parameter
        if parameter.repeats:
            parameters[f"{parameter.name}[]"] = parameter
    return parameters


def query(raw: bytes, shape: type[T]) -> T:
    """The query string in `raw`. Raises `Invalid`; `beta` is let through, because older clients send it."""
    try:
        pairs = parse_qsl(
            raw.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=QUERY_PARAMETERS_MAX
        )
    except UnicodeError as error:
        raise Invalid("query: not valid UTF-8") from error
    except ValueError as error:
        raise Invalid(f"query: more than {QUERY_PARAMETERS_MAX} parameters") from error
    values = _collect(pairs, _parameters(shape))
    try:
        return msgspec.convert(values, shape, strict=False)
    except msgspec.ValidationError as error:
        raise Invalid(explain(error)) from error


def _collect(pairs: list[tuple[str, str]], parameters: dict[str, _Parameter]) -> dict[str, str | list[str]]:
    values: dict[str, str | list[str]] = {}
    for sent, value in pairs:
        if sent == "beta":
            continue
        parameter = parameters.get(sent)
        if parameter is None:
            raise Invalid(f"{sent[:SHOWN_CHARACTERS_MAX]}: unknown query parameter")
        if "\0" in value:
            raise Invalid(f"{parameter.name}: must not contain the NUL character")
        if parameter.name.startswith("created_at") and not _RFC3339.match(value):
            raise Invalid(f"{parameter.name}: must be an RFC 3339 date and time, such as 2026-01-31T12:00:00Z")
        if not parameter.repeats:
            if parameter.name in values:
                raise Invalid(f"{parameter.name}: given more than once")
            values[parameter.name] = value
            continue
        repeated = values.setdefault(parameter.name, [])
        if isinstance(repeated, list):
            repeated.append(value)
    return values
