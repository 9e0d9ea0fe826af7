"""Text that strangers wrote, for logs and terminals: those obey control characters, and these are shown instead."""

from __future__ import annotations


def visible(text: str) -> str:
    """The text with all that cannot be seen written out, but for line breaks and tabs."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() or each in "\n\t" else _written(each) for each in text)


def _written(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
