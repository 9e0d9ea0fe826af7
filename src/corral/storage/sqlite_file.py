"""The SQLite file itself: where it is, who may open it, how connections are set up, which schema it has.

Opening takes a lock on a file beside the database, so that a second server on the same data refuses to start instead
of fighting over epochs; the lock goes with the process, however it dies. What is in the tables is not known here.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote

from corral.errors import MachineUnfit
from corral.storage.named_sql import read_migrations

MIGRATIONS = read_migrations(Path(__file__).with_name("migrations"))
QUERIES = Path(__file__).with_name("queries.sql")

BUSY_SECONDS = 5.0
"""How long to wait for another program that has the file open, such as a backup."""
CACHE_KIB = 64 * 1024
CHECKPOINT_PAGES = 16_384
"""Pages in the write-ahead log before they go to the database, where a page that many commits touched goes once."""
LOG_BYTES_MAX = 128 * 1024 * 1024
"""What stays of the write-ahead log on disk after a checkpoint."""


class InUse(MachineUnfit):
    """Another server has the database."""


class Lock:
    """The right of one process to a database file."""

    def __init__(self, database: Path) -> None:
        self._descriptor = os.open(database.with_name(database.name + ".lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(self._descriptor, 32).decode(errors="replace").strip() or "unknown"
            os.close(self._descriptor)
            raise InUse(f"{database} is in use by process {holder}; stop that server first.") from error
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Let others open the file. The lock file stays: removing it would race with the next to lock it."""
        os.close(self._descriptor)


def path_of(location: str | Path) -> Path:
    """The file that a URL `sqlite:///path` or a path names."""
    text = str(location)
    if text.startswith("sqlite:///"):
        text = text.removeprefix("sqlite:///")
    if not text or "://" in text or text.startswith((":memory:", "file:")):
        raise MachineUnfit(f"`{location}` is not a database that this backend can open; use sqlite:///path.")
    return Path(text).expanduser().absolute()


def open_exclusive(path: Path) -> tuple[Lock, sqlite3.Connection]:
    """Make the file if need be, lock it, and bring its schema up to date. Raises `InUse`, `MachineUnfit`."""
    with _opening(path):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        lock = Lock(path)
        try:
            connection = _connect_writer(path, _migrate)
        except BaseException:
            lock.release()
            raise
        return lock, connection


def open_shared(path: Path) -> sqlite3.Connection:
    """Open the file whether or not a server has it. Only a server's own version of the schema will do."""
    try:
        lock, connection = open_exclusive(path)
    except InUse:
        with _opening(path):
            connection = _connect_writer(path, _check_current)
    else:
        lock.release()
    return connection


def version_at(path: Path) -> int:
    """The schema's version of a file, 0 if there is none yet. Changes nothing."""
    if not path.exists():
        return 0
    with _opening(path), closing(connect_reader(path)) as connection:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
    return version


@contextmanager
def _opening(path: Path) -> Generator[None]:
    """Turn what the machine says into one sentence for the operator."""
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        raise MachineUnfit(f"The database {path} cannot be opened: {error}") from error


def _connect_writer(path: Path, prepare: Callable[[sqlite3.Connection, Path], object]) -> sqlite3.Connection:
    """The one connection that writes. Every commit on it is on disk when it returns."""
    connection = _connect(path, "rw")
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
        connection.execute(f"PRAGMA journal_size_limit = {LOG_BYTES_MAX}")
        prepare(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def connect_reader(path: Path) -> sqlite3.Connection:
    """A connection that cannot write."""
    return _connect(path, "ro")


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"file:{quote(str(path))}?mode={mode}",
        uri=True,
        timeout=BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,
    )
    connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
    connection.execute("PRAGMA temp_store = MEMORY")
    return connection


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    """Bring the schema up to date, one transaction for each step. The version is the file's `user_version`."""
    version = _version(connection, path, at_least=0)
    for migration in MIGRATIONS[version:]:
        try:
            connection.executescript(
                f"BEGIN IMMEDIATE;\n{migration.script}\nPRAGMA user_version = {migration.version};\nCOMMIT;"
            )
        except sqlite3.Error:
            if connection.in_transaction:
                connection.rollback()
            raise


def _check_current(connection: sqlite3.Connection, path: Path) -> None:
    _version(connection, path, at_least=len(MIGRATIONS))


def _version(connection: sqlite3.Connection, path: Path, *, at_least: int) -> int:
    """The file's version. Raises `MachineUnfit` for one that this program cannot use."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if not at_least <= version <= len(MIGRATIONS):
        newer = "newer" if version > len(MIGRATIONS) else "older"
        raise MachineUnfit(
            f"{path} was written by a {newer} Corral (schema {version}, this one has {len(MIGRATIONS)}); use that one."
        )
    return version
