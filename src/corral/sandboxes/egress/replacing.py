"""Texts for other texts in bytes that come in pieces, wherever the pieces are cut. Pure; holds back what may go on.

What is held back is never more than the longest text that is looked for; a piece that does not end in the beginning of
one passes at once, so streams of events are not delayed.
"""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Mapping
from urllib.parse import quote, quote_plus

SECRET_BYTES_MIN = 6
"""What is shorter is not looked for in answers: it would be found in every other word of them."""
CORE_CHARACTERS_MIN = 8


class Replacer:
    """For one body. The leftmost text is replaced first, of several that begin there the longest."""

    def __init__(self, texts: Mapping[bytes, bytes]) -> None:
        assert all(texts), "nothing stands for nothing"
        self._texts = texts
        self._longest = max(map(len, texts), default=0)
        self._kept = b""

    def feed(self, piece: bytes) -> bytes:
        """What may go on, now that this has come."""
        data = self._kept + piece
        done, begun = self._replaced(data, self._unsure(data))
        # A text that was found may have eaten into what was unsure.
        self._kept = data[begun:]
        return done

    def finish(self) -> bytes:
        """The rest."""
        data, self._kept = self._kept, b""
        return self._replaced(data, len(data))[0]

    def _unsure(self, data: bytes) -> int:
        """Where the first text begins that may go on in the next piece; the end when none does."""
        first = len(data)
        for text in self._texts:
            place = data.find(text[:1], max(0, len(data) - len(text) + 1), first)
            while place >= 0:
                if text.startswith(data[place:]):
                    first = place
                    break
                place = data.find(text[:1], place + 1, first)
        return first

    def _replaced(self, data: bytes, sure: int) -> tuple[bytes, int]:
        """`data` with all texts replaced that begin before `sure`, and where what is left begins."""
        found = {text: data.find(text) for text in self._texts}
        parts: list[bytes] = []
        cursor = 0
        while True:
            for text, place in found.items():
                if 0 <= place < cursor:
                    found[text] = data.find(text, cursor)
            begun = {text: place for text, place in found.items() if 0 <= place < sure}
            if not begun:
                return b"".join((*parts, data[cursor : max(cursor, sure)])), max(cursor, sure)
            text = min(begun, key=lambda each: (begun[each], -len(each)))
            parts += (data[cursor : begun[text]], self._texts[text])
            cursor = begun[text] + len(text)


def replaced(data: bytes, texts: Mapping[bytes, bytes]) -> bytes:
    """All of `data` at once."""
    if not any(text in data for text in texts):
        return data
    replacer = Replacer(texts)
    return replacer.feed(data) + replacer.finish()


def disguises(secret: str) -> set[bytes]:
    """The secret as answers may hold it: as it is, and as JSON, HTML, URLs, hexadecimal digits and base64 spell it."""
    data = secret.encode()
    if len(data) < SECRET_BYTES_MIN:
        return set()
    spelled = {secret, in_json(secret), json.dumps(secret)[1:-1], html.escape(secret), data.hex(), data.hex().upper()}
    spelled |= {each.replace("/", "\\/") for each in (in_json(secret), json.dumps(secret)[1:-1])}
    for each in (quote(secret, safe=""), quote(secret), quote_plus(secret)):
        spelled |= {each, _lower_escapes(each)}
    return {each.encode() for each in spelled} | set(_in_base64(data))


def in_json(secret: str) -> str:
    """As it stands in a JSON string."""
    return json.dumps(secret, ensure_ascii=False)[1:-1]


def _lower_escapes(quoted: str) -> str:
    head, *rest = quoted.split("%")
    return "%".join((head, *(each[:2].lower() + each[2:] for each in rest)))


def _in_base64(data: bytes) -> list[bytes]:
    """Whatever stands before or after it: the characters that depend on it alone, for each of three positions."""
    found: list[bytes] = []
    for before in range(3):
        whole = base64.b64encode(bytes(before) + data)
        # A character holds six bits; those at the edges may hold bits of what stands beside.
        core = whole[-(-before * 8 // 6) : (before + len(data)) * 8 // 6]
        if len(core) >= CORE_CHARACTERS_MIN:
            found += (core, core.translate(bytes.maketrans(b"+/", b"-_")))
    return found
