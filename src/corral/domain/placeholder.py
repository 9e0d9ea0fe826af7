"""A secret that stands in a sandbox as a placeholder: what the placeholder is, and where the secret takes its place.

Pure decisions. The proxy in `sandboxes/egress` does the replacing, and `vaults/` knows the secrets.

Source: the API's public documentation.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from corral.domain.credential import Credential, EnvironmentVariable
from corral.domain.credential_params import ListedHosts
from corral.domain.egress import as_address, pattern

PLACEHOLDER_BEGINS = "corral-secret-"
MARK_BYTES = 20


class Substitution(msgspec.Struct, frozen=True, kw_only=True):
    """One secret of one session. Never logged: its text is stars."""

    name: str
    """Of the environment variable."""
    placeholder: str
    secret: str
    hosts: tuple[str, ...] | None
    """Normalised names, exact or `*.` and a name; None for every host that the environment allows."""
    header: bool
    body: bool
    credential_id: str
    vault_id: str

    def __repr__(self) -> str:
        return f"Substitution({self.name}, {self.credential_id}, ***)"

    def permits(self, host: str) -> bool:
        """Whether the secret may go to this normalised host, if the environment allows that at all."""
        return self.hosts is None or any(covers(each, host) for each in self.hosts)


def placeholder(mark: bytes) -> str:
    """The text that stands for a secret: letters, digits and dashes, which shells, headers, JSON and URLs let be.

    `mark` is what nobody can guess, `MARK_BYTES` of it."""
    assert len(mark) == MARK_BYTES, "160 bits"
    return PLACEHOLDER_BEGINS + mark.hex()


def substitution(credential: Credential, secret: str, mark: bytes) -> Substitution:
    """For a credential that is an environment variable."""
    auth = credential.auth
    assert isinstance(auth, EnvironmentVariable), "only these stand in an environment"
    hosts = None
    if isinstance(auth.networking, ListedHosts):
        hosts = tuple(each for each in map(pattern, auth.networking.allowed_hosts) if each is not None)
    return Substitution(
        name=auth.secret_name,
        placeholder=placeholder(mark),
        secret=secret,
        hosts=hosts,
        header=auth.injection_location.header,
        body=auth.injection_location.body,
        credential_id=credential.id,
        vault_id=credential.vault_id,
    )


def variables(substitutions: Sequence[Substitution]) -> dict[str, str]:
    """What stands in the sandbox's environment."""
    return {each.name: each.placeholder for each in substitutions}


def covers(entry: str, host: str) -> bool:
    """Whether an entry, exact or `*.` and a name, means this host; `*.x` does not mean x."""
    if not entry.startswith("*."):
        return entry == host
    return host.endswith(entry[1:]) and as_address(host) is None
