"""The disk is full: requests are refused with an error that says so, nothing is half written, and it passes.

The server's data directory is a small tmpfs in a mount namespace of the server's own; filling it fills nothing else.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import anthropic
import pytest

from tests.crash.legality import assert_legal
from tests.e2e.conftest import ServerProcess
from tests.e2e.sessions import history, new_session, send, turn, wait_until_idle

DISK_BYTES = 24 * 1024 * 1024
PIECE = b"\0" * 65_536
MESSAGES_MAX = 400
LONG = "x" * 20_000
MOUNT = f'mount -t tmpfs -o size={DISK_BYTES} tmpfs "$0" && exec "$@"'
UNSHARE = ("unshare", "-m") if os.geteuid() == 0 else ("unshare", "-r", "-m")
TOML = '[sandbox]\nbackend = "process"\n[harness]\nbackoff_seconds = 0.02\n'


def _cannot_mount() -> str | None:
    """Why there can be no small disk here."""
    if shutil.which("unshare") is None:
        return "there is no `unshare` on this machine"
    with tempfile.TemporaryDirectory() as place:
        tried = subprocess.run([*UNSHARE, "sh", "-c", MOUNT, place, "true"], capture_output=True, timeout=30)
    return None if tried.returncode == 0 else f"no tmpfs can be mounted in a namespace: {tried.stderr.decode()}"


class SmallDisk:
    """A server on a disk that can be filled and emptied."""

    def __init__(self, server: ServerProcess) -> None:
        assert server.process is not None
        self.server = server
        self.data = Path(f"/proc/{server.process.pid}/root") / str(server.directory / "data").lstrip("/")

    def fill(self) -> None:
        """Take all space that is left."""
        with (self.data / "filler").open("ab", buffering=0) as filler:
            for piece in (PIECE, b"\0"):
                try:
                    while filler.write(piece) == len(piece):
                        continue
                except OSError as error:
                    assert error.errno == errno.ENOSPC

    def empty(self) -> None:
        """Give it back."""
        (self.data / "filler").unlink()


@pytest.fixture
def small() -> Iterator[SmallDisk]:
    if why := _cannot_mount():
        pytest.skip(why)
    directory = Path(tempfile.mkdtemp(prefix="corral-crash-"))
    directory.chmod(0o711)
    server = ServerProcess(directory, toml=TOML)
    (directory / "data").mkdir()
    server.launcher = (*UNSHARE, "sh", "-c", MOUNT, str(directory / "data"))
    try:
        server.start()
        yield SmallDisk(server)
        assert server.watch.problems == []
    finally:
        server.stop()
        shutil.rmtree(directory)


@pytest.mark.requirement("F069")
def test_a_full_disk_refuses_what_it_cannot_keep_and_recovers(small: SmallDisk) -> None:
    with small.server.client() as client:
        session = new_session(client, {"type": "custom", "name": "w", "description": "d", "input_schema": SCHEMA})
        turn(client, session.id, "before")
        small.fill()
        taken: list[str] = []
        refused = ""
        for number in count():
            assert number < MESSAGES_MAX, "the disk does not fill"
            refused = f"message {number}. {LONG}"
            try:
                send(client, session.id, refused)
            except anthropic.InternalServerError as error:
                assert error.status_code in (503, 529)
                assert "database" in error.message
                break
            taken.append(refused)
        assert client.beta.sessions.retrieve(session.id).id == session.id
        with pytest.raises(anthropic.InternalServerError) as caught:
            client.beta.files.upload(file=("large.bin", PIECE * 64, "application/octet-stream"))
        assert caught.value.status_code in (503, 529), caught.value
        small.empty()
        wait_until_idle(client, session.id)
        turn(client, session.id, "after")
        client.beta.files.upload(file=("large.bin", PIECE, "application/octet-stream"))
        events = history(client, session.id)
        assert_legal([event.to_dict() for event in events])
        sent = [event.content[0].to_dict()["text"] for event in events if event.type == "user.message"]
        assert sent == ["before", *taken, "after"]
        assert refused not in sent
        assert list((small.data / "blobs" / "incoming").iterdir()) == []


SCHEMA: dict[str, object] = {"type": "object"}
