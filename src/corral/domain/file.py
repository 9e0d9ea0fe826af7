"""Files: what clients upload, what sessions are given, and what sessions leave in their outputs.

A file is a record; its bytes are a blob that other files may share. A session is given copies: records of their own
over the same bytes. What a session wrote to its outputs has an id that follows from session, path and content, so that
the same output keeps its id however often it is looked for.

Source: the API's public documentation; SDK types `beta_file_metadata`, `file_upload_params`.
"""

from __future__ import annotations

import hashlib
import mimetypes
import re
import unicodedata
from datetime import datetime
from typing import NamedTuple

import msgspec

from corral.errors import Invalid

FILE_KIND = "file"
"""Of records."""
REFERENCE_KIND = "blob_reference"
"""Of records that say that something needs a blob: `parent_id` is its hash. While there is one, the blob stays."""
FILENAME_CHARACTERS_MAX = 255
FILENAME_FORBIDDEN = frozenset('<>:"|?*')
EXPIRY_SECONDS_MIN, EXPIRY_SECONDS_MAX = 3_600, 7_776_000
MIME_TYPE = re.compile(r"[a-z0-9][a-z0-9!#$&^_.+-]{0,126}/[a-z0-9][a-z0-9!#$&^_.+-]{0,126}")
MIME_TYPE_UNKNOWN = "application/octet-stream"
IMAGE_MIME_TYPES = ("image/jpeg", "image/png", "image/gif", "image/webp")
PDF_MIME_TYPE = "application/pdf"
IMAGE_BYTES_MAX = 7_864_320
"""Ten megabytes of base64."""
DOCUMENT_BYTES_MAX = 24 * 1024 * 1024
"""Thirty-two megabytes of base64: what a model request may hold."""

FILES_PER_SESSION_MAX = 500
UPLOADS = "/mnt/session/uploads"
MOUNT_PATH_CHARACTERS_MAX = 1_024
MOUNT_NAME_BYTES_MAX = 255

_KNOWN_TYPES = mimetypes.MimeTypes()  # not the machine's own list: the same name means the same everywhere
_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


class Blob(NamedTuple):
    """Bytes that are stored."""

    sha256: str
    size_bytes: int


class Mount(NamedTuple):
    """A file that a session is to find among its uploads."""

    path: str
    """Below `/mnt/session/uploads`."""
    sha256: str


class Output(NamedTuple):
    """A file that a session has written."""

    path: bytes
    """Below `/mnt/session/outputs`. Names of files need not be text."""
    size_bytes: int
    stamp: str
    """Differs when the content may differ."""


class File(msgspec.Struct, frozen=True, kw_only=True):
    """A file, as stored."""

    id: str
    filename: str
    mime_type: str
    size_bytes: int
    sha256: str
    created_at: datetime
    downloadable: bool = False
    expires_at: datetime | None = None
    session_id: str | None = None
    """The session it belongs to and goes with."""
    output_path: bytes | None = None
    """For an output, where it was found."""
    output_stamp: str | None = None

    def has_expired(self, now: datetime) -> bool:
        """Whether its bytes may no longer be used."""
        return self.expires_at is not None and self.expires_at <= now


class FileScope(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="session"):
    """What a file belongs to."""

    id: str


class FileMetadata(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="file"):
    """A file as the wire shows it."""

    id: str
    created_at: datetime
    filename: str
    mime_type: str
    size_bytes: int
    downloadable: bool
    expires_at: datetime | None
    scope: FileScope | None


def view(file: File) -> FileMetadata:
    """What clients see of a file."""
    return FileMetadata(
        id=file.id,
        created_at=file.created_at,
        filename=file.filename,
        mime_type=file.mime_type,
        size_bytes=file.size_bytes,
        downloadable=file.downloadable,
        expires_at=file.expires_at,
        scope=None if file.session_id is None else FileScope(id=file.session_id),
    )


def mime_type_of(given: str, filename: str) -> str:
    """The type that the client gave, or the one that the name suggests."""
    named = given.partition(";")[0].strip().lower()
    if named and named != MIME_TYPE_UNKNOWN:
        if not MIME_TYPE.fullmatch(named):
            raise Invalid(f"file: `{given[:80]}` is not a media type")
        return named
    return _KNOWN_TYPES.guess_type(filename)[0] or MIME_TYPE_UNKNOWN


def checked_filename(given: str, mime_type: str) -> str:
    """The last part of the path that the client gave, or `unnamed`. Raises `Invalid`."""
    name = re.split(r"[/\\]", given)[-1]
    if name in ("", ".", ".."):
        return "unnamed" + (_KNOWN_TYPES.guess_extension(mime_type) or "")
    if len(name) > FILENAME_CHARACTERS_MAX:
        raise Invalid(f"file: a filename has at most {FILENAME_CHARACTERS_MAX} characters")
    if FILENAME_FORBIDDEN & set(name) or _has_control_characters(name):
        raise Invalid(
            f"file: a filename holds no control characters and none of {' '.join(sorted(FILENAME_FORBIDDEN))}"
        )
    return name


def _has_control_characters(text: str) -> bool:
    """Line breaks and the like, and what reverses the direction of writing."""
    return any(unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") for character in text)


def check_expiry(seconds: int) -> int:
    """The time to live, if it is allowed."""
    if not EXPIRY_SECONDS_MIN <= seconds <= EXPIRY_SECONDS_MAX:
        raise Invalid(f"expires_in_seconds: must be between {EXPIRY_SECONDS_MIN} and {EXPIRY_SECONDS_MAX}")
    return seconds


def output_id(session_id: str, path: bytes, sha256: str) -> str:
    """The id of this content at this path of this session."""
    digest = hashlib.sha256(b"\0".join((session_id.encode(), path, sha256.encode()))).digest()
    number = int.from_bytes(digest[:17], "big")
    return "file_" + "".join(_ALPHABET[number >> shift & 31] for shift in range(125, -1, -5))


def output_filename(path: bytes) -> str:
    """The name that an output is shown under: whatever an agent chose, made presentable."""
    name = path.rpartition(b"/")[2].decode("utf-8", "replace")
    return "".join("_" if _has_control_characters(each) else each for each in name)[:FILENAME_CHARACTERS_MAX]


def output_mime_type(path: bytes) -> str:
    """The type that an output's name suggests."""
    return _KNOWN_TYPES.guess_type(output_filename(path))[0] or MIME_TYPE_UNKNOWN


def mount_path(given: str | None, file_id: str) -> str:
    """Where a session finds a file, rooted under the uploads. Raises `Invalid` for what leads out of them."""
    if given is None:
        return f"{UPLOADS}/{file_id}"
    if not 1 <= len(given) <= MOUNT_PATH_CHARACTERS_MAX or _has_control_characters(given):
        raise Invalid(f"mount_path: must be 1 to {MOUNT_PATH_CHARACTERS_MAX} characters without control characters")
    below = given.removeprefix(UPLOADS + "/") if given.startswith(UPLOADS + "/") else given.removeprefix("/")
    parts = below.split("/")
    if given == UPLOADS or any(part in ("", ".", "..") for part in parts):
        raise Invalid(f"mount_path: must name a file under {UPLOADS}, without empty parts, `.` or `..`")
    if any(len(part.encode()) > MOUNT_NAME_BYTES_MAX for part in parts):
        raise Invalid(f"mount_path: a name in it has at most {MOUNT_NAME_BYTES_MAX} bytes")
    return f"{UPLOADS}/{below}"
