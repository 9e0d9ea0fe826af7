"""Families of errors as HTTP: status, headers and the envelope that every error is sent in.

`{"type": "error", "error": {"type", "message", "details": {"error_code"}}, "request_id"}`. What is not one of the
families is a bug, and its text stays on the server.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import msgspec
from msgspec import UNSET, UnsetType

from corral import errors

HTTP_STATUS: tuple[tuple[type[errors.CorralError], int], ...] = (
    (errors.TooLarge, 413),
    (errors.PreconditionFailed, 412),
    (errors.Invalid, 400),
    (errors.Unauthenticated, 401),
    (errors.Denied, 403),
    (errors.NotFound, 404),
    (errors.Conflict, 409),
    (errors.RateLimited, 429),
    (errors.Unavailable, 529),
)
"""The first family that an error belongs to counts."""

RETRY_AFTER_SECONDS = 1


class MethodNotAllowed(errors.Invalid):
    """This method is not allowed here."""

    def __init__(self, method: str, allowed: tuple[str, ...]) -> None:
        super().__init__(f"Method {method} is not allowed here; use {' or '.join(allowed)}.")
        self.allowed = allowed


class ErrorDetails(msgspec.Struct, frozen=True, kw_only=True):
    """The stable machine code."""

    error_code: str


class ErrorObject(msgspec.Struct, frozen=True, kw_only=True):
    """What went wrong."""

    type: str
    message: str
    details: ErrorDetails | UnsetType = UNSET


class ErrorEnvelope(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="error"):
    """Every error response, and the last frame of a stream that failed."""

    error: ErrorObject
    request_id: str


class ErrorResponse(NamedTuple):
    """An error, ready to send."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes


def is_bug(error: Exception) -> bool:
    """Whether the error is none of the families that clients are told about."""
    return not any(isinstance(error, family) for family, _ in HTTP_STATUS)


def envelope(error: Exception, request_id: str) -> bytes:
    """The error's JSON."""
    if not isinstance(error, errors.CorralError) or is_bug(error):
        shown = ErrorObject(type="api_error", message="Internal server error.")
    else:
        details = UNSET if error.error_code is None else ErrorDetails(error_code=error.error_code)
        shown = ErrorObject(type=error.wire_type, message=error.message, details=details)
    return msgspec.json.encode(ErrorEnvelope(error=shown, request_id=request_id))


def response(error: Exception, request_id: str) -> ErrorResponse:
    """The error as an HTTP response."""
    status = next((status for family, status in HTTP_STATUS if isinstance(error, family)), 500)
    headers: list[tuple[bytes, bytes]] = [(b"content-type", b"application/json")]
    match error:
        case MethodNotAllowed(allowed=allowed):
            status = 405
            headers.append((b"allow", ", ".join(allowed).encode()))
        case errors.Conflict():
            # Clients repeat a 409 by themselves, and a conflict does not go away by that.
            headers.append((b"x-should-retry", b"false"))
        case errors.RateLimited(retry_after_seconds=seconds):
            headers.append((b"retry-after", str(max(1, math.ceil(seconds))).encode()))
        case errors.OutcomeUnknown():
            # Nothing tells a repeated request from a second one: repeated without a look, it might be done twice.
            headers.append((b"x-should-retry", b"false"))
        case errors.Unavailable():
            headers.append((b"retry-after", str(RETRY_AFTER_SECONDS).encode()))
        case _:
            pass
    return ErrorResponse(status, tuple(headers), envelope(error, request_id))
