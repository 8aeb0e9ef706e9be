"""Connections of the read model to PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import sqlalchemy as sa
from postgresql import postgresql, postgresql_binaries, postgresql_database  # noqa: F401 - fixtures

from mini_visa.readmodel import Database
from mini_visa.settings import Settings


async def test_connections_that_the_server_has_closed_are_not_used_again(
    settings_for: Callable[..., Settings],
    postgresql_database: str,  # noqa: F811
) -> None:
    database = Database.of(settings_for("127.0.0.1:1", database_url=postgresql_database))
    name = sa.text("SELECT pg_backend_pid()")
    try:
        async with database.engine.connect() as one, database.engine.connect() as other:
            ended = await other.scalar(name)
            first = {await one.scalar(name), ended}
            await one.execute(sa.text("SELECT pg_terminate_backend(:pid)"), {"pid": ended})
        await asyncio.sleep(0.1)
        async with database.engine.connect() as one, database.engine.connect() as other:
            after = {await one.scalar(name), await other.scalar(name)}
        assert len(after) == 2 and len(after & first) <= 1 and ended not in after
    finally:
        await database.close()
