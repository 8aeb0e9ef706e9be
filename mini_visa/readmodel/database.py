"""The SQL database behind the read model: where it is, how it is opened, and which schema it has."""

from __future__ import annotations

import asyncio
import fcntl
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import resources
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InvalidatePoolError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from mini_visa.errors import UserError
from mini_visa.readmodel.schema import HEAD
from mini_visa.settings import Settings

LIVE: Final = "mini_visa"
"""PostgreSQL schema that queries read."""
NEXT: Final = "mini_visa_next"
"""PostgreSQL schema in which a rebuild writes, until it takes the other's place."""

READERS_MAX: Final = 8
"""Connections of one reading process."""
BUSY_TIMEOUT_MS: Final = 5_000
LOCK_POLL_S: Final = 0.005
CACHE_KIB: Final = 64 << 10
MIGRATION_LOCK: Final = 0x6D76_7265
REBUILD_LOCK: Final = 0x6D76_7266
"""PostgreSQL advisory locks of whoever changes the schema ("mvre"), and of whoever rebuilds."""

TRY_AGAIN_SQLITE: Final = frozenset(
    getattr(sqlite3, f"SQLITE_{name}") for name in ("BUSY", "LOCKED", "IOERR", "FULL", "CANTOPEN")
)
TRY_AGAIN_POSTGRESQL: Final = frozenset(("08", "40", "53", "55", "57"))
"""Classes of SQLSTATE: connection, rollback (deadlock), resources, locks, operator intervention."""

SQLITE_PRAGMAS: Final = (
    "PRAGMA journal_mode=WAL",  # readers never wait for the writer
    "PRAGMA synchronous=NORMAL",  # power loss takes the rows back together with their position
    f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}",
    f"PRAGMA cache_size=-{CACHE_KIB}",
    "PRAGMA temp_store=MEMORY",
    "PRAGMA wal_autocheckpoint=8000",  # 32 MB: fewer, larger checkpoints
)


class DatabaseUnusable(UserError):
    """The database cannot be used as it is. The text says why and what to do, without a password."""


class SchemaOlder(DatabaseUnusable):
    """The schema lacks a migration that this program needs."""


class SchemaNewer(DatabaseUnusable):
    """The schema was made by a newer program."""


def sqlite_file(settings: Settings) -> Path:
    """Where the read model is when the setting `database_url` names no other place."""
    return settings.home / "readmodel.sqlite"


def database_url(settings: Settings) -> URL:
    """The setting `database_url` with the driver this project uses. Raises `DatabaseUnusable`."""
    if not settings.database_url:
        return URL.create("sqlite+aiosqlite", database=str(sqlite_file(settings)))
    try:
        url = make_url(settings.database_url)
    except ArgumentError:
        raise DatabaseUnusable(
            "MINI_VISA_DATABASE_URL is not a URL: DIALECT://USER:PASSWORD@HOST:PORT/DATABASE"
        ) from None
    backend = url.get_backend_name()
    if backend == "sqlite":
        if not url.database or url.database == ":memory:":
            raise DatabaseUnusable("MINI_VISA_DATABASE_URL: SQLite needs a file, sqlite:////var/lib/x.sqlite")
        return url.set(drivername="sqlite+aiosqlite")
    if backend in ("postgresql", "postgres"):
        return url.set(drivername="postgresql+asyncpg")
    raise DatabaseUnusable(f"MINI_VISA_DATABASE_URL: {backend} is not supported, use postgresql or sqlite")


class Database:
    """Connections to one copy of the read model: SQLite's file or PostgreSQL's schema.

    A writing one has a single connection, whose transactions take the write lock at their beginning.
    """

    def __init__(self, url: URL, *, schema: str = LIVE, write: bool = False) -> None:
        self.url = url
        self.schema = schema
        self.sqlite = url.get_backend_name() == "sqlite"
        self.write = write
        self.engine = self._engine()

    @classmethod
    def of(cls, settings: Settings, *, write: bool = False) -> Database:
        return cls(database_url(settings), write=write)

    def reading(self) -> Database:
        """The same for reading, with connections of its own."""
        return Database(self.url, schema=self.schema)

    def beside(self) -> Database:
        """Where a copy is made that is to take this one's place."""
        if self.sqlite:
            return Database(self.url.set(database=str(self.file.with_suffix(".next.sqlite"))), write=True)
        return Database(self.url, schema=NEXT, write=True)

    @property
    def file(self) -> Path:
        """SQLite only."""
        assert self.sqlite and self.url.database
        return Path(self.url.database)

    def __str__(self) -> str:
        return str(self.file) if self.sqlite else f"{self.url.render_as_string()} schema {self.schema}"

    def _engine(self) -> AsyncEngine:
        pool: dict[str, Any] = {
            "pool_size": 1 if self.write else READERS_MAX,
            "max_overflow": 0,
            "pool_timeout": 10.0,
            "hide_parameters": True,  # an error's text shows no row
        }
        if not self.sqlite:
            # The position is in the same transaction as the rows, so a transaction that a crash of
            # the server takes back is applied again: waiting for its disk would buy nothing.
            session = {
                "search_path": self.schema,
                "application_name": "mini-visa",
                "synchronous_commit": "off",
                "default_transaction_read_only": "off" if self.write else "on",
            }
            engine = create_async_engine(
                self.url,
                connect_args={"server_settings": session, "timeout": 5.0, "command_timeout": 60.0},
                isolation_level="READ COMMITTED" if self.write else "AUTOCOMMIT",
                **pool,
            )

            @sa.event.listens_for(engine.sync_engine, "checkout")
            def _taken(connection: Any, _record: Any, _proxy: Any) -> None:
                # Without asking the server, as `pool_pre_ping` does: that took a gateway as long as a query.
                if connection.driver_connection.is_closed():
                    raise InvalidatePoolError("the server has closed its connections")

            return engine
        engine = create_async_engine(
            self.url,
            connect_args={"isolation_level": None, "timeout": BUSY_TIMEOUT_MS / 1000},
            **pool,
        )
        write = self.write

        @sa.event.listens_for(engine.sync_engine, "connect")
        def _connected(connection: Any, _record: Any) -> None:
            cursor = connection.cursor()
            for pragma in SQLITE_PRAGMAS:
                cursor.execute(pragma)
            if not write:
                cursor.execute("PRAGMA query_only=ON")
            cursor.close()

        if write:

            @sa.event.listens_for(engine.sync_engine, "begin")
            def _begun(connection: sa.Connection) -> None:
                connection.exec_driver_sql("BEGIN IMMEDIATE")

        return engine

    async def close(self) -> None:
        await self.engine.dispose()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        """One write transaction: all of it or, when the block raises, nothing."""
        assert self.write, "opened for reading"
        async with self.engine.begin() as connection:
            yield connection

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[AsyncConnection]:
        """For reading: every statement in the block sees one moment."""
        async with self.engine.connect() as connection:
            if self.sqlite:
                if not self.write:  # a writing connection has begun a transaction already
                    await connection.exec_driver_sql("BEGIN")
            else:
                await connection.execution_options(isolation_level="REPEATABLE READ")
            yield connection
            await connection.rollback()

    # -- the schema --------------------------------------------------------------------------------

    async def revision(self) -> str | None:
        """The newest migration that was applied here; None when there is no schema at all."""
        async with self.engine.connect() as connection:
            return await _revision(connection)

    async def check(self) -> None:
        """Raises `SchemaOlder` or `SchemaNewer` unless the schema is this program's."""
        _compare(await self.revision(), self)

    async def prepare(self, settings: Settings) -> None:
        """Migrate where the setting `database_migrate` allows it, otherwise only check.

        Raises `DatabaseUnusable`, also when there is no such database."""
        try:
            if settings.database_migrate and self.write:
                await self.migrate()
            else:
                await self.check()
        except (OSError, DBAPIError) as error:
            raise DatabaseUnusable(f"{self}: {first_line(error)}") from error

    async def migrate(self) -> None:
        """Make or bring up to date the schema. Any number of processes may do so at once.

        Raises `SchemaNewer` when a newer program made it, `DatabaseUnusable` when it may not be changed.
        """
        assert self.write, "opened for reading"
        if self.sqlite:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self.file.touch(mode=0o600)  # who pays whom is nobody else's business
        async with self.exclusive():
            revision = await self.revision()
            if revision == HEAD:
                return
            if revision is not None and revision > HEAD:
                _compare(revision, self)
            async with self.transaction() as connection:
                if not self.sqlite:
                    await connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})")
                    await connection.exec_driver_sql(f"CREATE SCHEMA IF NOT EXISTS {self.schema}")
                await connection.run_sync(_upgrade)

    async def erase(self) -> None:
        """Nothing is left of it: for the copy of `beside`."""
        await self.close()
        if self.sqlite:
            remove_sqlite(self.file)
            return
        async with self.transaction() as connection:
            await connection.exec_driver_sql(f"DROP SCHEMA IF EXISTS {self.schema} CASCADE")

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Nobody else is in such a block for this database. Raises `DatabaseUnusable` when somebody is."""
        taken = DatabaseUnusable(f"{self}: another rebuild is at work; wait for it, or end it")
        if self.sqlite:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.with_suffix(".rebuild.lock").open("a") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise taken from None
                yield
            return
        holder = Database(self.url, schema=self.schema)
        try:
            async with holder.engine.connect() as connection:
                if not await connection.scalar(sa.text(f"SELECT pg_try_advisory_lock({REBUILD_LOCK})")):
                    raise taken
                yield
        finally:
            await holder.close()

    @asynccontextmanager
    async def exclusive(self, *, shared: bool = False) -> AsyncIterator[None]:
        """SQLite: hold the file's lock, which a projection shares and a change of the whole file has alone.
        PostgreSQL has locks of its own: nothing is done here."""
        if not self.sqlite:
            yield
            return
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        with self.file.with_suffix(".lock").open("a") as lock:
            while True:
                try:
                    fcntl.flock(lock, kind | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    await asyncio.sleep(LOCK_POLL_S)
            yield


async def _revision(connection: AsyncConnection) -> str | None:
    def read(sync: sa.Connection) -> str | None:
        if not sa.inspect(sync).has_table("alembic_version"):
            return None
        found: str | None = sync.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()
        return found

    return await connection.run_sync(read)


def _compare(revision: str | None, database: Database) -> None:
    if revision == HEAD:
        return
    if revision is not None and revision > HEAD:
        raise SchemaNewer(
            f"{database}: its schema {revision} is newer than this program's {HEAD}; "
            "run the newer program, or rebuild: mini-visa readmodel rebuild"
        )
    state = "has no read model yet" if revision is None else f"its schema {revision} is older than {HEAD}"
    raise SchemaOlder(f"{database}: {state}; run: mini-visa readmodel migrate")


def _upgrade(connection: sa.Connection, revision: str = "head") -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    with resources.as_file(resources.files("mini_visa.readmodel") / "migrations") as folder:
        config.set_main_option("script_location", str(folder).replace("%", "%%"))
        config.attributes["connection"] = connection
        command.upgrade(config, revision)


def remove_sqlite(file: Path) -> None:
    """The file, its log and its index."""
    for suffix in ("", "-wal", "-shm"):
        file.with_name(file.name + suffix).unlink(missing_ok=True)


def first_line(error: BaseException) -> str:
    """What the driver says, without the statement and its values."""
    text = str(getattr(error, "orig", None) or error)
    return text.splitlines()[0] if text else type(error).__name__


def is_connection_lost(error: BaseException) -> bool:
    """The database went away, is starting, is busy or full: to be tried again. Anything else is a bug, or
    a database that has to be repaired."""
    if isinstance(error, OSError | asyncio.TimeoutError):
        return True
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    origin = getattr(error, "orig", None) or error
    sqlite_code = getattr(origin, "sqlite_errorcode", None)
    if sqlite_code is not None:
        return sqlite_code & 0xFF in TRY_AGAIN_SQLITE
    return str(getattr(origin, "sqlstate", None) or "")[:2] in TRY_AGAIN_POSTGRESQL
