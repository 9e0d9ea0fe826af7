"""The secrets that a session's sandbox holds placeholders of, read from its vaults whenever they are needed.

What replaces a placeholder by its secret is outside of every sandbox; here is only who gets which.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import anyio
import structlog

from corral.domain import event as ev
from corral.domain.environment import Recipe
from corral.domain.placeholder import Substitution, substitution
from corral.domain.session import Session
from corral.errors import MachineUnfit, SandboxError, SandboxUnavailable, Unavailable
from corral.interfaces.sandbox import Sandboxes
from corral.interfaces.vault import Credentials

log = structlog.get_logger(__name__)

UNREACHABLE = (
    "The credential for `{name}` lists hosts that the session's environment does not allow: {hosts}. It is not sent "
    "there. Whoever manages the environment can add them to `networking.allowed_hosts`."
)


class Entrusting:
    """Reads them. Without `credentials` there are none, as in a harness that no server put together."""

    def __init__(self, credentials: Credentials | None) -> None:
        self._credentials = credentials

    async def secrets_of(self, session: Session) -> Sequence[Substitution]:
        """As they are now. Raises `SandboxUnavailable` when they cannot be opened."""
        if self._credentials is None or not session.vault_ids:
            return ()
        try:
            found = await self._credentials.variables(session.workspace_id, session.vault_ids, session.id)
        except MachineUnfit as error:
            raise SandboxUnavailable(f"The secrets of the session's vaults cannot be used: {error.message}") from error
        return [substitution(each.credential, each.secret, each.mark) for each in found]

    async def keep(
        self, sandboxes: Sandboxes, session: Callable[[], Session], opened: Callable[[], bool], seconds: float
    ) -> None:
        """Let what changes in the vaults reach a sandbox that is open, also during a long call. Never ends."""
        while session().vault_ids:
            await anyio.sleep(seconds)
            if not opened():
                continue
            try:
                sandboxes.entrust(session().id, await self.secrets_of(session()))
            except (SandboxError, Unavailable) as error:
                log.warning("secrets_unavailable", session_id=session().id, reason=error.message)


NOTHING = Entrusting(None)


def unreachable(sandboxes: Sandboxes, recipe: Recipe, secret: Substitution) -> ev.ErrorObject | None:
    """What to tell when the credential is for hosts that the environment blocks."""
    blocked = sandboxes.out_of_reach(recipe, secret.hosts or ())
    if not blocked:
        return None
    return ev.ErrorObject(
        type="credential_host_unreachable_error",
        message=UNREACHABLE.format(name=secret.name, hosts=", ".join(blocked)),
        retry_status=ev.Retrying(),  # the session goes on, and its next turn looks again
        credential_id=secret.credential_id,
        vault_id=secret.vault_id,
    )
