"""Begins the read model anew: it is emptied, and the projection fills it again from the log's beginning."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from mini_visa.readmodel.database import Database, DatabaseUnusable, first_line
from mini_visa.readmodel.schema import HEAD, metadata


async def rebuild(database: Database) -> None:
    """All rows and positions are gone, in one transaction; a schema of another version is made anew.

    A projection that runs meanwhile finds its position moved and starts over; until it has caught up,
    queries see less than there is. Raises `DatabaseUnusable`."""
    assert database.write, "opened for reading"
    try:
        if await database.revision() == HEAD:
            async with database.exclusive(), database.transaction() as connection:
                for table in reversed(metadata.sorted_tables):
                    await connection.execute(sa.delete(table))
            return
        async with database.exclusive(), database.transaction() as connection:
            await connection.run_sync(_drop_everything)
        await database.migrate()
    except (OSError, DBAPIError) as error:
        raise DatabaseUnusable(f"{database}: {first_line(error)}") from error


def _drop_everything(connection: sa.Connection) -> None:
    """Tables as they are there, which may be those of another version of this program."""
    found = sa.MetaData()
    found.reflect(connection)
    found.drop_all(connection)
