"""The read model made anew from the log, beside the one that is read, and put in its place in one step.

1. Everything is applied to an empty copy: SQLite, another file; PostgreSQL, another schema. Queries and
   the projection go on with the live one.
2. The copy is brought to exactly the positions of one moment of the live one, and their rows are compared:
   a difference is a fault of the live one, or of the program that wrote it.
3. The projection is held, the copy catches up with the live one, and takes its place: SQLite's pages are
   copied over the live file in one transaction, PostgreSQL's schemas are renamed in one transaction. A
   query sees the rows before or the rows after, never none and never both.

Topics with a bound (alerts, sagas) give back what they still hold: rows of expired records are not made anew.

A rebuild that ends early, however that happens, leaves the live one as it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import msgspec
import sqlalchemy as sa
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from mini_visa.kafka import client_options
from mini_visa.readmodel import schema
from mini_visa.readmodel.database import (
    LIVE,
    NEXT,
    Database,
    DatabaseUnusable,
    first_line,
    remove_sqlite,
)
from mini_visa.readmodel.digest import digest
from mini_visa.readmodel.projector import ProjectionStopped, Projector, check_topics
from mini_visa.readmodel.schema import HEAD
from mini_visa.readmodel.views import ALL, View
from mini_visa.settings import Settings

LIVE_BEHIND_S: Final = 20.0
"""How long a live read model that is behind the new one is waited for before the comparison is left out."""
NEAR_RECORDS: Final = 2_000
"""The projection is held once the copy is this near to the live one."""
LOCK_TIMEOUT: Final = "30s"

Extent = Mapping[TopicPartition, int]
"""An offset for each partition."""
Show = Callable[[str, int, int], None]
"""Takes what is being done, records done, and records in all (0: not known)."""


class Rebuilt(msgspec.Struct, frozen=True, kw_only=True):
    """What a rebuild did."""

    records: int
    rows: dict[str, int]
    """Table -> rows of the new read model; {} when nothing was compared."""
    compared: bool
    """False: there was nothing to compare with, or the live one did not catch up."""
    different: list[str]
    """Tables whose live rows were not those of the log."""
    switched: bool


async def rebuild(
    settings: Settings, *, switch: bool = True, views: Sequence[View] = ALL, show: Show | None = None
) -> Rebuilt:
    """Make the read model anew; with `switch` False only compare, and leave the live one as it is.

    Raises `DatabaseUnusable` or `ProjectionStopped` with one line that says what to do.
    """
    show = show or (lambda *_: None)
    live = Database.of(settings, write=True)
    copy = live.beside()
    try:
        async with copy.alone():
            await copy.erase()
            await copy.migrate()
            try:
                return await _rebuild(settings, live, copy, switch, views, show)
            finally:
                await copy.erase()
    except (OSError, DBAPIError, sqlite3.Error) as error:
        raise DatabaseUnusable(f"{live}: {first_line(error)}") from error
    finally:
        await copy.close()
        await live.close()


async def _rebuild(
    settings: Settings, live: Database, copy: Database, switch: bool, views: Sequence[View], show: Show
) -> Rebuilt:
    done = 0

    async def apply(until: Extent, what: str, records: int) -> None:
        nonlocal done
        projector = Projector(settings, copy, views=views)
        await projector.run(until, progress=lambda count: show(what, count, records))
        done += projector.records

    beginnings, ends = await _extent(settings, views)
    await apply(ends, "applying the log", sum(ends.values()) - sum(beginnings.values()))

    rows: dict[str, int] = {}
    different: list[str] = []
    compared = False
    same_log = await _is_of_this_log(settings, live, views)
    if same_log:
        async with _a_moment_after(live, copy, views) as moment:
            if moment is not None:
                await apply(await _positions(moment, views), "catching up", 0)
                show("comparing", 0, 0)
                async with copy.snapshot() as ours:
                    made, found = await digest(ours), await digest(moment)
                rows = {table: count for table, (count, _) in made.items()}
                forgotten = _tables_of_expired_records(views, beginnings)
                different = sorted(t for t in made if made[t] != found[t] and t not in forgotten)
                compared = True
    if switch:

        async def catch_up(behind_max: int) -> None:
            """Until the copy has what the live one has, but for `behind_max` records."""
            while same_log:
                wanted = await _positions_of(live, views)
                behind = _behind(await _positions_of(copy, views), wanted)
                if behind <= behind_max:
                    return
                await apply(wanted, "catching up", behind)

        await catch_up(NEAR_RECORDS)
        show("switching", 0, 0)
        change = _change_sqlite if live.sqlite else _change_postgresql
        await change(live, copy, lambda: catch_up(0))
    return Rebuilt(records=done, rows=rows, compared=compared, different=different, switched=switch)


# -- how far -----------------------------------------------------------------------------------------


async def _extent(settings: Settings, views: Sequence[View]) -> tuple[Extent, Extent]:
    """Where the views' topics begin and end. Raises `ProjectionStopped` when one is missing."""
    names = [view.topic.name for view in views]
    await check_topics(settings, names)
    consumer = AIOKafkaConsumer(*names, **client_options(settings), isolation_level="read_committed")
    await consumer.start()
    try:
        places = sorted(consumer.assignment())  # without a group: all
        return await consumer.beginning_offsets(places), await consumer.end_offsets(places)
    except KafkaError as error:
        raise ProjectionStopped(f"Kafka: {error}") from error
    finally:
        await consumer.stop()


async def _positions(connection: AsyncConnection, views: Sequence[View]) -> Extent:
    names = {view.topic.name for view in views}
    table = schema.positions.c
    found = await connection.execute(sa.select(table.topic, table.partition, table.next_offset))
    return {TopicPartition(row[0], row[1]): row[2] for row in found if row[0] in names}


async def _positions_of(database: Database, views: Sequence[View]) -> Extent:
    reader = database.reading()
    try:
        async with reader.engine.connect() as connection:
            return await _positions(connection, views)
    finally:
        await reader.close()


def _behind(have: Extent, wanted: Extent) -> int:
    return sum(max(0, offset - have.get(place, 0)) for place, offset in wanted.items())


async def _is_of_this_log(settings: Settings, live: Database, views: Sequence[View]) -> bool:
    """The live read model has this program's schema, and no position beyond the log's end."""
    try:
        if await live.revision() != HEAD:
            return False
    except DBAPIError:
        return False
    positions = await _positions_of(live, views)
    _, ends = await _extent(settings, views)
    return all(offset <= ends.get(place, 0) for place, offset in positions.items())


@asynccontextmanager
async def _a_moment_after(
    live: Database, copy: Database, views: Sequence[View]
) -> AsyncIterator[AsyncConnection | None]:
    """A snapshot of the live read model that is nowhere behind the copy; None when it stays behind."""
    ours = await _positions_of(copy, views)
    reader = live.reading()
    give_up_at = time.monotonic() + LIVE_BEHIND_S
    try:
        while True:
            async with reader.snapshot() as moment:
                if _behind(await _positions(moment, views), ours) == 0:
                    yield moment
                    return
            if time.monotonic() > give_up_at:
                yield None
                return
            await asyncio.sleep(0.1)
    finally:
        await reader.close()


def _tables_of_expired_records(views: Sequence[View], beginnings: Extent) -> set[str]:
    """Of topics that are not kept for ever and no longer begin at 0: the live one remembers more."""
    expired = {place.topic for place, offset in beginnings.items() if offset > 0}
    return {write.table.name for view in views if view.topic.name in expired for write in view.writes}


# -- the change --------------------------------------------------------------------------------------


async def _change_sqlite(live: Database, copy: Database, catch_up: Callable[[], Awaitable[None]]) -> None:
    """The copy's pages become the live file's, in one transaction of SQLite's own backup."""
    async with live.exclusive():
        await catch_up()
        await copy.close()
        await live.close()
        await asyncio.to_thread(_copy_pages, copy.file, live.file)


def _copy_pages(source: Path, target: Path) -> None:
    target.touch(mode=0o600)
    with contextlib.closing(sqlite3.connect(source)) as made:
        try:
            with contextlib.closing(sqlite3.connect(target)) as replaced:
                made.backup(replaced)
        except sqlite3.DatabaseError as error:
            if error.sqlite_errorcode not in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
                raise
            # What is there cannot even be read: nobody reads it. Away with it.
            remove_sqlite(target)
            target.touch(mode=0o600)
            with contextlib.closing(sqlite3.connect(target)) as replaced:
                made.backup(replaced)


async def _change_postgresql(live: Database, copy: Database, catch_up: Callable[[], Awaitable[None]]) -> None:
    """The copy's schema takes the live one's name, in one transaction."""
    exists = await live.revision() is not None
    async with live.transaction() as connection:
        await connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'")
        if exists:
            await connection.exec_driver_sql(f"LOCK TABLE {LIVE}.positions IN EXCLUSIVE MODE")
        await catch_up()
        await copy.close()
        await connection.exec_driver_sql(f"DROP SCHEMA IF EXISTS {LIVE} CASCADE")
        await connection.exec_driver_sql(f"ALTER SCHEMA {NEXT} RENAME TO {LIVE}")
