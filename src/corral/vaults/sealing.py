"""Sealing: AES-GCM with a data key for each vault, which is itself sealed by the master key.

What is sealed is bound to what it belongs to (`about`), so a sealed secret that is copied to another record does not
open there. A key management service would be another `KeyWrapper`.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable, Sequence
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from corral.errors import MachineUnfit
from corral.vaults.master_key import KEY_BYTES, KEY_ID_BYTES, MasterKey

NONCE_BYTES = 12
VERSION = b"\x01"


class KeyWrapper(Protocol):
    """Whoever holds the master key."""

    def wrap(self, key: bytes, about: bytes) -> bytes:
        """Seal a data key."""
        ...

    def unwrap(self, wrapped: bytes, about: bytes) -> bytes:
        """Open it again. Raises `MachineUnfit` when the master key is another one."""
        ...


class LocalKeyWrapper:
    """Master keys in this process's memory; the first one seals, all of them open."""

    def __init__(self, load: Callable[[], Sequence[MasterKey]]) -> None:
        self._load = load
        self._take(load())

    def _take(self, keys: Sequence[MasterKey]) -> None:
        self._keys = {key.id: key.secret for key in keys}
        self._current = keys[0]

    def wrap(self, key: bytes, about: bytes) -> bytes:
        """See `KeyWrapper.wrap`. Rare, so the keys are read again: they may have been changed meanwhile."""
        self._take(self._load())
        return self._current.id + _seal(self._current.secret, key, about)

    def unwrap(self, wrapped: bytes, about: bytes) -> bytes:
        """See `KeyWrapper.unwrap`."""
        key_id = wrapped[:KEY_ID_BYTES]
        if key_id not in self._keys:
            self._take(self._load())
        secret = self._keys.get(key_id)
        if secret is None:
            raise MachineUnfit("The vault was sealed with another master key; give the server that key too.")
        return _open(secret, wrapped[KEY_ID_BYTES:], about)

    def is_current(self, wrapped: bytes) -> bool:
        """Whether the first key sealed it."""
        return wrapped[:KEY_ID_BYTES] == self._current.id


class VaultSealing:
    """Implements `interfaces.vault.Sealing`."""

    def __init__(self, wrapper: KeyWrapper) -> None:
        self._wrapper = wrapper

    def new_key(self, vault_id: str) -> bytes:
        """See `Sealing.new_key`."""
        return self._wrapper.wrap(secrets.token_bytes(KEY_BYTES), vault_id.encode())

    def seal(self, vault_id: str, key: bytes, data: bytes, about: str) -> bytes:
        """See `Sealing.seal`."""
        return _seal(self._wrapper.unwrap(key, vault_id.encode()), data, about.encode())

    def mark(self, vault_id: str, key: bytes, about: str) -> bytes:
        """See `Sealing.mark`."""
        return hmac.digest(self._wrapper.unwrap(key, vault_id.encode()), b"mark\0" + about.encode(), "sha256")

    def open(self, vault_id: str, key: bytes, sealed: bytes, about: str) -> bytes:
        """See `Sealing.open`."""
        return _open(self._wrapper.unwrap(key, vault_id.encode()), sealed, about.encode())


def rewrapped(wrapper: LocalKeyWrapper, vault_id: str, key: bytes) -> bytes:
    """The data key sealed by the first master key."""
    about = vault_id.encode()
    return wrapper.wrap(wrapper.unwrap(key, about), about)


def _seal(key: bytes, data: bytes, about: bytes) -> bytes:
    nonce = secrets.token_bytes(NONCE_BYTES)
    return VERSION + nonce + AESGCM(key).encrypt(nonce, data, about)


def _open(key: bytes, sealed: bytes, about: bytes) -> bytes:
    nonce, data = sealed[1 : 1 + NONCE_BYTES], sealed[1 + NONCE_BYTES :]
    try:
        if sealed[:1] != VERSION:
            raise InvalidTag
        return AESGCM(key).decrypt(nonce, data, about)
    except InvalidTag as error:
        raise MachineUnfit("A sealed secret cannot be opened: it was damaged or sealed with another key.") from error
