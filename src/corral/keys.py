"""The server's keyring: makes, finds, lists and revokes API keys.

A key's record is found by its hash, so authenticating costs one look-up, remembered for a few seconds. The default key
is kept in the data directory (readable by its owner only), because whoever may read that directory owns the server.
What a key may see is decided by its workspace, in `api/`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

import anyio.to_thread
import msgspec

from corral.domain.api_key import DEFAULT_WORKSPACE, SECRET_CHARACTERS_MAX, ApiKey, new_secret, sha256
from corral.domain.query import Record, RecordsQuery
from corral.errors import Invalid, MachineUnfit, NotFound, Unauthenticated
from corral.interfaces.clock import Clock
from corral.interfaces.records import Records

KIND = "api_key"
REMEMBERED_SECONDS = 5.0
REMEMBERED_MAX = 1_024
PAGE = 1_000
SECRET_CHARACTERS_MIN = 8


class KeyRing:
    """API keys, over any `Records`."""

    def __init__(self, records: Records, clock: Clock) -> None:
        self._records = records
        self._clock = clock
        self._remembered: dict[str, tuple[float, ApiKey]] = {}

    async def authenticate(self, secret: str) -> ApiKey:
        """The key with this secret. Raises `Unauthenticated` for an unknown or revoked one."""
        if not 0 < len(secret) <= SECRET_CHARACTERS_MAX:
            raise Unauthenticated
        digest = sha256(secret)
        until, key = self._remembered.get(digest, (0.0, None))
        if key is None or until < time.monotonic():
            key = await self._find(digest)
            self._remember(digest, key)
        return key

    async def create(self, *, workspace_id: str = DEFAULT_WORKSPACE, name: str | None = None) -> tuple[ApiKey, str]:
        """A new key and its secret, which is not kept anywhere."""
        secret = new_secret()
        return await self._store(secret, workspace_id, name), secret

    async def keys(self) -> Sequence[ApiKey]:
        """All keys, newest first, revoked ones too."""
        found: list[ApiKey] = []
        query = RecordsQuery(kind=KIND, workspace_id=None, limit=PAGE)
        while True:
            page = await self._records.page(query)
            found += [_read(record) for record in page]
            if len(page) < PAGE:
                return found
            query = msgspec.structs.replace(query, beyond=(page[-1].created_at, page[-1].id))

    async def revoke(self, key_id: str) -> ApiKey:
        """Refuse the key from now on. Raises `NotFound`."""
        record = await self._records.get(KIND, key_id, None)
        key = msgspec.structs.replace(_read(record), revoked_at=self._clock.now())
        changed = msgspec.structs.replace(record, body=msgspec.json.encode(key), revision=record.revision + 1)
        await self._records.put(changed, expect={record.id: record.revision})
        self._remembered.pop(key.sha256, None)
        return key

    async def ensure_default(self, data_dir: Path, given: str | None) -> tuple[str, bool]:
        """The key that the operator gave, else the one in the data directory, made on first start.

        Returns the secret and whether it was made just now.
        """
        secret, made = (given, False) if given else await anyio.to_thread.run_sync(_kept_secret, data_dir)
        if not SECRET_CHARACTERS_MIN <= len(secret) <= SECRET_CHARACTERS_MAX:
            raise MachineUnfit(f"CORRAL_API_KEY must be {SECRET_CHARACTERS_MIN} to {SECRET_CHARACTERS_MAX} characters.")
        try:
            await self._find(sha256(secret))
        except Unauthenticated:
            await self._store(secret, DEFAULT_WORKSPACE, "default")
        return secret, made

    async def _store(self, secret: str, workspace_id: str, name: str | None) -> ApiKey:
        if not workspace_id.startswith("wrkspc_") or len(workspace_id) > 128:
            raise Invalid(f"A workspace id looks like wrkspc_team; got `{workspace_id[:128]}`.")
        now = self._clock.now()
        digest = sha256(secret)
        key = ApiKey(id=_id(digest), workspace_id=workspace_id, sha256=digest, created_at=now, name=name)
        record = Record(kind=KIND, id=key.id, workspace_id=workspace_id, created_at=now, body=msgspec.json.encode(key))
        await self._records.put(record)
        return key

    async def _find(self, digest: str) -> ApiKey:
        try:
            key = _read(await self._records.get(KIND, _id(digest), None))
        except NotFound as error:
            raise Unauthenticated from error
        if key.sha256 != digest or key.revoked_at is not None:
            raise Unauthenticated
        return key

    def _remember(self, digest: str, key: ApiKey) -> None:
        if len(self._remembered) >= REMEMBERED_MAX:
            self._remembered.clear()
        self._remembered[digest] = (time.monotonic() + REMEMBERED_SECONDS, key)


def _id(digest: str) -> str:
    return f"apikey_{digest[:32]}"


def _read(record: Record) -> ApiKey:
    return msgspec.json.decode(record.body, type=ApiKey)


def _kept_secret(data_dir: Path) -> tuple[str, bool]:
    """The secret in the data directory; made, and durable, if there is none."""
    path = data_dir / "api_key"
    try:
        return path.read_text(encoding="ascii").strip(), False
    except FileNotFoundError:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    secret = new_secret()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(secret + "\n")
        file.flush()
        os.fsync(file.fileno())
    return secret, True
