"""What a container that holds a sandbox looks like: its mounts, limits and walls, as the engine's SDK takes them.

Data only; `docker.py` decides when one is made. The whole configuration is one wall and is tested together: no network,
a read-only root, no capabilities, no new privileges, a user id of the sandbox's own, the allow-list of system calls,
and /proc and /sys masked as in a bubblewrap sandbox.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from corral.config_sections import SandboxSettings
from corral.sandboxes.directory import SessionDirectory
from corral.sandboxes.egress import inside
from corral.sandboxes.egress.inside import WayOut
from corral.sandboxes.packages import inside as installed
from corral.sandboxes.packages.workshop import LIBRARY, PLACES
from corral.sandboxes.seccomp_profile import profile

HOME = "/home/agent"
DOOR = "/opt/corral/door"
BIN = "/opt/corral/bin"
PLAIN_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
VARIABLES = {"HOME": HOME, "USER": "agent", "SHELL": "/bin/bash", "TERM": "dumb"}
MASKED = (
    "/sys", "/proc/acpi", "/proc/asound", "/proc/config.gz", "/proc/firmware", "/proc/kallsyms", "/proc/kcore",
    "/proc/keys", "/proc/kmsg", "/proc/latency_stats", "/proc/sched_debug", "/proc/scsi", "/proc/sysrq-trigger",
    "/proc/timer_list", "/proc/timer_stats",
)  # fmt: skip
READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys")


class Container(NamedTuple):
    """What to make."""

    config: Mapping[str, Any]
    """For the SDK's `create_container`."""
    host: Mapping[str, Any]
    """For the SDK's `create_host_config`."""
    masked: Sequence[str]
    read_only: Sequence[str]


class Parts(NamedTuple):
    """What of this machine is mounted into every container."""

    daemon: Path
    own: Path
    """`bin/`, Corral's programs; `site/` and `corral.pth`, which let Python find packages."""
    pip: Path | None
    """Corral's own, for an image that has none."""


class Installed(NamedTuple):
    """The packages of an environment."""

    layer: Path
    site_packages: str
    """Where the image's Python looks last for its own; may be empty."""


def variables(of_image: Mapping[str, str]) -> dict[str, str]:
    """What is set inside: what the image brings, and ours. What is installed comes first, then what the image has, and
    Corral's own programs last."""
    ours = {**installed.ENVIRONMENT, **VARIABLES}
    for name in ("PYTHONPATH", "NODE_PATH"):
        if name in of_image:
            ours[name] += f":{of_image[name]}"
    if gems := of_image.get("GEM_HOME"):
        # Where such an image has its own, beside Ruby's, for which the colon at the end stands.
        ours["GEM_PATH"] += f"{gems}:"
    path = (*installed.BIN_DIRECTORIES, of_image.get("PATH", PLAIN_PATH), BIN)
    return {"LANG": "C.UTF-8", **of_image, **ours, "PATH": ":".join(path)}


def container(
    image: str,
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    uid: int,
    place: str,
    mounts: Sequence[Mapping[str, Any]],
    labels: Mapping[str, str],
    settings: SandboxSettings,
) -> Container:
    """A container that runs `command` at `place`, as the user `uid`."""
    config = {
        "image": image,
        "entrypoint": list(command),
        "command": [],
        "user": f"{uid}:{uid}",
        "environment": dict(environment),
        "working_dir": place,
        "hostname": "sandbox",
        "labels": dict(labels),
        "healthcheck": {"test": ["NONE"]},
    }
    host = {
        "mounts": list(mounts),
        "network_mode": "none",
        "ipc_mode": "private",
        "read_only": True,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges", f"seccomp={json.dumps(profile(platform.machine()))}"],
        # The session's files have the uids of this machine, so the engine must not shift them.
        "userns_mode": "host",
        "auto_remove": True,
        "log_config": {"Type": "none"},
        "shm_size": settings.shared_memory_bytes_max,
        "mem_limit": settings.memory_bytes_max,
        "memswap_limit": settings.memory_bytes_max,
        "pids_limit": settings.processes_max,
        "nano_cpus": int(min(settings.cpus_max, os.cpu_count() or 1) * 1e9),
        "ulimits": _ulimits(core=0, nofile=settings.open_files_max),
        "runtime": settings.docker.runtime,
    }
    return Container(config, host, MASKED, READ_ONLY)


def _ulimits(**limits: int) -> list[dict[str, int | str]]:
    return [{"Name": name, "Soft": value, "Hard": value} for name, value in limits.items()]


def session_mounts(
    directory: SessionDirectory, parts: Parts, way_out: WayOut | None, installed_here: Installed | None
) -> list[dict[str, Any]]:
    """The session's own directories to write to; the rest to read."""
    files = directory.files
    writable = {"workspace": "/workspace", "home": HOME, "tmp": "/tmp", "outputs": "/mnt/session/outputs"}
    mounts = [_mount(files / name, place) for name, place in writable.items()]
    mounts.append(_mount(files / "uploads", "/mnt/session/uploads", read_only=True))
    mounts += _packages(installed_here, parts) if installed_here else []
    return [*mounts, *_common_mounts(directory.server, parts, way_out)]


def _packages(found: Installed, parts: Parts) -> Iterator[dict[str, Any]]:
    yield _mount(found.layer, installed.LAYER, read_only=True)
    if (found.layer / "npm/lib/node_modules").is_dir():
        # `import` of ES modules does not look at NODE_PATH, but in every directory above.
        yield _mount(found.layer / "npm/lib/node_modules", "/node_modules", read_only=True)
    if found.site_packages.startswith("/"):
        yield _mount(parts.own / "corral.pth", f"{found.site_packages}/corral.pth", read_only=True)


def build_mounts(draft: Path, parts: Parts, way_out: WayOut | None) -> list[dict[str, Any]]:
    """For a build over a draft: a layer that is to be, to write to."""
    return [*(_mount(draft / name, place) for name, place in PLACES.items()), *_common_mounts(draft, parts, way_out)]


def _common_mounts(entry: Path, parts: Parts, way_out: WayOut | None) -> list[dict[str, Any]]:
    mounts = [_mount(entry / name, f"/etc/{name}", read_only=True) for name in ("passwd", "group")]
    mounts.append(_mount(entry / "door", DOOR, read_only=True))
    mounts.append(_mount(parts.daemon, LIBRARY, read_only=True))
    mounts.append(_mount(parts.own / "bin", BIN, read_only=True))
    mounts.append(_mount(parts.own / "site", installed.SITE, read_only=True))
    if parts.pip is not None:
        mounts.append(_mount(parts.pip, installed.PIP, read_only=True))
    if way_out is not None:
        mounts.append(_mount(way_out.socket_directory, inside.PLACE, read_only=True))
        mounts.append(_mount(way_out.trusted, inside.TRUSTED, read_only=True))
        mounts += [_mount(Path(each), each, read_only=True) for each in way_out.directories]
        mounts += [_mount(path, place, read_only=True) for place, path in way_out.files.items()]
    return mounts


def _mount(source: Path, target: str, *, read_only: bool = False) -> dict[str, Any]:
    # As a mount and not as a bind: then the engine refuses a source it does not see, and makes no empty directory.
    return {"Type": "bind", "Source": str(source), "Target": target, "ReadOnly": read_only}


def accounts(uid: int) -> Mapping[str, str]:
    """`passwd` and `group` for the inside."""
    return {
        "passwd": f"root:x:0:0:root:/root:/usr/sbin/nologin\nagent:x:{uid}:{uid}:agent:{HOME}:/bin/bash\n",
        "group": f"root:x:0:\nagent:x:{uid}:\n",
    }
