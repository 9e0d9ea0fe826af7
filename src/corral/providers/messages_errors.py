"""What goes wrong between us and a Messages API server, told in our own errors.

`messages_wire.py` and its providers use it. The texts come from the server, shortened, with our own keys blanked out:
a server may repeat a key it was sent. Headers are never quoted.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, cast

from corral.errors import (
    ContextOverflow,
    ProviderBilling,
    ProviderError,
    ProviderOverloaded,
    ProviderRateLimited,
    ProviderRefused,
    ProviderUnreachable,
)
from corral.providers.messages_clouds import BY_EXCEPTION

if TYPE_CHECKING:
    from anthropic import APIStatusError

TEXT_CHARS_MAX = 500

BY_TYPE: Mapping[str, type[ProviderError]] = {
    "overloaded_error": ProviderOverloaded,
    "rate_limit_error": ProviderRateLimited,
    "api_error": ProviderUnreachable,
    "timeout_error": ProviderUnreachable,
    "billing_error": ProviderBilling,
    "request_too_large": ContextOverflow,
    "exceed_context_size_error": ContextOverflow,
    "invalid_request_error": ProviderRefused,
    "authentication_error": ProviderRefused,
    "permission_error": ProviderRefused,
    "not_found_error": ProviderRefused,
}

BY_STATUS: Mapping[int, type[ProviderError]] = {
    402: ProviderBilling,
    408: ProviderUnreachable,
    413: ContextOverflow,
    425: ProviderUnreachable,
    429: ProviderRateLimited,
    503: ProviderOverloaded,
    529: ProviderOverloaded,
}

OVERFLOW = re.compile(
    r"prompt is too long|context (?:window|length|size)|exceeds? the (?:available|maximum) context|too many tokens",
    re.I,
)
NO_CREDIT = re.compile(r"credit balance is too low|insufficient (?:credits?|funds|quota)", re.I)


def http_error(error: APIStatusError, secrets: Collection[str]) -> ProviderError:
    """The error for an HTTP answer that is not a success."""
    kind, text = body_error(error.body)
    by_status = BY_STATUS.get(error.status_code, ProviderUnreachable if error.status_code >= 500 else ProviderRefused)
    family = _reworded(by_status, kind, text)
    words = f"The model server answered HTTP {error.status_code}{f': {text}' if text else ''}"
    return family(clean(words, secrets), retry_after_seconds=retry_after_seconds(error.response.headers))


def stream_error(body: object, secrets: Collection[str]) -> ProviderError:
    """The error for an `error` event, or for an error body sent in place of a stream."""
    kind, text = body_error(body)
    family = _reworded(BY_TYPE.get(kind) or BY_EXCEPTION.get(kind, ProviderUnreachable), kind, text)
    return family(clean(f"The model server broke off: {text or kind or 'no reason given'}", secrets))


def body_error(body: object) -> tuple[str, str]:
    """`error.type` and `error.message` of an error body, empty where there are none."""
    if not isinstance(body, Mapping):
        return "", ""
    whole = cast("Mapping[str, object]", body)
    error = whole.get("error")
    if isinstance(error, str):
        return "", error
    if not isinstance(error, Mapping):
        return "", str(whole.get("message") or "")  # as Bedrock writes them
    fields = cast("Mapping[str, object]", error)
    return str(fields.get("type") or ""), str(fields.get("message") or "")


def unreachable(error: Exception, secrets: Collection[str]) -> ProviderUnreachable:
    """A connection that could not be made, or broke."""
    reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    cause = f" ({type(error.__cause__).__name__})" if error.__cause__ else ""
    return ProviderUnreachable(clean(f"The model server cannot be reached. {reason}{cause}", secrets))


def clean(text: str, secrets: Collection[str]) -> str:
    """`text` without the secrets, on one line and of bounded length."""
    for secret in secrets:
        text = text.replace(secret, "***")
    text = " ".join(text.split())
    return text if len(text) <= TEXT_CHARS_MAX else text[: TEXT_CHARS_MAX - 1] + "…"


def retry_after_seconds(headers: Mapping[str, str]) -> float | None:
    """How long the server asks us to wait, in any of the three spellings."""
    try:
        if milliseconds := headers.get("retry-after-ms"):
            return max(0.0, float(milliseconds) / 1000)
        value = headers.get("retry-after") or ""
        if re.fullmatch(r"\s*[\d.]+\s*", value):
            return float(value)
        if not value or not headers.get("date"):
            return None
        # A date is relative to the server's own clock, which its answer tells; ours may differ.
        wait = parsedate_to_datetime(value) - parsedate_to_datetime(headers["date"])
        return max(0.0, wait.total_seconds())
    except (ValueError, TypeError):
        return None


def _reworded(family: type[ProviderError], kind: str, text: str) -> type[ProviderError]:
    """Servers tell overflow and missing credit by words or types under all sorts of statuses."""
    if family in (ProviderRateLimited, ProviderOverloaded, ProviderBilling):
        return family
    if kind == "exceed_context_size_error" or OVERFLOW.search(text):
        return ContextOverflow
    if kind == "billing_error" or NO_CREDIT.search(text):
        return ProviderBilling
    return family
