"""What becomes of requests and answers of a sandbox that holds placeholders: secrets go in, and do not come back.

A placeholder is swapped in headers and bodies (as the credential says), only towards hosts that the credential
permits and only inside TLS: a secret is never sent in the clear. Everywhere else it stays what it is. Answers of hosts
that may be sent a secret are searched for it. Such a host is asked for whole and plain answers, because nothing is
found in half of one or in a compressed one; gzip and deflate that come nevertheless are opened, the rest is refused.

Not done: paths and queries, compressed request bodies, what a WebSocket sends after it has begun. What a permitted
host does with the secret, such as sending it back in pieces, nobody can see here.
"""

from __future__ import annotations

import base64
import binascii
import re
import zlib
from collections.abc import Callable, Sequence
from urllib.parse import quote_plus

from corral.domain.placeholder import PLACEHOLDER_BEGINS, Substitution
from corral.sandboxes.egress.line import Header
from corral.sandboxes.egress.replacing import Replacer, disguises, in_json, replaced
from corral.sandboxes.egress.upstream import Origin, Unreached

BEGINS = PLACEHOLDER_BEGINS.encode("ascii")
FRAMING = frozenset((b"host", b"content-length", b"transfer-encoding"))
ASKED_PLAINLY = frozenset((b"accept-encoding", b"range", b"if-range", b"sec-websocket-extensions"))
VALUE = re.compile(rb"[\x21-\x7e\x80-\xff]([\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?|")
HEADERS_BYTES_MAX = 256 * 1024
WINDOW_BITS = {b"gzip": 31, b"x-gzip": 31, b"deflate": 15}
TREATMENTS_KEPT_MAX = 256
INFLATED_BYTES_MAX = 1024 * 1024
"""Opened at a time, however much it would be in all."""


class Secrets:
    """Of one sandbox, as they are now."""

    def __init__(self) -> None:
        self._held: dict[str, Substitution] = {}
        self._made: dict[tuple[str, bool], Treatment | None] = {}

    def take(self, substitution: Substitution) -> None:
        """One more, or a later value of one that is there."""
        self._held[substitution.placeholder] = substitution
        self._made.clear()

    def forget(self, placeholder: str) -> None:
        """One less."""
        self._held.pop(placeholder, None)
        self._made.clear()

    def towards(self, origin: Origin) -> Treatment | None:
        """What to do with requests to this place and their answers; None for nothing."""
        if not self._held:
            return None
        key = (origin.host, origin.tls)
        if key not in self._made:
            if len(self._made) >= TREATMENTS_KEPT_MAX:
                self._made.clear()
            permitted = [each for each in self._held.values() if each.permits(origin.host)]
            self._made[key] = Treatment(permitted, tls=origin.tls) if permitted else None
        return self._made[key]


class Treatment:
    """Of requests to one place."""

    def __init__(self, permitted: Sequence[Substitution], *, tls: bool) -> None:
        self._to_swap = permitted if tls else ()
        self._hidden: dict[bytes, bytes] = {}
        for each in permitted:
            for text in disguises(each.secret):
                self._hidden.setdefault(text, each.placeholder.encode("ascii"))

    # ------------------------------------------------------------------------------------------------- requests

    def headers(self, headers: Sequence[Header]) -> list[Header]:
        """The headers to send. Raises `Unreached` when a secret cannot stand in a header."""
        kept = [(name, value) for name, value in headers if name not in ASKED_PLAINLY]
        texts = {each.placeholder.encode("ascii"): each.secret.encode() for each in self._to_swap if each.header}
        if texts:
            kept = [(name, value if name in FRAMING else _swapped(value, texts)) for name, value in kept]
        if sum(len(value) for _, value in kept) > HEADERS_BYTES_MAX:
            raise Unreached("headers_too_large", "With the secrets in them, the request's headers are too large.")
        return [*kept, (b"accept-encoding", b"identity")]

    def body(self, headers: Sequence[Header]) -> Replacer | None:
        """For the request's body; None when it goes as it is."""
        if _encoding(headers) is not None:
            return None
        spell = _spelling(next((value for name, value in headers if name == b"content-type"), b""))
        texts = {each.placeholder.encode("ascii"): spell(each.secret) for each in self._to_swap if each.body}
        return Replacer(texts) if texts else None

    # -------------------------------------------------------------------------------------------------- answers

    def head(self, headers: Sequence[Header], reason: bytes) -> tuple[list[Header], bytes]:
        """An answer's headers and reason, without secrets."""
        return [(name, replaced(value, self._hidden)) for name, value in headers], replaced(reason, self._hidden)

    def body_of_answer(self, headers: Sequence[Header]) -> Plain | Compressed:
        """For an answer's body. Raises `Unreached` when it could not be searched."""
        encoding = _encoding(headers)
        if encoding is None:
            return Plain(Replacer(self._hidden))
        if encoding not in WINDOW_BITS:
            raise Unreached("unreadable_encoding", "The host compressed its answer in a way that was not asked for.")
        return Compressed(Replacer(self._hidden), WINDOW_BITS[encoding])

    def frames(self) -> Replacer:
        """For what comes after a change of protocols, whose lengths must stay."""
        return Replacer({text: b"*" * len(text) for text in self._hidden})


class Plain:
    """A body that can be read."""

    def __init__(self, search: Replacer) -> None:
        self._search = search

    def feed(self, piece: bytes) -> list[bytes]:
        """What may go on."""
        return [self._search.feed(piece)]

    def finish(self) -> list[bytes]:
        """The rest."""
        return [self._search.finish()]


class Compressed:
    """A body that is opened, searched and compressed again. Raises `Unreached` for what cannot be opened."""

    def __init__(self, search: Replacer, window_bits: int) -> None:
        self._search, self._window_bits = search, window_bits
        self._open, self._close = zlib.decompressobj(window_bits), zlib.compressobj(1, wbits=window_bits)

    def feed(self, piece: bytes) -> list[bytes]:
        """What may go on."""
        done: list[bytes] = []
        while piece:
            if self._open.eof:
                # Of gzip there may be several, one after another.
                self._open = zlib.decompressobj(self._window_bits)
            try:
                opened = self._open.decompress(piece, INFLATED_BYTES_MAX)
            except zlib.error as error:
                raise Unreached("unreadable_encoding", "The host's answer is not compressed as it says.") from error
            piece = self._open.unused_data if self._open.eof else self._open.unconsumed_tail
            if opened:
                done.append(self._close.compress(self._search.feed(opened)) + self._close.flush(zlib.Z_SYNC_FLUSH))
        return done

    def finish(self) -> list[bytes]:
        """The rest."""
        return [
            self._close.compress(self._search.feed(self._open.flush()) + self._search.finish()),
            self._close.flush(),
        ]


def _encoding(headers: Sequence[Header]) -> bytes | None:
    found = b",".join(value for name, value in headers if name == b"content-encoding").strip().lower()
    return found if found not in (b"", b"identity") else None


def _swapped(value: bytes, texts: dict[bytes, bytes]) -> bytes:
    """A header's value with secrets; also inside Basic authentication."""
    if value[:6].lower() == b"basic ":
        try:
            pair = base64.b64decode(value[6:].strip(), validate=True)
        except binascii.Error:
            pair = b""
        if BEGINS in pair:
            return value[:6] + base64.b64encode(replaced(pair, texts))
    return _whole(value, texts)


def _whole(value: bytes, texts: dict[bytes, bytes]) -> bytes:
    if BEGINS not in value:
        return value
    result = replaced(value, texts)
    if not VALUE.fullmatch(result):
        raise Unreached("secret_not_a_header", "A secret holds line breaks or the like and cannot stand in a header.")
    return result


def _spelling(content_type: bytes) -> Callable[[str], bytes]:
    """How a secret is written into a body of this type, so that it is read there as what it is."""
    kind = content_type.partition(b";")[0].strip().lower()
    if kind == b"application/json" or kind.endswith(b"+json"):
        return lambda secret: in_json(secret).encode()
    if kind == b"application/x-www-form-urlencoded":
        return lambda secret: quote_plus(secret).encode()
    return str.encode
