"""The engine that tests may use, and an image for them made of this machine's own programs.

No registry is needed: the image holds bash, python3 and the common commands, with the libraries that `ldd` names. It is
made once for an engine, under a name that carries a digest of this file.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

import msgspec

from corral.config_sections import SandboxSettings
from corral.errors import MachineUnfit
from corral.sandboxes import programs
from corral.sandboxes.docker_engine import EngineApi

PROGRAMS = """
bash sh python3 awk base64 basename cat chgrp chmod chown cp curl cut date dd df diff dirname du echo env expr false
find getent git grep head hostname id install kill ldd less ln ls md5sum mkdir mkfifo mknod mktemp mount mv nice nohup
nproc numfmt od openssl paste pgrep ps printenv printf pwd readlink realpath rm rmdir sed seq setsid sha256sum sleep
sort split stat stty su sudo sync tail tar tee test timeout touch tr true truncate uname uniq unshare wc which who
whoami xargs yes
""".split()
STANDARD_LIBRARY = "import sysconfig; print(sysconfig.get_path('stdlib'))"
LEFT_OUT = ("site-packages", "dist-packages", "test", "tests", "idlelib", "tkinter", "ensurepip", "__pycache__")
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
FOLDERS = {"tmp": 0o1777, "root": 0o700, "proc": 0o555, "sys": 0o555, "dev": 0o755, "etc": 0o755}
SECONDS_MAX = 120


def host() -> str:
    """Where the engine is."""
    return os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"


def settings_for_docker(settings: SandboxSettings, *, images: Mapping[str, str] | None = None) -> SandboxSettings:
    """The same settings, with this engine and the image of the tests; `images` are for single environments."""
    docker = msgspec.structs.replace(settings.docker, host=host(), image=image(), images=images or {})
    return msgspec.structs.replace(settings, docker=docker)


@cache
def why_not() -> str | None:
    """What keeps tests from using an engine; makes the image when nothing does."""
    try:
        EngineApi(msgspec.structs.replace(SandboxSettings().docker, host=host())).look()
    except MachineUnfit as error:
        return f"{error.message} `make test-docker` starts one for the tests."
    make_image(image(), PROGRAMS)
    return None


@cache
def image() -> str:
    """Its name; `CORRAL_TEST_IMAGE` names another."""
    listed = hashlib.sha256(Path(__file__).read_bytes() + os.uname().release.encode())
    return os.environ.get("CORRAL_TEST_IMAGE") or f"corral-tests:{listed.hexdigest()[:12]}"


def make_image(named: str, commands: Sequence[str]) -> None:
    """Let the engine have an image with these of the machine's programs, unless it has one of that name."""
    from docker import APIClient
    from docker.errors import ImageNotFound

    with APIClient(host(), version="auto", timeout=SECONDS_MAX) as client:
        with contextlib.suppress(ImageNotFound):
            client.inspect_image(named)  # pyright: ignore[reportUnknownMemberType]  # the SDK's types are incomplete
            return
        with tempfile.TemporaryDirectory() as directory:
            name, _, tag = named.partition(":")
            tar = str(_tar(Path(directory, "image.tar"), commands))
            client.import_image_from_file(tar, repository=name, tag=tag)  # pyright: ignore[reportUnknownMemberType]  # the same


def image_id() -> str:
    """What the engine calls it."""
    return EngineApi(settings_for_docker(SandboxSettings()).docker).image(image()).id


def image_with(variables: Mapping[str, str]) -> str:
    """The name of another image: the one of the tests, with these variables too."""
    from docker import APIClient
    from docker.errors import ImageNotFound

    changes = [f"ENV {name}={value}" for name, value in variables.items()]
    name = "corral-tests-with"
    tag = hashlib.sha256("\n".join([image(), *changes]).encode()).hexdigest()[:12]
    with APIClient(host(), version="auto", timeout=SECONDS_MAX) as client:
        try:
            client.inspect_image(f"{name}:{tag}")  # pyright: ignore[reportUnknownMemberType]  # the same
        except ImageNotFound:
            made = str(client.create_container(image(), ["true"])["Id"])  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]  # the same
            client.commit(made, name, tag, changes=changes)  # pyright: ignore[reportUnknownMemberType]  # the same
            client.remove_container(made)
    return f"{name}:{tag}"


def _tar(place: Path, commands: Sequence[str]) -> Path:
    with tarfile.open(place, mode="w") as tar:
        for name in ("bin", "sbin", "lib", "lib64"):
            if Path("/", name).is_symlink():
                tar.add(f"/{name}", name)
        for path in sorted(_wanted(commands)):
            tar.add(path, path.lstrip("/"), recursive=False)
        for name, mode in FOLDERS.items():
            folder = tarfile.TarInfo(name)
            folder.type, folder.mode = tarfile.DIRTYPE, mode
            tar.addfile(folder)
    return place


def _wanted(commands: Sequence[str]) -> set[str]:
    """Programs, the standard library of python3, and every library that they load."""
    found = {path for name in commands if (path := shutil.which(name, path="/usr/local/bin:/usr/bin:/bin"))}
    if "python3" in commands:
        found |= set(_standard_library())
    if Path(CERTIFICATES).exists():
        found.add(CERTIFICATES)
    ripgrep = map(str, filter(None, [programs.ripgrep()]))
    loaded = subprocess.run(["ldd", *found, *ripgrep], capture_output=True, text=True, check=False).stdout
    found |= {word for line in loaded.splitlines() for word in line.split() if word.startswith("/") and ":" not in word}
    return {each for path in found for each in _with_targets(path)}


def _standard_library() -> Iterator[str]:
    asked = subprocess.run(["/usr/bin/python3", "-c", STANDARD_LIBRARY], capture_output=True, text=True, check=True)
    for folder, folders, names in os.walk(asked.stdout.strip()):
        folders[:] = [name for name in folders if name not in LEFT_OUT]
        yield from (os.path.join(folder, name) for name in names)


def _with_targets(path: str) -> list[str]:
    """A path below the links of its directory, and what it points to in the end, with the links on the way."""
    places = [os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))]
    while os.path.islink(places[-1]) and len(places) < 10:
        target = os.path.join(os.path.dirname(places[-1]), os.readlink(places[-1]))
        places.append(os.path.join(os.path.realpath(os.path.dirname(target)), os.path.basename(target)))
    return [place for place in places if os.path.lexists(place)]
