"""Metadata: up to 16 short texts that a client keeps on a resource, and how an update merges into them."""

from __future__ import annotations

from collections.abc import Mapping

from corral.errors import Invalid

PAIRS_MAX = 16
KEY_CHARACTERS_MAX = 64
VALUE_CHARACTERS_MAX = 512


def checked(metadata: Mapping[str, str], *, error_code: str | None = None) -> dict[str, str]:
    """The metadata, if it keeps the limits; else `Invalid`."""
    if len(metadata) > PAIRS_MAX:
        raise Invalid(f"metadata: at most {PAIRS_MAX} pairs are allowed, got {len(metadata)}", error_code=error_code)
    for key, value in metadata.items():
        if not 1 <= len(key) <= KEY_CHARACTERS_MAX:
            raise Invalid(f"metadata: keys must be 1 to {KEY_CHARACTERS_MAX} characters", error_code=error_code)
        if len(value) > VALUE_CHARACTERS_MAX:
            raise Invalid(f"metadata.{key}: must be at most {VALUE_CHARACTERS_MAX} characters", error_code=error_code)
    return dict(metadata)


def patched(
    stored: Mapping[str, str],
    patch: Mapping[str, str | None] | None,
    *,
    empty_deletes: bool = False,
    error_code: str | None = None,
) -> dict[str, str]:
    """The stored metadata after a patch: a value sets its key, null deletes it, a null patch clears all."""
    if patch is None:
        return {}
    merged = dict(stored)
    for key, value in patch.items():
        if value is None or (empty_deletes and value == ""):
            merged.pop(key, None)
        else:
            merged[key] = value
    return checked(merged, error_code=error_code)
