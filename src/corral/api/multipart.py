"""A multipart body with one file in it, read as it comes: nothing but one chunk of it is ever in memory.

`Upload.chunks` drives the parser (python-multipart's) through the whole body and yields the bytes of the file; when it
has ended, the file's name, its type and the other fields are known. A body that is not exactly what is expected raises
from there, so whoever stores the chunks keeps nothing of it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from corral.errors import Invalid, TooLarge

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

FIELD_BYTES_MAX = 1_024
FRAMING_BYTES_MAX = 64 * 1024
"""How much longer than its file a body may be."""
NAME_CHARACTERS_SHOWN_MAX = 100


class Upload:
    """One file and the fields beside it."""

    def __init__(self, content_type: str, *, fields: frozenset[str], file_bytes_max: int) -> None:
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary", b"")
        if kind != b"multipart/form-data" or not boundary:
            raise Invalid("body: must be multipart/form-data with a boundary")
        try:
            self._parser = MultipartParser(boundary, self._callbacks())
        except FormParserError as error:
            raise Invalid(f"body: {error}") from error
        self._known = fields
        self._file_bytes_max = file_bytes_max
        self.filename = ""
        self.content_type = ""
        self.fields: dict[str, str] = {}
        self._headers: dict[str, str] = {}
        self._header_name = self._header_value = b""
        self._part = ""
        self._value = b""
        self._pieces: list[bytes] = []
        self._size = 0
        self._has_file = self._ended = False

    async def chunks(self, body: AsyncIterable[bytes]) -> AsyncGenerator[bytes]:
        """The file's bytes. Raises `Invalid` or `TooLarge`, possibly at the very end."""
        async for chunk in body:
            try:
                self._parser.write(chunk)
            except FormParserError as error:
                raise Invalid(f"body: not valid multipart: {error}") from error
            for piece in self._pieces:
                yield piece
            self._pieces.clear()
        if not self._ended:
            raise Invalid("body: ends before its last boundary")
        if not self._has_file:
            raise Invalid("file: field required")

    def _callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self._begin_part,
            "on_header_field": self._add_header_name,
            "on_header_value": self._add_header_value,
            "on_header_end": self._end_header,
            "on_headers_finished": self._end_headers,
            "on_part_data": self._add_data,
            "on_part_end": self._end_part,
            "on_end": self._end,
        }

    def _begin_part(self) -> None:
        if self._ended:
            raise Invalid("body: goes on behind its last boundary")
        self._headers = {}
        self._header_name = self._header_value = self._value = b""

    def _add_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _add_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _end_header(self) -> None:
        # The library reads options as latin-1; what browsers and clients send is UTF-8.
        self._headers[self._header_name.decode("latin-1").lower()] = self._header_value.decode("latin-1")
        self._header_name = self._header_value = b""

    def _end_headers(self) -> None:
        kind, options = parse_options_header(self._headers.get("content-disposition"))
        name = _text(options.get(b"name", b""), "a field's name")
        if kind != b"form-data" or not name:
            raise Invalid("body: a part without a name")
        if name in self.fields or (name == "file" and self._has_file):
            raise Invalid(f"{name[:NAME_CHARACTERS_SHOWN_MAX]}: given more than once")
        if name == "file":
            self._has_file = True
            self.filename = _text(options.get(b"filename", b""), "file: the filename")
            self.content_type = self._headers.get("content-type", "")
        elif name not in self._known:
            raise Invalid(f"{name[:NAME_CHARACTERS_SHOWN_MAX]}: unknown field")
        self._part = name

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        if self._part != "file":
            self._value += data[start:end]
            if len(self._value) > FIELD_BYTES_MAX:
                raise Invalid(f"{self._part}: too long")
            return
        self._size += end - start
        if self._size > self._file_bytes_max:
            raise TooLarge(f"file: larger than the limit of {self._file_bytes_max} bytes")
        self._pieces.append(data[start:end])

    def _end_part(self) -> None:
        if self._part != "file":
            self.fields[self._part] = _text(self._value, self._part)

    def _end(self) -> None:
        self._ended = True


def _text(raw: bytes, what: str) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Invalid(f"{what} is not valid UTF-8") from error
