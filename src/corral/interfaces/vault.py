"""How secrets are kept, and what a session's vaults hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from corral.domain.credential import Credential
from corral.domain.credential_validation import Validation


class Sealing(Protocol):
    """Seals secrets with a key of their vault, which is itself sealed by a master key. Pure computation."""

    def new_key(self, vault_id: str) -> bytes:
        """A data key for a vault, sealed."""
        ...

    def seal(self, vault_id: str, key: bytes, data: bytes, about: str) -> bytes:
        """Seal `data` with the vault's `key`, bound to what it is `about`. Raises `MachineUnfit`."""
        ...

    def mark(self, vault_id: str, key: bytes, about: str) -> bytes:
        """32 bytes that depend on the vault's key and on what they are `about`. Raises `MachineUnfit`."""
        ...

    def open(self, vault_id: str, key: bytes, sealed: bytes, about: str) -> bytes:
        """What was sealed. Raises `MachineUnfit` when the keys are others, or it was sealed about something else."""
        ...


class Bearer(NamedTuple):
    """A token for an MCP server. Never logged: its text is a star."""

    token: str
    vault_id: str
    credential_id: str

    def __repr__(self) -> str:
        return f"Bearer({self.credential_id}, ***)"


class Variable(NamedTuple):
    """A secret that stands in a sandbox's environment as a placeholder. Never logged: its text is a star."""

    credential: Credential
    secret: str
    mark: bytes
    """20 bytes that are this variable's in this session, the same on every worker and whatever its secret is; nobody
    can compute them without the vault's key."""

    def __repr__(self) -> str:
        return f"Variable({self.credential.id}, ***)"


class Credentials(Protocol):
    """What the vaults of a session hold, found by use. The first vault in order that has a match wins."""

    async def bearer(
        self, workspace_id: str, vault_ids: Sequence[str], url: str, *, rejected: Bearer | None = None
    ) -> Bearer | None:
        """The token for the MCP server at `url`, refreshed if it is about to expire or was `rejected` (401); None when
        no vault has one, or when it was rejected and cannot be had anew. Raises `CredentialFailed`."""
        ...

    async def variables(self, workspace_id: str, vault_ids: Sequence[str], session_id: str) -> Sequence[Variable]:
        """The environment variables, one for each name. Raises `MachineUnfit` when they cannot be opened."""
        ...

    async def validate(self, workspace_id: str, vault_id: str, credential_id: str) -> Validation:
        """Try an `mcp_oauth` credential on its server. Raises `NotFound`, and `Invalid` for another type."""
        ...
