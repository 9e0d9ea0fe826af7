"""Reading one string from the head of a GGUF model file: its chat template.

GGUF is llama.cpp's file format: a magic, counts, then typed key-value pairs, then tensors. Only as much is read as it
takes to come to the key; nothing here knows what the values mean.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO, Final

from corral.errors import MachineUnfit

MAGIC: Final = b"GGUF"
STRING_BYTES_MAX = 1024 * 1024
PAIRS_MAX = 10_000
ARRAY_ITEMS_MAX = 10_000_000

FIXED: Final = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Value type -> size in bytes, for the types that have one."""
STRING: Final = 8
ARRAY: Final = 9


def chat_template(file: Path) -> str | None:
    """The chat template inside the model, if it has one. Raises `MachineUnfit` when this is not a GGUF file."""
    return _find(file, b"tokenizer.chat_template")


def check_magic(file: Path) -> None:
    """Raises `MachineUnfit` when this is not a GGUF file."""
    try:
        with file.open("rb") as model:
            magic = model.read(len(MAGIC))
    except OSError as error:
        raise MachineUnfit(f"The model file {file} cannot be read: {error.strerror}.") from error
    if magic != MAGIC:
        raise MachineUnfit(f"{file} is not a GGUF model file.")


def _find(file: Path, wanted: bytes) -> str | None:
    check_magic(file)
    try:
        with file.open("rb") as model:
            model.seek(len(MAGIC))
            _, _, pairs = struct.unpack("<IQQ", _take(model, 20))
            for _ in range(_bounded(pairs, PAIRS_MAX)):
                key, kind = _string(model), _u32(model)
                if key == wanted and kind == STRING:
                    return _string(model).decode()
                _skip(model, kind)
    except (OSError, ValueError) as error:
        raise MachineUnfit(f"The model file {file} is damaged: {error}.") from error
    return None


def _skip(model: BinaryIO, kind: int) -> None:
    if kind == STRING:
        model.seek(_u64(model), 1)
    elif kind == ARRAY:
        item, count = _u32(model), _bounded(_u64(model), ARRAY_ITEMS_MAX)
        if item in FIXED:
            model.seek(count * FIXED[item], 1)
        else:
            for _ in range(count):
                _skip(model, item)
    elif kind in FIXED:
        model.seek(FIXED[kind], 1)
    else:
        raise ValueError(f"unknown value type {kind}")


def _string(model: BinaryIO) -> bytes:
    return _take(model, _bounded(_u64(model), STRING_BYTES_MAX))


def _u32(model: BinaryIO) -> int:
    return int.from_bytes(_take(model, 4), "little")


def _u64(model: BinaryIO) -> int:
    return int.from_bytes(_take(model, 8), "little")


def _take(model: BinaryIO, size: int) -> bytes:
    taken = model.read(size)
    if len(taken) != size:
        raise ValueError("it ends too early")
    return taken


def _bounded(number: int, most: int) -> int:
    if number > most:
        raise ValueError(f"a count of {number} is not plausible")
    return number
