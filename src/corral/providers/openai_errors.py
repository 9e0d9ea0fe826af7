"""What goes wrong between us and an OpenAI-style server, told in our own errors.

Servers agree on little here: the error may be an object, a string or the body itself; its `code` a word or a number.
The words that mean overflow or no credit, and the cleaning of texts, are those of `messages_errors.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, NamedTuple, cast

from corral.errors import (
    ContextOverflow,
    ProviderBilling,
    ProviderError,
    ProviderOverloaded,
    ProviderRateLimited,
    ProviderRefused,
    ProviderUnreachable,
)
from corral.providers.messages_errors import BY_STATUS, NO_CREDIT, OVERFLOW, clean, retry_after_seconds

if TYPE_CHECKING:
    from openai import APIStatusError

BY_WORD: Mapping[str, type[ProviderError]] = {
    "context_length_exceeded": ContextOverflow,
    "exceed_context_size_error": ContextOverflow,
    "insufficient_quota": ProviderBilling,
    "billing_hard_limit_reached": ProviderBilling,
    "billing_not_active": ProviderBilling,
    "rate_limit_exceeded": ProviderRateLimited,
    "rate_limit_error": ProviderRateLimited,
    "overloaded_error": ProviderOverloaded,
    "server_overloaded": ProviderOverloaded,
    "slow_down": ProviderOverloaded,
    "unavailable_error": ProviderOverloaded,
    "server_error": ProviderUnreachable,
    "invalid_request_error": ProviderRefused,
    "invalid_prompt": ProviderRefused,
    "invalid_api_key": ProviderRefused,
    "authentication_error": ProviderRefused,
    "permission_error": ProviderRefused,
    "not_found_error": ProviderRefused,
    "model_not_found": ProviderRefused,
    "BadRequestError": ProviderRefused,
}
"""By `code`, else by `type`."""

DECIDED = frozenset({ContextOverflow, ProviderBilling, ProviderRateLimited, ProviderOverloaded})
"""Families that a word settles, whatever the status says: missing credit comes as a 429."""


class Told(NamedTuple):
    """What an error body says."""

    words: tuple[str, ...]
    """Its `code` and `type`, where they are words."""
    status: int | None
    """Its `code`, where it is a number."""
    text: str


def http_error(error: APIStatusError, secrets: Collection[str]) -> ProviderError:
    """The error for an HTTP answer that is not a success."""
    told = told_by(error.body)
    family = _family(told._replace(status=error.status_code), by_status_first=True)
    words = f"The model server answered HTTP {error.status_code}{f': {told.text}' if told.text else ''}"
    return family(clean(words, secrets), retry_after_seconds=retry_after_seconds(error.response.headers))


def stream_error(body: object, secrets: Collection[str]) -> ProviderError:
    """The error for one inside a stream, or for an error body sent in place of a stream."""
    told = told_by(body)
    reason = told.text or next(iter(told.words), "no reason given")
    return _family(told, by_status_first=False)(clean(f"The model server broke off: {reason}", secrets))


def told_by(body: object) -> Told:
    """Read an error body, whole or already taken out of its `error`."""
    if isinstance(body, str):
        return Told((), None, "" if body.lstrip().startswith("<") else body)
    if not isinstance(body, Mapping):
        return Told((), None, "")
    fields = cast("Mapping[str, object]", body)
    if fields.get("error"):
        return told_by(fields["error"])
    code, kind = fields.get("code"), fields.get("type")
    words = tuple(word for word in (code, kind) if isinstance(word, str) and word)
    text = fields.get("message") or fields.get("detail") or ""
    return Told(words, code if isinstance(code, int) else None, str(text))


def _family(told: Told, *, by_status_first: bool) -> type[ProviderError]:
    by_word = next((BY_WORD[word] for word in told.words if word in BY_WORD), None)
    by_status = None if told.status is None else _by_status(told.status)
    if by_word in DECIDED:
        return by_word
    first, second = (by_status, by_word) if by_status_first else (by_word, by_status)
    family = first or second or ProviderUnreachable
    if family in DECIDED:
        return family
    if OVERFLOW.search(told.text):
        return ContextOverflow
    return ProviderBilling if NO_CREDIT.search(told.text) else family


def _by_status(status: int) -> type[ProviderError]:
    return BY_STATUS.get(status, ProviderUnreachable if status >= 500 else ProviderRefused)
