"""Packages made by hand in a directory, for tests that install without a registry.

What is a source distribution here builds itself with a backend of its own: strangers' code, as a real one may be.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

BACKEND = """
import base64, hashlib, zipfile


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    found = {}
    HOSTILE
    name, version = "NAME", "VERSION"
    path = f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(f"{wheel_directory}/{path}", "w") as wheel:
        info = f"{name}-{version}.dist-info"
        wheel.writestr(f"{name}.py", f"found = {found!r}")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(f"{info}/RECORD", "")
    return path
"""


class Index:
    """A directory for pip's `--find-links`, with packages for npm beside."""

    def __init__(self, place: Path) -> None:
        self.place = place
        place.mkdir(exist_ok=True)
        place.chmod(0o755)

    @property
    def machine(self) -> dict[str, str]:
        """What a machine would say in its environment that has this index and no other."""
        return {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.place)}

    def wheel(self, name: str, version: str = "1.0", *, needs: Sequence[str] = ()) -> None:
        """A module that says its version, and a command of its name that does too."""
        info = f"{name}-{version}.dist-info"
        requires = "".join(f"Requires-Dist: {each}\n" for each in needs)
        files = {
            f"{name}.py": f"version = {version!r}\n\n\ndef main():\n    print({name + ' ' + version!r})\n",
            f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{requires}",
            f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            f"{info}/entry_points.txt": f"[console_scripts]\n{name} = {name}:main\n",
        }
        with zipfile.ZipFile(self.place / f"{name}-{version}-py3-none-any.whl", "w") as archive:
            for path, text in files.items():
                archive.writestr(path, text)
            archive.writestr(f"{info}/RECORD", _record(files, f"{info}/RECORD"))

    def source(self, name: str, version: str = "1.0", *, hostile: str) -> None:
        """A package that is built where it is installed; `hostile` runs then, and may note things in `found`."""
        body = "\n    ".join(hostile.strip().splitlines())
        backend = BACKEND.replace("HOSTILE", body).replace("NAME", name).replace("VERSION", version)
        project = f'[project]\nname = "{name}"\nversion = "{version}"\n'
        project += '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        files = {"pyproject.toml": project, "backend.py": backend, "PKG-INFO": f"Name: {name}\nVersion: {version}\n"}
        _tar(self.place / f"{name}-{version}.tar.gz", f"{name}-{version}", files)

    def npm(self, name: str, version: str = "1.0.0") -> str:
        """A module that says its version, and a command; what to call it in an environment."""
        manifest = {"name": name, "version": version, "main": "index.js", "bin": {name: "index.js"}}
        script = f"#!/usr/bin/env node\nmodule.exports = '{version}';\n"
        script += f"if (require.main === module) console.log('{name} {version}');\n"
        path = self.place / f"{name}-{version}.tgz"
        _tar(path, "package", {"package.json": json.dumps(manifest), "index.js": script})
        return f"file:{path}"


def _record(files: Mapping[str, str], own: str) -> str:
    lines: list[str] = []
    for path, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")
        lines.append(f"{path},sha256={digest},{len(text.encode())}")
    return "\n".join([*lines, f"{own},,", ""])


def _tar(path: Path, top: str, files: Mapping[str, str]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(f"{top}/{name}")
            member.size, member.mode = len(text.encode()), 0o755
            archive.addfile(member, io.BytesIO(text.encode()))
