"""Settings for a server that leaves nothing outside one directory."""

from __future__ import annotations

from pathlib import Path


def passable(directory: str) -> Path:
    """The directory, opened for the users that sandboxes run as when this runs as root."""
    Path(directory).chmod(0o711)
    return Path(directory)


def overrides(directory: str) -> dict[str, object]:
    """For `config.load`."""
    place = passable(directory)
    return {"data_dir": f"{place}/data", "cache_dir": directory, "sandbox.directory": f"{place}/sandboxes"}
