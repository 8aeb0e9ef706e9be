"""Batches into SQL, exactly once: the rows and the position after them are one transaction.

1. The position moves from where the batch begins to where it ends. If it is not at the beginning, another
   projection was faster (or this one, before its connection broke): nothing is written.
2. The rows.
3. Commit. A crash before it leaves neither, after it both.

No fence is needed: two projections that apply the same batch wait for each other at step 1, and the second
finds the position moved.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

import msgspec
import sqlalchemy as sa

from mini_visa.readmodel import schema
from mini_visa.readmodel.database import Database
from mini_visa.readmodel.views import NO_POSITION, Refuse, View
from mini_visa.readmodel.writes import Changes

Place = tuple[str, int]
"""(topic, partition)."""


class Applied(msgspec.Struct, frozen=True):
    """How far a partition is, as the database has it."""

    next_offset: int
    last_offset: int
    """-1: no record of it has been applied yet."""
    last_checksum: str
    as_of: int


class Batch(msgspec.Struct, frozen=True):
    """Records of one partition that follow what has been applied."""

    view: View
    partition: int
    expected: int
    """The position that they begin at: `Applied.next_offset`."""
    records: Sequence[Any]
    as_of: int
    """Everything that was in the topic at this wall-clock time (ms) is applied with this batch."""
    drained: bool = True
    """Nothing followed these records when they were fetched. Otherwise the last command may have more
    events to come: one transaction may be cut in two batches."""

    @property
    def place(self) -> Place:
        return self.view.topic.name, self.partition

    @property
    def next_offset(self) -> int:
        next_offset: int = self.records[-1].offset + 1
        return next_offset


class PositionMoved(Exception):
    """A position is not where the batch begins: nothing was written. Read it again and go on from there."""


def checksum(record: Any) -> str:
    """Of one record's place, time, key and value: 16 hexadecimal digits."""
    digest = hashlib.blake2b(b"%d %d " % (record.offset, record.timestamp), digest_size=8)
    digest.update(record.key or b"")
    digest.update(b"\0")
    digest.update(record.value or b"")
    return digest.hexdigest()


class Applier:
    """The writing end of the read model."""

    def __init__(self, database: Database) -> None:
        self.database = database

    async def positions(self, beginnings: dict[Place, int]) -> dict[Place, Applied]:
        """Where to read on. A partition that was never read begins at its offset in `beginnings`."""
        table = schema.positions
        async with self.database.exclusive(shared=True), self.database.transaction() as connection:
            known = {
                (row.topic, row.partition): Applied(
                    row.next_offset, row.last_offset, row.last_checksum, row.as_of
                )
                for row in await connection.execute(sa.select(table))
            }
            new: list[dict[str, Any]] = [
                {
                    "topic": topic,
                    "partition": partition,
                    "next_offset": beginning,
                    "last_offset": -1,
                    "last_checksum": "",
                    "command_position": NO_POSITION,
                    "event_time": 0,
                    "as_of": 0,
                    "last_position": NO_POSITION,
                }
                for (topic, partition), beginning in beginnings.items()
                if (topic, partition) not in known
            ]
            if new:
                await connection.execute(sa.insert(table), new)
        known |= {(row["topic"], row["partition"]): Applied(row["next_offset"], -1, "", 0) for row in new}
        return {place: known[place] for place in beginnings}

    async def apply(
        self,
        batches: Iterable[Batch],
        refuse: Refuse,
        before_commit: Callable[[], Awaitable[None]] | None = None,
    ) -> int:
        """Write `batches`, each of another partition, as one transaction; returns the number of rows.

        `refuse` gets each record that is not a message of its topic; `before_commit` has seen to them
        when the position moves past them. Raises `PositionMoved`.
        """
        changes = Changes()
        moves = []
        for batch in sorted(batches, key=lambda batch: batch.place):  # one order of locks for all
            position = batch.view.rows(batch.partition, batch.records, changes, refuse)
            last = batch.records[-1]
            moves.append(
                {
                    "_topic": batch.view.topic.name,
                    "_partition": batch.partition,
                    "_expected": batch.expected,
                    "_next": batch.next_offset,
                    "_last": last.offset,
                    "_checksum": checksum(last),
                    "_position": position if batch.drained else position - 1,
                    "_last_position": position,
                    "_time": max(record.timestamp for record in batch.records),
                    "_as_of": batch.as_of,
                }
            )
        async with self.database.exclusive(shared=True), self.database.transaction() as connection:
            for move in moves:
                moved = await connection.execute(_MOVE, move)
                if moved.rowcount != 1:
                    raise PositionMoved(f"{move['_topic']}/{move['_partition']}")
            for write, rows in changes.items():
                await write.execute(connection, rows)
            if before_commit is not None:
                await before_commit()
        return len(changes)

    async def confirm(self, as_of: dict[tuple[Place, int], int]) -> None:
        """Nothing new: (partition, its position) -> the wall-clock time (ms) at which that was so."""
        async with self.database.exclusive(shared=True), self.database.transaction() as connection:
            for (place, next_offset), at in as_of.items():
                await connection.execute(
                    _CONFIRM,
                    {"_topic": place[0], "_partition": place[1], "_expected": next_offset, "_as_of": at},
                )


_row = schema.positions.c
_SAME = sa.and_(
    _row.topic == sa.bindparam("_topic"),
    _row.partition == sa.bindparam("_partition"),
    _row.next_offset == sa.bindparam("_expected"),
)


def _larger(column: sa.Column[Any], name: str) -> sa.Case[Any]:
    parameter = sa.bindparam(name, type_=sa.BigInteger)
    return sa.case((column > parameter, column), else_=parameter)


_MOVE = (
    sa.update(schema.positions)
    .where(_SAME)
    .values(
        next_offset=sa.bindparam("_next"),
        last_offset=sa.bindparam("_last"),
        last_checksum=sa.bindparam("_checksum"),
        command_position=_larger(_row.command_position, "_position"),
        last_position=_larger(_row.last_position, "_last_position"),
        event_time=_larger(_row.event_time, "_time"),
        as_of=_larger(_row.as_of, "_as_of"),
    )
)
_CONFIRM = (
    sa.update(schema.positions)
    .where(_SAME)
    .values(
        as_of=_larger(_row.as_of, "_as_of"),
        command_position=sa.case(
            (_row.last_position > _row.command_position, _row.last_position), else_=_row.command_position
        ),
    )
)
