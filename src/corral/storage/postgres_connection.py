"""Connections to a PostgreSQL server: how they are made, what their failures mean, and which schema there is.

Whatever the server or the network says becomes one sentence here, without the password of the URL. The rights that only
one process can have are advisory locks, which end with the connection that took them. What is in the tables is not
known here.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias
from urllib.parse import urlsplit

import asyncpg
from asyncpg.exceptions import (
    CannotConnectNowError,
    ClientConfigurationError,
    InvalidAuthorizationSpecificationError,
    InvalidCatalogNameError,
    TooManyConnectionsError,
)

from corral.errors import MachineUnfit, Unavailable
from corral.storage.named_sql import Migrated, Migration, read_migrations, read_queries

if TYPE_CHECKING:
    Connection: TypeAlias = asyncpg.Connection[asyncpg.Record]
else:
    Connection = asyncpg.Connection  # which is generic in its stubs only

MIGRATIONS = read_migrations(Path(__file__).with_name("migrations") / "postgres")
SQL = read_queries(Path(__file__).with_name("postgres.sql"))

CONNECT_SECONDS_MAX = 10.0
COMMAND_SECONDS_MAX = 60.0
"""A statement that takes longer is given up, and its connection with it."""
MIGRATION_SECONDS_MAX = 3_600.0

LOCK_CLASS = 0x434F5252
"""Advisory locks of ours are pairs, of which this is the first number."""
MIGRATION_LOCK = 1
WORKER_LOCK = 2

WALKS = {"plan_cache_mode": "force_generic_plan", "enable_seqscan": "off", "enable_bitmapscan": "off"}
"""Every page is one walk along an index, whatever the statistics say today. Planning one takes longer than reading it,
so the server does that once."""

LOST = (
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # the driver's word for a connection that ends while a statement is being sent
    asyncpg.exceptions.AdminShutdownError,
    asyncpg.exceptions.CrashShutdownError,
    CannotConnectNowError,
    TooManyConnectionsError,
    OSError,
    TimeoutError,
)
"""The connection is gone, or as good as gone; what it was doing may have been done or not."""
CLASHED = (asyncpg.SerializationError, asyncpg.exceptions.DeadlockDetectedError)
"""The server chose to undo this transaction; the next attempt may succeed."""


def is_lost(error: BaseException) -> bool:
    """Whether the connection went away. A value that cannot be sent at all is an `InterfaceError` as well."""
    return isinstance(error, LOST) and not isinstance(error, ValueError)


def shown(url: str) -> str:
    """Where a database is, for people to read: never its password."""
    try:
        parts = urlsplit(url)
        place = parts.hostname or "the local socket"
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "the given URL"
    return f"`{parts.path.lstrip('/') or 'postgres'}` at {place}{port}"


@asynccontextmanager
async def explained(url: str) -> AsyncGenerator[None]:
    """Turn a failure to open a database into one sentence for the operator. Raises `MachineUnfit`."""
    try:
        yield
    except InvalidAuthorizationSpecificationError as error:
        raise MachineUnfit(f"The database {shown(url)} refuses the user or the password of the URL.") from error
    except InvalidCatalogNameError as error:
        raise MachineUnfit(f"There is no database {shown(url)}; make it with `createdb` first.") from error
    except (ClientConfigurationError, ValueError) as error:
        raise MachineUnfit(f"The database URL for {shown(url)} cannot be used; see docs/operating.md.") from error
    except (CannotConnectNowError, TooManyConnectionsError) as error:
        raise MachineUnfit(f"The database {shown(url)} takes no connection now: {error}.") from error
    except (OSError, TimeoutError) as error:
        raise MachineUnfit(
            f"No PostgreSQL server answers for {shown(url)}: {error or 'it did not answer in time'}."
        ) from error
    except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise MachineUnfit(f"The database {shown(url)} cannot be opened: {error}") from error


async def connect(url: str, name: str, **settings: str) -> Connection:
    """One connection, outside any pool."""
    return await asyncpg.connect(
        url,
        timeout=CONNECT_SECONDS_MAX,
        command_timeout=COMMAND_SECONDS_MAX,
        server_settings={"application_name": f"corral {name}", "jit": "off", **settings},
    )


async def connect_writer(url: str) -> Connection:
    """The connection that commits. Its few statements find single rows by key, whatever the statistics say today."""
    return await connect(
        url,
        "writer",
        synchronous_commit="on",
        plan_cache_mode="force_generic_plan",
        enable_seqscan="off",
        enable_hashjoin="off",
        enable_mergejoin="off",
        enable_bitmapscan="off",
    )


class Readers:
    """Connections for reads and rare writes, opened as they are needed."""

    def __init__(self, url: str, connections_max: int) -> None:
        self._pool = asyncpg.create_pool(
            url,
            min_size=0,
            max_size=connections_max,
            timeout=CONNECT_SECONDS_MAX,
            command_timeout=COMMAND_SECONDS_MAX,
            server_settings={"application_name": "corral reader", "jit": "off", **WALKS},
            reset=_nothing_to_reset,
        )

    async def start(self) -> None:
        """Before anything else."""
        await self._pool

    @asynccontextmanager
    async def connection(self) -> AsyncGenerator[Connection]:
        """A connection of its own for a while. Raises `Unavailable` when the database cannot do its part."""
        try:
            async with self._pool.acquire(timeout=COMMAND_SECONDS_MAX) as connection:
                yield connection  # pyright: ignore[reportReturnType]  # the pool's proxy is a connection in all but name
        except (asyncpg.PostgresError, *LOST) as error:
            raise Unavailable(f"the database did not answer: {reason(error)}") from error

    async def fetch(self, name: str, *arguments: object) -> list[asyncpg.Record]:
        """Run a read. A connection that broke while it lay idle is replaced, once."""
        for last in (False, True):
            try:
                async with self._pool.acquire(timeout=COMMAND_SECONDS_MAX) as connection:
                    try:
                        return await connection.fetch(SQL[name], *arguments)
                    except asyncpg.InternalClientError:
                        connection.terminate()  # nobody is to get it from the pool again
                        raise
            except LOST as error:
                if last:
                    raise Unavailable(f"the database cannot be read: {reason(error)}") from error
            except asyncpg.PostgresError as error:
                raise Unavailable(f"the database cannot be read: {reason(error)}") from error
        raise AssertionError("unreachable")

    async def close(self) -> None:
        """Close all connections; no read may be running."""
        await self._pool.close()


async def _nothing_to_reset(connection: object) -> None:
    """Reads leave nothing behind on their connection; asking the server to forget it would cost a round trip each."""


def reason(error: BaseException) -> str:
    """What went wrong, in few words. The details of a statement stay inside: they may hold what users wrote."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


# ------------------------------------------------------------------------------------------------------ schema


async def version_of(connection: Connection) -> int:
    """The schema's version; 0 for an empty database."""
    if await connection.fetchval("SELECT to_regclass('corral_schema')") is None:
        return 0
    return int(await connection.fetchval(SQL["schema_version"]) or 0)


async def migrate(url: str) -> Migrated:
    """Bring the schema up to date. Servers that start together take turns.

    Each step is a transaction. Raises `MachineUnfit` for a schema that this program is too old for.
    """
    async with explained(url):
        connection = await connect(url, "migrations", lock_timeout="60s")
        try:
            await connection.execute("SELECT pg_advisory_lock($1, $2)", LOCK_CLASS, MIGRATION_LOCK)
            version = await version_of(connection)
            if version > len(MIGRATIONS):
                raise MachineUnfit(
                    f"The database {shown(url)} was written by a newer Corral "
                    f"(schema {version}, this one has {len(MIGRATIONS)}); use that one."
                )
            for migration in MIGRATIONS[version:]:
                await _apply(connection, migration)
            return Migrated(version, len(MIGRATIONS))
        finally:
            await connection.close(timeout=CONNECT_SECONDS_MAX)


async def _apply(connection: Connection, migration: Migration) -> None:
    async with connection.transaction():
        if migration.version == 1:
            await connection.execute(
                "CREATE TABLE corral_schema (version bigint PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now())"
            )
        await connection.execute(migration.script, timeout=MIGRATION_SECONDS_MAX)
        await connection.execute("INSERT INTO corral_schema (version) VALUES ($1)", migration.version)
