"""URLs of the web in one form, so that they can be compared and checked; and the URLs that a text shows.

Only http and https, without user names; hosts as `domain/host.py` normalises them, so that `http://2130706433` and
`http://127.0.0.1/` are the same. What cannot be read in one way only is refused rather than mended.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from corral.domain.host import authority, shown
from corral.errors import Invalid

URL_CHARACTERS_MAX = 4_096
PORTS = {"http": 80, "https": 443}
UNREADABLE = re.compile(r"[\x00-\x20\x7f\\]")
KEPT = "/?:@!$&'()*+,;=-._~%[]"
"""Characters of paths and queries that stay as they are; others are percent-encoded."""

IN_TEXT = re.compile(r"https?://[^\s<>\"`\\^|]{1,4096}", re.IGNORECASE)
CLOSING = re.compile(r"[)\]}'*]")
TRAILING = ".,;:!?)]}'*_~"
TRAILING_MAX = 6


class Url(NamedTuple):
    """Where a request goes."""

    scheme: str
    host: str
    """Normalised."""
    port: int
    target: str
    """Path and query, percent-encoded."""

    @property
    def place(self) -> str:
        """As in a Host header."""
        return shown(self.host) + ("" if self.port == PORTS[self.scheme] else f":{self.port}")

    def __str__(self) -> str:
        return f"{self.scheme}://{self.place}{self.target}"

    def joined(self, location: str) -> Url:
        """Where a redirect from here leads. Raises `Invalid`."""
        if UNREADABLE.search(location) or len(location) > URL_CHARACTERS_MAX:
            raise Invalid("The redirect leads to something that is not a URL.")
        try:
            return parsed(urljoin(str(self), location))
        except ValueError as error:
            raise Invalid("The redirect leads to something that is not a URL.") from error


def parsed(text: str) -> Url:
    """Read a URL. Raises `Invalid` with a sentence that says what is wrong with it."""
    if len(text) > URL_CHARACTERS_MAX:
        raise Invalid(f"A URL may have at most {URL_CHARACTERS_MAX} characters.")
    if UNREADABLE.search(text):
        raise Invalid("A URL holds no spaces, backslashes or control characters.")
    try:
        split = urlsplit(text)
    except ValueError as error:
        raise Invalid("This is not a URL.") from error
    if split.scheme not in PORTS:
        raise Invalid("Only http:// and https:// URLs can be fetched.")
    if "@" in split.netloc:
        raise Invalid("A URL must not hold a user name or password.")
    where = authority(split.netloc.removesuffix(":"))
    if where is None:
        raise Invalid("The URL's host is not one.")
    return Url(split.scheme, where[0], where[1] or PORTS[split.scheme], _target(split))


def is_url(text: str) -> bool:
    """Whether somebody else may be asked to connect there: http or https, with a host, and a port that there can be."""
    try:
        split = urlsplit(text)
        return split.scheme in PORTS and bool(split.hostname) and split.port != 0 and not UNREADABLE.search(text)
    except ValueError:
        return False


def _target(split: SplitResult) -> str:
    query = f"?{split.query}" if split.query else ""
    return quote((split.path or "/") + query, safe=KEPT)


def urls_in(text: str) -> Iterator[str]:
    """The URLs that a text shows, in their one form.

    Where a URL ends in prose is a guess, so each plausible end gives one: `(see https://a.example/b_(c)).` shows two.
    """
    if "://" not in text:
        return
    for match in IN_TEXT.finditer(text):
        for candidate in dict.fromkeys(_ends(match[0])):
            try:
                yield str(parsed(candidate))
            except Invalid:
                continue


def _ends(found: str) -> Iterator[str]:
    yield found
    for _ in range(TRAILING_MAX):
        if found[-1] not in TRAILING:
            break
        found = found[:-1]
        yield found
    yield CLOSING.split(found, maxsplit=1)[0]
