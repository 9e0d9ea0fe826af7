"""Where tools run: the backend that the settings name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from prometheus_client import CollectorRegistry

from corral.config import Settings
from corral.errors import MachineUnfit
from corral.interfaces.sandbox import Sandboxes
from corral.sandboxes.bases import Bases
from corral.sandboxes.bubblewrap import BubblewrapSandboxes, root_directory
from corral.sandboxes.docker import DockerSandboxes
from corral.sandboxes.egress.outlet import Egress
from corral.sandboxes.process import ProcessSandboxes

SANDBOXES: Mapping[str, Callable[[Settings, Callable[[Path], Egress]], Sandboxes]] = {
    "bubblewrap": lambda settings, egress: BubblewrapSandboxes(
        settings.sandbox, settings.data_dir, egress, packages=settings.packages
    ),
    "docker": lambda settings, egress: DockerSandboxes(
        settings.sandbox, settings.data_dir, egress, packages=settings.packages
    ),
    "process": lambda settings, egress: ProcessSandboxes(settings.sandbox, settings.data_dir, egress),
}


def make_sandboxes(settings: Settings, registry: CollectorRegistry | None = None) -> Sandboxes:
    """The backend that the settings name. Raises `MachineUnfit` for one that is not built."""

    def egress(directory: Path) -> Egress:
        return Egress(settings.egress, directory, own_ports=[settings.server.port], registry=registry)

    factory = SANDBOXES.get(settings.sandbox.backend)
    if factory is None:
        raise MachineUnfit(
            f"The `{settings.sandbox.backend}` sandbox is not part of this release. It has: {', '.join(SANDBOXES)}."
        )
    return factory(settings, egress)


def open_bases(settings: Settings) -> Bases:
    """The root file systems that sandboxes may be given."""
    return Bases(root_directory(settings.sandbox, settings.data_dir))
