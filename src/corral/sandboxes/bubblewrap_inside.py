"""What a bubblewrap sandbox looks like from inside: its mounts, its /etc, /proc and environment, as bwrap's arguments.

Data and argument lists only; `bubblewrap.py` finds the programs and runs the command. Every path here is one that a
sandbox's own user can reach on the host.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from corral.sandboxes import programs
from corral.sandboxes.egress import inside
from corral.sandboxes.egress.inside import WayOut
from corral.sandboxes.packages import inside as installed

UID = 1000
HOME = "/home/agent"
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ENVIRONMENT = {
    **installed.ENVIRONMENT,
    "PATH": ":".join((*installed.BIN_DIRECTORIES, "/opt/corral/bin", SYSTEM_PATH)),
    "HOME": HOME,
    "USER": "agent",
    "SHELL": "/bin/bash",
    "LANG": "C.UTF-8",
    "TERM": "dumb",
}
ETC = {
    "passwd": f"root:x:0:0:root:/root:/usr/sbin/nologin\nagent:x:{UID}:{UID}:agent:{HOME}:/bin/bash\n",
    "group": f"root:x:0:\nagent:x:{UID}:\n",
    "hosts": "127.0.0.1 localhost sandbox\n::1 localhost\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
}
ETC_FROM_HOST = (
    "ld.so.cache",
    "alternatives",
    "ssl/certs",
    "ssl/openssl.cnf",
    "ca-certificates",
    "pki/ca-trust",
    "pki/tls/certs",
)
PROC_FILES_MASKED = (
    "config.gz", "kallsyms", "kcore", "keys", "kmsg", "latency_stats", "sched_debug", "sysrq-trigger", "timer_list",
)  # fmt: skip
PROC_DIRECTORIES_MASKED = ("acpi", "asound", "bus", "firmware", "fs", "irq", "pressure", "scsi")
SYSTEM_TRUST = "/etc/ssl/certs/ca-certificates.crt"


class Programs(NamedTuple):
    """What is bound into every sandbox, at paths that a sandbox's user can reach."""

    bwrap: Path
    daemon: Path
    python: programs.Python
    base: Path
    """`etc/` and `bin/`, the latter at the head of PATH for commands that /usr may lack."""
    rg: Path | None
    pip: Path | None
    """Corral's own, for a base that has none."""
    root: Path = Path("/")
    """The base: whose /usr and parts of /etc are inside."""
    layer: Path | None = None
    """The packages of the environment."""


def base_parts(python: programs.Python, root: Path = Path("/")) -> Mapping[str, str]:
    """The files of `Programs.base`, for a base at `root`."""
    # What is empty here is there only to be mounted over.
    parts = {"bin/rg": "", **{f"etc/{name}": text for name, text in ETC.items()}, **installed.COMMANDS}
    parts |= {f"etc/{name}" + ("/.keep" if (root / "etc" / name).is_dir() else ""): "" for name in _etc_from(root)}
    parts["site/sitecustomize.py"] = installed.SITECUSTOMIZE
    for link in root.glob("usr/lib/python3*/sitecustomize.py"):
        # Debian keeps the file in /etc; found there, it works without PYTHONPATH too, which programs may change.
        if link.is_symlink() and link.readlink().is_relative_to("/etc"):
            parts[str(link.readlink().relative_to("/"))] = installed.SITECUSTOMIZE
    if not python.base_has_python:
        run = f'LD_LIBRARY_PATH={programs.BOUND_PREFIX}/lib exec {python.executable} "$@"'
        parts["bin/python3"] = f"#!/bin/sh\n{run}\n"
    if not any(os.path.lexists(root / place / "python") for place in ("usr/bin", "usr/local/bin")):
        # Debian has no `python`, and models write it all the time.
        parts["bin/python"] = '#!/bin/sh\nexec python3 "$@"\n'
    return parts


def arguments(
    found: Programs,
    files: Path | None,
    shared_memory_bytes_max: int,
    way_out: WayOut | None,
    *,
    extra: Iterable[str] = (),
) -> list[str]:
    """The bwrap command up to the program to run; `extra` is mounted last."""
    return [
        str(found.bwrap),
        *("--unshare-user", "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"),
        *("--uid", str(UID), "--gid", str(UID), "--hostname", "sandbox"),
        *("--disable-userns", "--cap-drop", "ALL", "--new-session", "--as-pid-1"),
        *_base(found.root),
        *_etc(found),
        *_proc(),
        *("--dev", "/dev", "--perms", "1777", "--size", str(shared_memory_bytes_max), "--tmpfs", "/dev/shm"),
        *("--remount-ro", "/dev"),
        *_programs(found),
        *_packages(found),
        *_files(files),
        *_way_out(found, way_out),
        *extra,
        *("--remount-ro", "/"),
    ]


def _base(root: Path) -> Iterator[str]:
    yield from ("--ro-bind", str(root / "usr"), "/usr")
    for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
        path = root / name
        if path.is_symlink():
            yield from ("--symlink", os.readlink(path), f"/{name}")
        elif path.is_dir():
            yield from ("--ro-bind", str(path), f"/{name}")


def _etc(found: Programs) -> Iterator[str]:
    yield from ("--ro-bind", str(found.base / "etc"), "/etc")
    for name in _etc_from(found.root):
        if (found.base / "etc" / name).exists():
            yield from ("--ro-bind-try", str(found.root / "etc" / name), f"/etc/{name}")


def _etc_from(root: Path) -> list[str]:
    etc = root / "etc"
    names = [*ETC_FROM_HOST, *(path.name for path in etc.glob("java-*"))]
    return [name for name in names if (etc / name).exists()]


def _proc() -> Iterator[str]:
    yield from ("--proc", "/proc", "--ro-bind", "/proc/sys", "/proc/sys")
    for name in PROC_FILES_MASKED:
        if Path("/proc", name).exists():
            yield from ("--ro-bind", "/dev/null", f"/proc/{name}")
    for name in PROC_DIRECTORIES_MASKED:
        if Path("/proc", name).exists():
            yield from ("--tmpfs", f"/proc/{name}", "--remount-ro", f"/proc/{name}")


def _programs(found: Programs) -> Iterator[str]:
    yield from ("--ro-bind", str(found.daemon), "/opt/corral/lib")
    yield from ("--ro-bind", str(found.base / "bin"), "/opt/corral/bin")
    if found.rg is not None:
        yield from ("--ro-bind", str(found.rg), "/opt/corral/bin/rg")
    if found.python.prefix is not None:
        yield from ("--ro-bind", str(found.python.prefix), programs.BOUND_PREFIX)
    yield from ("--ro-bind", str(found.base / "site"), installed.SITE)
    if found.pip is not None:
        yield from ("--ro-bind", str(found.pip), installed.PIP)


def _packages(found: Programs) -> Iterator[str]:
    if found.layer is None:
        yield from ("--dir", installed.LAYER)
        return
    yield from ("--ro-bind", str(found.layer), installed.LAYER)
    if (found.layer / "npm/lib/node_modules").is_dir():
        # `import` of ES modules does not look at NODE_PATH, but in every directory above.
        yield from ("--symlink", installed.NODE_MODULES, "/node_modules")


def _way_out(found: Programs, way_out: WayOut | None) -> Iterator[str]:
    """The socket's directory and not the socket, so that one that is made anew is seen."""
    if way_out is None:
        return
    yield from ("--ro-bind", str(way_out.socket_directory), inside.PLACE)
    yield from ("--ro-bind", str(way_out.trusted), inside.TRUSTED)
    if (found.root / SYSTEM_TRUST.lstrip("/")).is_file():
        # For programs that read no variable.
        yield from ("--ro-bind", str(way_out.trusted), SYSTEM_TRUST)
    for directory in way_out.directories:
        yield from ("--ro-bind-try", directory, directory)
    for place, path in way_out.files.items():
        yield from ("--ro-bind", str(path), place)


def _files(files: Path | None) -> Iterator[str]:
    """The session's own directories; a trial sandbox has none."""
    if files is None:
        yield from ("--dir", "/workspace", "--chdir", "/workspace")
        return
    inside = {"workspace": "/workspace", "home": HOME, "tmp": "/tmp", "outputs": "/mnt/session/outputs"}
    for name, place in inside.items():
        yield from ("--bind", str(files / name), place)
    yield from ("--ro-bind", str(files / "uploads"), "/mnt/session/uploads", "--chdir", "/workspace")
