"""What the vaults of a session hold, read when it is needed: so a rotated, archived or new credential is what counts.

Two workers may refresh one token at the same time. The store lets one of them write; the other reads what it wrote.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta
from weakref import WeakValueDictionary

import anyio
import msgspec
import structlog

from corral.config_sections import McpSettings, VaultSettings
from corral.domain import credential as rules
from corral.domain.credential import (
    CREDENTIAL_KIND,
    CREDENTIALS_PER_VAULT_MAX,
    Credential,
    EnvironmentVariable,
    McpOAuth,
    SecretHalf,
    StoredCredential,
)
from corral.domain.credential_validation import ProbedRefresh, Validation
from corral.domain.placeholder import MARK_BYTES
from corral.domain.query import Record, RecordsQuery
from corral.domain.vault import VAULT_KIND, StoredVault
from corral.errors import Conflict, CredentialFailed, Invalid, MachineUnfit, NotFound
from corral.interfaces.clock import Clock
from corral.interfaces.records import Records
from corral.interfaces.vault import Bearer, Sealing, Variable
from corral.vaults import oauth, validation
from corral.vaults.probing import Prober

log = structlog.get_logger(__name__)

DEFAULTS, MCP_DEFAULTS = VaultSettings(), McpSettings()
REFRESH_BEFORE = timedelta(seconds=60)
GONE = "The credential was deleted just now."
ARCHIVED = "The credential was archived just now."
REFRESH_FAILED = "The access token expired and could not be refreshed ({status}); update the credential in its vault."


class _Found(msgspec.Struct, frozen=True):
    record: Record
    key: bytes
    """Of its vault."""
    stored: StoredCredential

    @property
    def credential(self) -> Credential:
        return self.stored.credential


class VaultCredentials:
    """Implements `interfaces.vault.Credentials`, over any `Records`."""

    def __init__(
        self,
        records: Records,
        sealing: Sealing,
        clock: Clock,
        settings: VaultSettings = DEFAULTS,
        mcp: McpSettings = MCP_DEFAULTS,
    ) -> None:
        self._records, self._sealing, self._clock = records, sealing, clock
        self._settings, self._mcp = settings, mcp
        self._prober: Prober | None = None
        self._refreshing: WeakValueDictionary[str, anyio.Lock] = WeakValueDictionary()

    async def close(self) -> None:
        """Drop connections. Idempotent."""
        if self._prober is not None:
            await self._prober.close()
            self._prober = None

    async def bearer(
        self, workspace_id: str, vault_ids: Sequence[str], url: str, *, rejected: Bearer | None = None
    ) -> Bearer | None:
        """See `Credentials.bearer`."""
        key = f"server {rules.normal_url(url)}"
        for vault_id in vault_ids:
            for found in await self._active(workspace_id, vault_id):
                if found.credential.key == key:
                    try:
                        return await self._fresh(found, rejected)
                    except NotFound as error:
                        raise CredentialFailed(GONE) from error
        return None

    async def variables(self, workspace_id: str, vault_ids: Sequence[str], session_id: str) -> Sequence[Variable]:
        """See `Credentials.variables`."""
        variables: dict[str, Variable] = {}
        for vault_id in vault_ids:
            for found in await self._active(workspace_id, vault_id):
                key = found.credential.key
                if isinstance(found.credential.auth, EnvironmentVariable) and key not in variables:
                    # By name and not by id, so that it stays when one credential takes another's place.
                    mark = self._sealing.mark(vault_id, found.key, f"{session_id} {key}")
                    variables[key] = Variable(found.credential, self._secret(found).value, mark[:MARK_BYTES])
        return list(variables.values())

    async def validate(self, workspace_id: str, vault_id: str, credential_id: str) -> Validation:
        """See `Credentials.validate`."""
        found = await self._find(workspace_id, vault_id, credential_id)
        auth = found.credential.auth
        if not isinstance(auth, McpOAuth):
            raise Invalid(f"credential {credential_id} is not of type `mcp_oauth`")
        if found.stored.sealed is None:
            raise Invalid(f"credential {credential_id} is archived, and its secrets are gone")
        secret, refresh = self._secret(found), None
        hidden = (secret.value, secret.refresh_token, secret.client_secret)
        probe = await validation.probe(self._http(), auth.mcp_server_url, secret.value, hidden)
        if probe.unauthorized:
            outcome = await oauth.refresh(self._http(), auth.refresh, secret, self._clock.now())
            refresh = ProbedRefresh(status=outcome.status, http_response=outcome.response)
            if outcome.status == "succeeded":
                bearer = await self._keep(found, outcome)
                probe = await validation.probe(
                    self._http(), auth.mcp_server_url, bearer.token, (outcome.refresh_token, *hidden)
                )
            elif outcome.status == "connect_error" or _may_pass(refresh):
                probe = probe._replace(status="unknown")
        return Validation(
            credential_id=credential_id,
            vault_id=vault_id,
            has_refresh_token=secret.refresh_token is not None,
            status=probe.status,
            validated_at=self._clock.now(),
            mcp_probe=probe.failed,
            refresh=refresh,
        )

    async def _fresh(self, found: _Found, rejected: Bearer | None) -> Bearer | None:
        bearer = self._bearer(found)
        if not self._is_stale(found, bearer, rejected):
            return bearer
        auth = found.credential.auth
        if not isinstance(auth, McpOAuth) or auth.refresh is None:
            return None if rejected is not None and bearer.token == rejected.token else bearer
        async with self._refreshing.setdefault(found.credential.id, anyio.Lock()):
            # Somebody else may have refreshed it while we waited.
            found = await self._find(found.record.workspace_id, found.credential.vault_id, found.credential.id)
            bearer = self._bearer(found)
            if not self._is_stale(found, bearer, rejected):
                return bearer
            outcome = await oauth.refresh(self._http(), auth.refresh, self._secret(found), self._clock.now())
            if outcome.status != "succeeded":
                found = await self._find(found.record.workspace_id, found.credential.vault_id, found.credential.id)
                if not self._is_stale(found, bearer := self._bearer(found), rejected):
                    return bearer  # another process used up the refresh token, and stored what it got
                log.warning("credential_refresh_failed", credential_id=found.credential.id, status=outcome.status)
                if rejected is None and auth.expires_at is not None and auth.expires_at > self._clock.now():
                    return bearer  # it is good for some seconds more
                raise CredentialFailed(REFRESH_FAILED.format(status=outcome.status.replace("_", " ")))
            return await self._keep(found, outcome)

    def _is_stale(self, found: _Found, bearer: Bearer, rejected: Bearer | None) -> bool:
        if rejected is not None and bearer.token == rejected.token:
            return True
        auth = found.credential.auth
        expires_at = auth.expires_at if isinstance(auth, McpOAuth) else None
        return expires_at is not None and expires_at - REFRESH_BEFORE <= self._clock.now()

    async def _keep(self, found: _Found, outcome: oauth.Refreshed) -> Bearer:
        credential, secret = rules.refreshed(
            found.credential,
            self._secret(found),
            token=outcome.token,
            refresh_token=outcome.refresh_token,
            expires_at=outcome.expires_at,
        )
        sealed = self._sealing.seal(credential.vault_id, found.key, msgspec.json.encode(secret), credential.id)
        record = msgspec.structs.replace(
            found.record,
            body=msgspec.json.encode(StoredCredential(credential=credential, sealed=sealed)),
            revision=found.record.revision + 1,
        )
        try:
            await self._records.put(record, expect={record.id: found.record.revision})
        except Conflict:
            # Changed or refreshed by somebody else: what they stored is what counts.
            stored = await self._find(record.workspace_id, credential.vault_id, credential.id)
            return self._bearer(stored)
        return Bearer(outcome.token, credential.vault_id, credential.id)

    async def _active(self, workspace_id: str, vault_id: str) -> Sequence[_Found]:
        try:
            key = await self._key(workspace_id, vault_id)
        except NotFound:
            return ()  # deleted since the session was made
        query = RecordsQuery(
            kind=CREDENTIAL_KIND,
            workspace_id=workspace_id,
            limit=CREDENTIALS_PER_VAULT_MAX,
            parent_id=vault_id,
            include_archived=False,
        )
        return list(_sealed(await self._records.page(query), key))

    async def _find(self, workspace_id: str, vault_id: str, credential_id: str) -> _Found:
        record = await self._records.get(CREDENTIAL_KIND, credential_id, workspace_id)
        if record.parent_id != vault_id:
            raise NotFound(f"Credential {credential_id} was not found.")
        key = await self._key(workspace_id, vault_id)
        return _Found(record, key, msgspec.json.decode(record.body, type=StoredCredential))

    async def _key(self, workspace_id: str, vault_id: str) -> bytes:
        record = await self._records.get(VAULT_KIND, vault_id, workspace_id)
        return msgspec.json.decode(record.body, type=StoredVault).key

    def _bearer(self, found: _Found) -> Bearer:
        return Bearer(self._secret(found).value, found.credential.vault_id, found.credential.id)

    def _secret(self, found: _Found) -> SecretHalf:
        if found.stored.sealed is None:
            raise CredentialFailed(ARCHIVED)
        credential = found.credential
        try:
            data = self._sealing.open(credential.vault_id, found.key, found.stored.sealed, credential.id)
        except MachineUnfit as error:
            log.error("credential_cannot_be_opened", credential_id=credential.id, reason=error.message)
            raise CredentialFailed(error.message) from error
        return msgspec.json.decode(data, type=SecretHalf)

    def _http(self) -> Prober:
        if self._prober is None:
            self._prober = Prober(self._settings.request_seconds_max, self._mcp)
        return self._prober


def _sealed(records: Sequence[Record], key: bytes) -> Iterator[_Found]:
    for record in records:
        stored = msgspec.json.decode(record.body, type=StoredCredential)
        if stored.sealed is not None:
            yield _Found(record, key, stored)


def _may_pass(refresh: ProbedRefresh) -> bool:
    """Whether the token endpoint failed in a way that says nothing about the token."""
    if refresh.http_response is None:
        return False
    status = refresh.http_response.status_code
    return not 400 <= status < validation.SERVER_ERROR or status == validation.TOO_MANY_REQUESTS
