"""A small root file system out of parts of this machine's own: bash, Python and, where it is there, apt with a
repository of one package. For tests of bases, which need no network that way.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

PROGRAMS = "bash sh env cat ls id mkdir touch head sleep true uname chmod chown rm ln cp mv dirname readlink python3"
APT_PROGRAMS = (
    "apt-get apt-config dpkg dpkg-deb dpkg-split dpkg-query tar gzip xz diff ldconfig start-stop-daemon find sed grep"
)
LEFT_OUT = ("__pycache__", "test", "dist-packages", "site-packages", "idlelib", "tkinter")
SECONDS_MAX = 60
DIRECTORIES = (
    "etc/apt/apt.conf.d etc/apt/preferences.d var/lib/apt/lists/partial var/cache/apt/archives/partial "
    "var/lib/dpkg/info var/lib/dpkg/updates var/lib/dpkg/triggers var/log/apt tmp opt srv"
)


def can_be_made() -> bool:
    """Whether this machine is laid out so that its parts work elsewhere."""
    merged = all(Path("/", name).is_symlink() for name in ("bin", "lib", "sbin"))
    return merged and Path("/usr/bin/python3").exists() and Path("/usr/bin/ldd").exists()


def has_apt() -> bool:
    """Whether there is an apt to take along."""
    return all(shutil.which(name) for name in ("apt-get", "dpkg", "dpkg-deb"))


def write(tar: Path, *, scratch: Path, apt: bool = False) -> None:
    """A tar of the base."""
    programs = [found for name in PROGRAMS.split() if (found := _program(name))]
    programs += [found for name in APT_PROGRAMS.split() if apt and (found := _program(name))]
    places = ("/usr/lib/apt", "/usr/share/dpkg") if apt else ()
    extra = [path for place in places for path in Path(place).rglob("*") if path.is_file()]
    files = {*programs, *extra}
    with tarfile.open(tar, "w") as archive:
        for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
            if Path("/", name).is_symlink():
                archive.add(Path("/", name), name, recursive=False)
        for path in sorted({*files, *_libraries(files), *_standard_library()}):
            _add(archive, path)
        _text(archive, "usr/lib/os-release", 'PRETTY_NAME="Small"\n')
        _text(archive, "etc/passwd", "root:x:0:0:root:/root:/bin/sh\n")
        _text(archive, "etc/group", "root:x:0:\n")
        if apt:
            _add_apt(archive, scratch)


def _program(name: str) -> Path | None:
    found = shutil.which(name, path="/usr/bin:/usr/sbin:/usr/local/bin")
    return Path(found) if found else None


def _libraries(files: Iterable[Path]) -> Iterator[Path]:
    """Everything that these load, by the paths they load it by."""
    dynamic = [*files, *Path(f"/usr/lib/{_python().name}/lib-dynload").glob("*.so")]
    said = subprocess.run(
        ["/usr/bin/ldd", *map(str, dynamic)], capture_output=True, text=True, timeout=SECONDS_MAX, check=False
    )
    for line in said.stdout.splitlines():
        for word in line.split():
            if word.startswith("/") and not word.endswith(":"):
                yield Path("/usr") / word.lstrip("/") if not word.startswith("/usr/") else Path(word)


def _python() -> Path:
    return Path("/usr/bin/python3").resolve()


def _standard_library() -> Iterator[Path]:
    top = Path(f"/usr/lib/{_python().name}")
    for path in top.rglob("*"):
        if path.is_file() and not any(part in LEFT_OUT for part in path.relative_to(top).parts):
            yield path


def _add(archive: tarfile.TarFile, path: Path) -> None:
    """A file, and what it is a link to."""
    while path.is_symlink():
        archive.add(path, str(path).lstrip("/"), recursive=False)
        path = Path(os.path.normpath(path.parent / path.readlink()))
    if path.exists() and path.resolve().is_relative_to("/usr"):
        archive.add(path.resolve(), str(path.resolve()).lstrip("/"), recursive=False)


def _text(archive: tarfile.TarFile, name: str, text: str | bytes) -> None:
    data = text.encode() if isinstance(text, str) else text
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(data), 0o644
    archive.addfile(member, io.BytesIO(data))


def _add_apt(archive: tarfile.TarFile, scratch: Path) -> None:
    for name in DIRECTORIES.split():
        member = tarfile.TarInfo(name)
        member.type, member.mode = tarfile.DIRTYPE, 0o755
        archive.addfile(member)
    _text(archive, "var/lib/dpkg/status", "")
    _text(archive, "etc/apt/sources.list", "deb [trusted=yes] file:/usr/share/repository ./\n")
    deb, control = _package(scratch)
    data = deb.read_bytes()
    index = f"{control}Filename: ./{deb.name}\nSize: {len(data)}\nSHA256: {hashlib.sha256(data).hexdigest()}\n"
    _text(archive, f"usr/share/repository/{deb.name}", data)
    _text(archive, "usr/share/repository/Packages", index)


def _package(scratch: Path) -> tuple[Path, str]:
    """A package with a command, a file in /etc, and a script that runs when it is installed."""
    tree = scratch / "probe-d"
    for name in ("DEBIAN", "usr/bin", "etc/alternatives"):
        (tree / name).mkdir(parents=True)
        (tree / name).chmod(0o755)
    control = "Package: probe-d\nVersion: 1.0\nArchitecture: all\nMaintainer: nobody <nobody@example.com>\n"
    control += "Description: a probe\n"
    (tree / "DEBIAN" / "control").write_text(control, encoding="utf-8")
    (tree / "DEBIAN" / "postinst").write_text("#!/bin/sh\necho configured > /usr/lib/probe-d\n", encoding="utf-8")
    (tree / "usr" / "bin" / "probe-d").write_text("#!/bin/sh\ncat /usr/lib/probe-d\n", encoding="utf-8")
    for name in ("DEBIAN/postinst", "usr/bin/probe-d"):
        (tree / name).chmod(0o755)
    deb = scratch / "probe-d_1.0_all.deb"
    build = ["dpkg-deb", "--build", "--root-owner-group", str(tree), str(deb)]
    subprocess.run(build, check=True, capture_output=True, timeout=SECONDS_MAX)
    return deb, control


if __name__ == "__main__":
    write(Path(sys.argv[1]), scratch=Path(sys.argv[2]), apt=True)
