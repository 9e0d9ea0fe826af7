"""How many values an answer holds, counted as its bytes come: before anything is made of them.

A parser makes some hundred bytes of `{},` or `"",`, and models of the SDK a thousand, all on the thread that serves
everybody. So a limit on bytes alone is none on memory and time. Strings, objects and lists are counted; what stands in
a string is not, however long it is and whatever it looks like. Counting ends at the limit, and costs no more than that.
"""

from __future__ import annotations

import re

LINE_ENDS = re.compile(rb"[\r\n]+")
REST_OF_STRING = re.compile(rb"[^\"\\]*(?:\\.[^\"\\]*)*", re.DOTALL)


class Density:
    """For one answer. In a stream of events, each event is counted by itself."""

    def __init__(self, values_max: int, *, is_stream: bool) -> None:
        self._values_max, self._is_stream = values_max, is_stream
        self._values = 0
        self._in_string = self._escaped = False
        self._line_is_empty, self._after_return = True, False

    def admits(self, piece: bytes) -> bool:
        """Whether there are not too many values yet, with these bytes."""
        half = self._after_return and piece.startswith(b"\n")
        self._after_return = piece.endswith(b"\r")
        piece = piece[1:] if half else piece
        begin = 0
        for end in LINE_ENDS.finditer(piece) if b"\n" in piece or b"\r" in piece else ():
            self._count(piece, begin, end.start())
            run = end[0]
            ends = run.count(b"\n") + run.count(b"\r") - run.count(b"\r\n")
            self._end_lines(has_empty=ends > 1 or (self._line_is_empty and begin == end.start()))
            begin = end.end()
            if self._values > self._values_max:
                return False
        self._count(piece, begin, len(piece))
        self._line_is_empty = self._line_is_empty and begin == len(piece)
        return self._values <= self._values_max

    def _end_lines(self, *, has_empty: bool) -> None:
        # No string of JSON goes beyond a line, and an empty line is the end of an event.
        self._in_string = self._escaped = False
        self._line_is_empty = True
        if has_empty and self._is_stream:
            self._values = 0

    def _count(self, piece: bytes, at: int, end: int) -> None:
        while at < end and self._values <= self._values_max:
            if self._in_string:
                at = self._end_string(piece, at, end)
                continue
            quote = piece.find(b'"', at, end)
            before = end if quote < 0 else quote
            self._values += piece.count(b"{", at, before) + piece.count(b"[", at, before)
            self._in_string = quote >= 0
            self._values += self._in_string
            at = before + 1

    def _end_string(self, piece: bytes, at: int, end: int) -> int:
        """Where to go on behind the string, or behind what is there of it."""
        if self._escaped:
            self._escaped = False
            return at + 1
        stop = piece.find(b'"', at, end)
        stop = end if stop < 0 else stop
        if piece.find(b"\\", at, stop) >= 0:
            found = REST_OF_STRING.match(piece, at, end)
            assert found is not None, "it may be empty"
            stop = found.end()
        # What stops it is the quote, or a backslash whose character is still to come.
        self._escaped = stop < end and piece[stop : stop + 1] == b"\\"
        self._in_string = stop == end or self._escaped
        return stop + 1
