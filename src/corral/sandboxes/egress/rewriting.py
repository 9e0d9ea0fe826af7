"""What the proxy changes in requests that it has allowed: today, credentials of package indexes that it adds.

The one place where something that the inside must not hold is put into what it sends, keyed by the host that it goes
to. It is asked after every check and sees only requests that will be sent.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from corral.domain.egress import EgressPolicy
from corral.sandboxes.egress.line import Header
from corral.sandboxes.egress.orders import Credential
from corral.sandboxes.egress.upstream import Origin

READING = (b"GET", b"HEAD")


class Rewriting:
    """Adds what is kept outside."""

    def __init__(self, credentials: Iterable[Credential]) -> None:
        self._authorizations = {
            Origin(each.host, each.port, each.tls): each.authorization.encode("ascii") for each in credentials
        }

    def headers(self, origin: Origin, policy: EgressPolicy, method: bytes, headers: Sequence[Header]) -> list[Header]:
        """The headers to send. Only where the policy names the host as a package manager's, and nothing is given.

        Only to read: who installs packages need not publish any, and an answer to TRACE would hold what was added."""
        authorization = self._authorizations.get(origin)
        named = method in READING and any(each.covers(origin.host, origin.port) for each in policy.endpoints)
        if authorization is None or not named or any(name == b"authorization" for name, _ in headers):
            return list(headers)
        return [*headers, (b"authorization", authorization)]
