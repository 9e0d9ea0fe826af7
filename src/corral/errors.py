"""Every error Corral raises on purpose, in one tree.

This file is not about HTTP: `api/errors.py` maps the families below to status codes, and `harness/` maps
provider and sandbox errors to `session.error` events and error tool results. An exception that is not in this
tree is a bug.

    CorralError
    ├── Invalid               the caller's request is malformed or breaks a rule            (400)
    │   ├── TooLarge          the body is over its limit                                    (413)
    │   └── PreconditionFailed a lease or version given by the caller does not hold         (412)
    ├── Unauthenticated       no key, or a wrong one                                        (401)
    ├── Denied                the key may not do this                                       (403)
    ├── NotFound              no such thing in this workspace                               (404)
    ├── Conflict              the thing exists or has moved on                              (409)
    ├── RateLimited           over the rate; says after how many seconds to come back       (429)
    ├── Unavailable           try again later                                               (529)
    │   ├── Elsewhere         another machine has what is needed                            (529, unless it is asked)
    │   ├── OutcomeUnknown    it may have happened all the same: look, and then try again   (529, not to be repeated)
    │   └── StaleEpoch        another worker advances this session now; the harness stops   (never on the wire)
    ├── MachineUnfit          this machine cannot run what was asked; says what to do       (start-up, `doctor`)
    ├── ProviderError         the model request failed
    │   ├── ProviderOverloaded · ProviderRateLimited · ProviderUnreachable                  (worth a retry)
    │   └── ProviderRefused · ProviderBilling · ContextOverflow                             (not worth one)
    ├── CredentialFailed      a credential of a vault could not be refreshed
    └── SandboxError          a sandbox could not do its work
        ├── SandboxUnavailable  it could not be made, and why
        │   └── PackagesFailed  its environment's packages could not be installed         (also a `session.error`)
        └── SandboxLost         it died, and the call may or may not have run

A class's docstring is its default message.
"""

from __future__ import annotations

from typing import ClassVar


class CorralError(Exception):
    """Something went wrong."""

    wire_type: ClassVar[str] = "api_error"

    def __init__(self, message: str | None = None, *, error_code: str | None = None) -> None:
        self.message = message or (type(self).__doc__ or "").strip()
        self.error_code = error_code
        """The stable machine code of `error.details.error_code`, where the contract documents one."""
        super().__init__(self.message)


class Invalid(CorralError):
    """The request is invalid."""

    wire_type = "invalid_request_error"


class TooLarge(Invalid):
    """The request body is too large."""

    wire_type = "request_too_large"


class PreconditionFailed(Invalid):
    """The precondition given with the request does not hold."""


class Unauthenticated(CorralError):
    """The API key is missing or invalid. Send it as `Authorization: Bearer <key>` or `x-api-key`."""

    wire_type = "authentication_error"


class Denied(CorralError):
    """This key may not do that."""

    wire_type = "permission_error"


class NotFound(CorralError):
    """Not found."""

    wire_type = "not_found_error"


class Conflict(CorralError):
    """The resource was changed by someone else; read it again and retry."""

    wire_type = "conflict_error"


class RateLimited(CorralError):
    """Too many requests."""

    wire_type = "rate_limit_error"

    def __init__(self, message: str | None = None, *, retry_after_seconds: float) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class Unavailable(CorralError):
    """The server cannot do this right now; try again shortly."""

    wire_type = "overloaded_error"


class Elsewhere(Unavailable):
    """The session's sandbox is on another machine; ask again when it rests."""


class OutcomeUnknown(Unavailable):
    """The database was lost in the middle of this write, and it is unknown whether it happened. Look before you repeat
    the request."""


class StaleEpoch(Unavailable):
    """Another worker has taken over this session."""


class MachineUnfit(CorralError):
    """This machine cannot run what was asked. `corral doctor` explains."""


class ProviderError(CorralError):
    """The model request failed."""

    session_error_type: ClassVar[str] = "model_request_failed_error"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str | None = None, *, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class ProviderOverloaded(ProviderError):
    """The model server is overloaded."""

    session_error_type = "model_overloaded_error"
    retryable = True


class ProviderRateLimited(ProviderError):
    """The model server limits our rate."""

    session_error_type = "model_rate_limited_error"
    retryable = True


class ProviderUnreachable(ProviderError):
    """The model server cannot be reached, or broke off in the middle of its answer."""

    retryable = True


class ProviderRefused(ProviderError):
    """The model server rejected the request."""


class ProviderBilling(ProviderError):
    """The model server refused for a billing reason."""

    session_error_type = "billing_error"


class ContextOverflow(ProviderError):
    """The conversation does not fit into the model's window."""


class CredentialFailed(CorralError):
    """The credential could not be refreshed."""


class SandboxError(CorralError):
    """The sandbox failed."""


class SandboxUnavailable(SandboxError):
    """The sandbox could not be started."""


class PackagesFailed(SandboxUnavailable):
    """The environment's packages could not be installed."""


class SandboxLost(SandboxError):
    """The sandbox stopped while the call was running; whether it took effect is unknown."""
