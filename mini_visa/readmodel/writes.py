"""Rows in bulk: a batch's rows per table, and the few statements that write them.

SQLite takes many rows a statement (`VALUES (...), (...)`): the interpreter's lock is given up and taken
back per statement, and another busy thread may keep it for 5 ms each time. PostgreSQL takes one array a
column (`unnest`): one statement and one round trip for any number of rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from itertools import chain
from typing import Any, Final, Literal

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

Row = tuple[Any, ...]

SQLITE_ROWS: Final = (64, 8, 1)
"""Rows a statement. Few sizes, so that each statement is prepared once and stays in the cache."""


class Write:
    """How rows of `table` are written, all columns of it in the order of the schema.

    `again` says what happens to a row whose primary key is there: the named columns change (an index is
    written anew only if one of its columns is among them), "ignore" the new row, or "never" (it would be
    a bug: the transaction fails). Of those that change, `adds` grow by the new value.
    """

    def __init__(
        self,
        table: sa.Table,
        again: Sequence[str] | Literal["ignore", "never"],
        adds: Sequence[str] = (),
    ) -> None:
        self.table = table
        self.columns = [column.name for column in table.columns]
        conflict = ""
        if again == "ignore":
            conflict = " ON CONFLICT DO NOTHING"
        elif again != "never":
            keys = [column.name for column in table.primary_key]
            changes = ", ".join(
                f'"{name}" = excluded."{name}"' + (f' + "{table.name}"."{name}"' if name in adds else "")
                for name in again
            )
            conflict = f" ON CONFLICT ({_names(keys)}) DO UPDATE SET {changes}"
        self._head = f'INSERT INTO "{table.name}" ({_names(self.columns)}) '
        self._tail = conflict

    @cache  # noqa: B019 - a handful of these exist, for as long as the process
    def sqlite(self, rows: int) -> str:
        one = f"({', '.join('?' * len(self.columns))})"
        return f"{self._head}VALUES {', '.join([one] * rows)}{self._tail}"

    @cache  # noqa: B019
    def postgresql(self) -> str:
        arrays = ", ".join(
            f"${number}::{'bigint' if isinstance(column.type, sa.Integer) else 'text'}[]"
            for number, column in enumerate(self.table.columns, 1)
        )
        return f"{self._head}SELECT * FROM unnest({arrays}){self._tail}"  # noqa: S608 - the schema's own names

    async def execute(self, connection: AsyncConnection, rows: Sequence[Row]) -> None:
        """Write `rows`, whose primary keys differ from each other."""
        if not rows:
            return
        if connection.dialect.name == "postgresql":
            await connection.exec_driver_sql(self.postgresql(), tuple(map(list, zip(*rows, strict=True))))
            return
        start = 0
        for size in SQLITE_ROWS:
            chunks = []
            while len(rows) - start >= size:
                chunks.append(tuple(chain.from_iterable(rows[start : start + size])))
                start += size
            if chunks:  # one call for all of them: each is a way to SQLite's thread and back
                await connection.exec_driver_sql(self.sqlite(size), chunks)


class Changes:
    """The rows of one batch. A key that is written again replaces the row before it."""

    def __init__(self) -> None:
        self._rows: dict[Write, dict[Any, Row]] = {}

    def rows(self, write: Write) -> dict[Any, Row]:
        """Primary key -> row, to be filled."""
        return self._rows.setdefault(write, {})

    def items(self) -> Iterable[tuple[Write, list[Row]]]:
        """Rows in the order of their primary keys, which come first in each: a table and its indexes are
        then filled from one end, and two writers lock rows in one order."""
        return ((write, sorted(rows.values())) for write, rows in self._rows.items())

    def __len__(self) -> int:
        return sum(map(len, self._rows.values()))


def _names(columns: Iterable[str]) -> str:
    return ", ".join(f'"{name}"' for name in columns)
