"""The master key: from the environment, else from a file, which is made on first use. Rotation keeps the old ones.

Master keys seal the data keys of vaults and nothing else, so changing one seals some dozens of bytes a vault anew. The
first key of the file seals; all of them open. Whoever has the file and the database has the secrets: keep backups of
the two apart.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import secrets
from pathlib import Path
from typing import NamedTuple

from corral.errors import MachineUnfit

KEY_BYTES = 32
KEY_ID_BYTES = 8
FILE_MODE = 0o600


class MasterKey(NamedTuple):
    """One key and the name that what it sealed carries."""

    id: bytes
    secret: bytes

    def __repr__(self) -> str:
        return f"MasterKey({self.id.hex()})"


def new_master_key() -> MasterKey:
    """A fresh key."""
    return _named(secrets.token_bytes(KEY_BYTES))


def parse(text: str, source: str) -> tuple[MasterKey, ...]:
    """Keys in base64, separated by white space or commas; the first one seals. Raises `MachineUnfit`."""
    keys: list[MasterKey] = []
    for word in text.replace(",", " ").split():
        try:
            secret = base64.b64decode(word, validate=True)
        except binascii.Error:
            secret = b""
        if len(secret) != KEY_BYTES:
            raise MachineUnfit(f"{source} must hold master keys of {KEY_BYTES} bytes in base64.")
        keys.append(_named(secret))
    if not keys:
        raise MachineUnfit(f"{source} holds no master key.")
    return tuple(keys)


def load(given: str | None, file: Path) -> tuple[MasterKey, ...]:
    """The operator's keys if `given`, else those of the file, which is made when it is not there. Blocking."""
    if given:
        return parse(given, "CORRAL_MASTER_KEY")
    try:
        return parse(file.read_text(encoding="ascii"), str(file))
    except FileNotFoundError:
        pass
    except (OSError, UnicodeDecodeError) as error:
        raise MachineUnfit(f"The master key in {file} cannot be read: {error}") from error
    try:
        save(file, (new_master_key(),), replace=False)
    except FileExistsError:
        pass  # another server made it at the same moment
    except OSError as error:
        raise MachineUnfit(f"The master key cannot be written to {file}: {error}") from error
    return parse(file.read_text(encoding="ascii"), str(file))


def save(file: Path, keys: tuple[MasterKey, ...], *, replace: bool = True) -> None:
    """Put the keys into the file, whole or not at all. Raises `FileExistsError` unless told to replace. Blocking."""
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, FILE_MODE)
    try:
        with open(descriptor, "w", encoding="ascii") as stream:
            stream.writelines(base64.b64encode(key.secret).decode() + "\n" for key in keys)
            stream.flush()
            os.fsync(stream.fileno())
        if replace:
            draft.replace(file)
        else:
            os.link(draft, file)
        # What is sealed next, maybe in a database elsewhere, must not outlast the key.
        folder = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        draft.unlink(missing_ok=True)


def _named(secret: bytes) -> MasterKey:
    return MasterKey(hashlib.sha256(b"corral master key\0" + secret).digest()[:KEY_ID_BYTES], secret)
