"""Sealing: what opens where, and a key that is kept elsewhere."""

from __future__ import annotations

import pytest

from corral.errors import MachineUnfit
from corral.vaults.master_key import new_master_key
from corral.vaults.sealing import LocalKeyWrapper, VaultSealing

pytestmark = pytest.mark.requirement("F125")


class KeyService:
    """A key management service: it keeps the key, and sees data keys and what they are about."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, bytes]] = []
        self._key = new_master_key()
        self._inside = LocalKeyWrapper(lambda: (self._key,))

    def wrap(self, key: bytes, about: bytes) -> bytes:
        self.asked.append(("wrap", about))
        return b"service:" + self._inside.wrap(key, about)

    def unwrap(self, wrapped: bytes, about: bytes) -> bytes:
        self.asked.append(("unwrap", about))
        return self._inside.unwrap(wrapped.removeprefix(b"service:"), about)


def local() -> VaultSealing:
    key = new_master_key()
    return VaultSealing(LocalKeyWrapper(lambda: (key,)))


def test_a_key_management_service_takes_the_place_of_the_local_key() -> None:
    service = KeyService()
    sealing = VaultSealing(service)
    key = sealing.new_key("vlt_1")
    sealed = sealing.seal("vlt_1", key, b"hush", "vcrd_1")
    assert key.startswith(b"service:") and b"hush" not in sealed
    assert sealing.open("vlt_1", key, sealed, "vcrd_1") == b"hush"
    assert service.asked == [("wrap", b"vlt_1"), ("unwrap", b"vlt_1"), ("unwrap", b"vlt_1")]
    assert len(sealing.mark("vlt_1", key, "sesn_1 NAME")) == 32


def test_what_is_sealed_opens_where_it_belongs_and_nowhere_else() -> None:
    sealing = local()
    key, other = sealing.new_key("vlt_1"), sealing.new_key("vlt_1")
    sealed = sealing.seal("vlt_1", key, b"hush", "vcrd_1")
    assert sealing.open("vlt_1", key, sealed, "vcrd_1") == b"hush"
    for vault_id, with_key, data, about in (
        ("vlt_1", key, sealed, "vcrd_2"),
        ("vlt_2", key, sealed, "vcrd_1"),
        ("vlt_1", other, sealed, "vcrd_1"),
        ("vlt_1", key, sealed[:-1] + bytes([sealed[-1] ^ 1]), "vcrd_1"),
        ("vlt_1", key, b"\x02" + sealed[1:], "vcrd_1"),
        ("vlt_1", key, b"", "vcrd_1"),
    ):
        with pytest.raises(MachineUnfit):
            sealing.open(vault_id, with_key, data, about)
    with pytest.raises(MachineUnfit, match="another master key"):
        local().open("vlt_1", key, sealed, "vcrd_1")


def test_the_same_is_never_sealed_alike_twice() -> None:
    sealing = local()
    key = sealing.new_key("vlt_1")
    assert sealing.seal("vlt_1", key, b"hush", "vcrd_1") != sealing.seal("vlt_1", key, b"hush", "vcrd_1")
