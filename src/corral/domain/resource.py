"""Resources: what a session is given besides its agent. Files, today.

A session has a copy of its own of each file, with an id of its own; the upload may be deleted meanwhile. Where a file
is mounted follows from what was asked for; two files never share a place.

Source: the API's public documentation; SDK type `beta_managed_agents_file_resource`.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TypeAlias

import msgspec

from corral.domain.file import FILES_PER_SESSION_MAX, UPLOADS, Mount
from corral.errors import Invalid


class FileResourceParams(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="file"
):
    """A file to mount."""

    file_id: str
    mount_path: str | None = None


class RepositoryParams(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="github_repository"):
    """A repository to clone; refused until that is built."""


class MemoryStoreParams(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="memory_store"):
    """A memory store to attach; refused until that is built."""


ResourceParams: TypeAlias = FileResourceParams | RepositoryParams | MemoryStoreParams


class FileResource(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="file"):
    """A mounted file as the wire shows it."""

    id: str
    file_id: str
    """The session's copy."""
    mount_path: str
    created_at: datetime
    updated_at: datetime


class MountedFile(msgspec.Struct, frozen=True, kw_only=True):
    """A mounted file, with what is needed to mount it."""

    resource: FileResource
    sha256: str

    def mount(self) -> Mount:
        """Where it goes among the uploads."""
        return Mount(self.resource.mount_path.removeprefix(f"{UPLOADS}/"), self.sha256)


def check_mounts(mounted: Sequence[MountedFile]) -> None:
    """Whether a session can have all of these. Raises `Invalid`."""
    if len(mounted) > FILES_PER_SESSION_MAX:
        raise Invalid(f"resources: a session has at most {FILES_PER_SESSION_MAX} files")
    taken: set[str] = set()
    for each in mounted:
        if each.resource.mount_path in taken:
            raise Invalid(f"mount_path: {each.resource.mount_path} is taken by another resource")
        taken.add(each.resource.mount_path)
    for path in sorted(taken):
        parent = path.rpartition("/")[0]
        while len(parent) > len(UPLOADS):
            if parent in taken:
                raise Invalid(f"mount_path: {path} lies below {parent}, which is a file")
            parent = parent.rpartition("/")[0]
