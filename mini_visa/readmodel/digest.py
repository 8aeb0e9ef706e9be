"""The rows of a read model as one number a table: equal numbers, equal rows, whatever the database."""

from __future__ import annotations

import hashlib
from typing import Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from mini_visa.readmodel import schema

ROWS_AT_ONCE: Final = 10_000
BYTES: Final = 16

TABLES: Final = tuple(table for table in schema.metadata.sorted_tables if table is not schema.positions)
"""Positions tell how far, not what: the times in them differ from one projection to the next."""


async def digest(connection: AsyncConnection) -> dict[str, tuple[int, str]]:
    """Table -> (rows, sum of the rows' hashes). The order of rows plays no part: databases sort texts in
    different ways. `connection`: of `Database.snapshot`."""
    digests = {}
    for table in TABLES:
        count = total = 0
        query = sa.select(*(table.c[name] for name in sorted(table.c.keys())))
        async with connection.stream(query.execution_options(yield_per=ROWS_AT_ONCE)) as rows:
            async for part in rows.partitions():
                for row in part:
                    count += 1
                    total += int.from_bytes(
                        hashlib.blake2b(repr(tuple(row)).encode(), digest_size=BYTES).digest()
                    )
        digests[table.name] = count, f"{total % 2 ** (8 * BYTES):032x}"
    return digests
