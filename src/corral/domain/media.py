"""Pictures and PDFs by how they begin, whatever they are said to be.

A block that is not what its media type says makes a model's server refuse the whole conversation, in this request and
in every one after it. So whoever makes a block of what others sent looks here first. The sandbox's daemon, which
imports nothing of this, looks in the same way (`daemon/files.py`).
"""

from __future__ import annotations

PDF = "application/pdf"
IMAGES = ("image/png", "image/jpeg", "image/gif", "image/webp")
HEADS = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg", b"GIF8": "image/gif"}
PDF_HEAD_BYTES = 1024


def media_type_of(data: bytes) -> str | None:
    """The media type that models take it as; None for what they do not."""
    for head, media_type in HEADS.items():
        if data.startswith(head):
            return media_type
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "image/webp"
    return PDF if b"%PDF-" in data[:PDF_HEAD_BYTES] else None
