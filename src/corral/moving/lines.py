"""Lines of JSON: read one at a time, told apart, and decoded so that nothing is lost unseen.

Every error names its line and the field. `incoming.py` knows what the lines mean.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import BinaryIO, Generic, NamedTuple, TypeVar, cast

import msgspec
from msgspec import UNSET, UnsetType

from corral.errors import Invalid

T = TypeVar("T")

LINE_BYTES_MAX = 64 * 1024 * 1024
TIMES_ITSELF = frozenset({"stats.duration_seconds"})
"""Not stored, since it goes on by itself."""
SECONDS = frozenset({"usage.active_seconds", "stats.active_seconds"})
"""Kept in whole milliseconds."""
SECONDS_DIFFERENCE_MAX = 0.001


class Head(msgspec.Struct, frozen=True):
    """What tells lines apart."""

    type: str = ""
    id: str = ""
    session_id: str = ""
    event: msgspec.Raw | UnsetType = UNSET
    credential: msgspec.Raw | UnsetType = UNSET


class Line(NamedTuple):
    """A line that says something."""

    number: int
    text: bytes
    head: Head


class At:
    """Says in which line something went wrong, unless that has been said."""

    def __init__(self, number: int, prefix: str = "") -> None:
        self._number = number
        self._prefix = prefix

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        match error:
            case Invalid() if not error.message.startswith("line "):
                raise Invalid(f"line {self._number}: {self._prefix}{error.message}") from error
            case RecursionError():
                raise Invalid(f"line {self._number}: {self._prefix}nested too deeply") from error
            case msgspec.DecodeError():
                raise Invalid(f"line {self._number}: {self._prefix}{_path_first(str(error))}") from error
            case _:
                pass


def _path_first(message: str) -> str:
    """`Expected ... - at `$.a.b`` as `a.b: Expected ...`."""
    found = re.fullmatch(r"(.*) - at `(?:key in )?\$\.?(.*)`", message, re.DOTALL)
    return f"{found[2]}: {found[1]}" if found and found[2] else message


class Ahead(Generic[T]):
    """An iterator that can look one item ahead."""

    def __init__(self, items: Iterable[T]) -> None:
        self._items = iter(items)
        self._waiting: list[T] = []

    def __iter__(self) -> Iterator[T]:
        while self._look():
            yield self._waiting.pop()

    def next_if(self, wanted: Callable[[T], bool]) -> T | None:
        """The next item, if it is wanted."""
        return self._waiting.pop() if self._look() and wanted(self._waiting[0]) else None

    def _look(self) -> bool:
        if not self._waiting:
            self._waiting += [item for _, item in zip(range(1), self._items, strict=False)]
        return bool(self._waiting)


def read(file: BinaryIO) -> Iterator[Line]:
    """Lines that say something."""
    number = 0
    while text := file.readline(LINE_BYTES_MAX + 1):
        number += 1
        with At(number):
            if len(text) > LINE_BYTES_MAX:
                raise Invalid(f"longer than {LINE_BYTES_MAX} bytes")
            if not is_text(text):
                raise Invalid("not UTF-8")
            if text.strip():
                yield Line(number, text, msgspec.json.decode(text, type=Head))


def is_text(raw: bytes) -> bool:
    """Whether the bytes are UTF-8."""
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def exactly(text: bytes, kind: type[T]) -> T:
    """The object of a line. Raises `Invalid` naming a field that it would lose."""
    decoded = msgspec.json.decode(text, type=kind)
    check_kept(text, decoded)
    return decoded


def check_kept(text: bytes, kept: object) -> None:
    """Raises `Invalid` naming the first field of a line that comes out differently."""
    for path in differences(msgspec.json.decode(text), msgspec.json.decode(msgspec.json.encode(kept))):
        raise Invalid(f"{path}: this server cannot keep this exactly as it is")


def differences(given: object, kept: object, path: str = "") -> Iterator[str]:
    """Paths of what was given and is not kept. A field that is null may as well be absent."""
    if given == kept or path in TIMES_ITSELF:
        return
    if isinstance(given, dict) and isinstance(kept, dict):
        theirs, ours = cast(Mapping[str, object], given), cast(Mapping[str, object], kept)
        for key, value in theirs.items():
            yield from differences(value, ours.get(key), f"{path}.{key}" if path else key)
    elif isinstance(given, list) and isinstance(kept, list):
        theirs, ours = cast(Sequence[object], given), cast(Sequence[object], kept)
        if len(theirs) != len(ours):
            yield path
            return
        for index, (one, other) in enumerate(zip(theirs, ours, strict=True)):
            yield from differences(one, other, f"{path}.{index}")
    elif not _same(cast(object, given), kept, path):
        yield path


def _same(given: object, kept: object, path: str) -> bool:
    return _same_moment(given, kept) or (path in SECONDS and _same_seconds(given, kept))


def _same_moment(given: object, kept: object) -> bool:
    """The same time, written in another way."""
    if not isinstance(given, str) or not isinstance(kept, str):
        return False
    try:
        return datetime.fromisoformat(given) == datetime.fromisoformat(kept)
    except (ValueError, TypeError):
        return False


def _same_seconds(given: object, kept: object) -> bool:
    if not isinstance(given, int | float) or not isinstance(kept, int | float):
        return False
    return abs(given - kept) <= SECONDS_DIFFERENCE_MAX
