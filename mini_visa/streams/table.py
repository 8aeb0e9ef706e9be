"""A table: rows remembered per partition, in RocksDB, rebuilt from the processor's changelog.

Rows are values: to change one, store a new one. A handler sees its own staged writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Generic, Protocol, TypeVar, cast

import msgspec

V = TypeVar("V")

SEPARATOR: Final = b"\x00"
CACHE_ROWS_MAX: Final = 40_000
"""Decoded rows of a table over all partitions of the source, which one worker may have. A bound on memory,
never on correctness."""
CACHE_ROWS_OF_PARTITION: Final = (1_000, 10_000)
"""And of a partition at least and at most."""


def cache_rows(partitions: int) -> int:
    """Decoded rows that a table keeps of each of `partitions`."""
    least, most = CACHE_ROWS_OF_PARTITION
    return max(least, min(most, CACHE_ROWS_MAX // partitions))


class UnknownRowVersion(ValueError):
    """A row was written by a newer version of the program than this one."""


class BrokenRow(ValueError):
    """A row's bytes are not what this table writes: the changelog or the disk holds something else."""


@dataclass(frozen=True, eq=False)
class Table(Generic[V]):
    """Declared once, compared by identity. `encode` and `decode` must be inverse of each other;
    see `versioned` for the codec that survives an upgrade."""

    name: str
    encode: Callable[[V], bytes]
    decode: Callable[[bytes], V]

    def __post_init__(self) -> None:
        assert self.name and SEPARATOR not in self.name.encode(), f"bad table name {self.name!r}"

    def __repr__(self) -> str:
        return f"Table({self.name!r})"


AnyTable = Table[Any]


def versioned(
    name: str, row: type[V], *, version: int = 1, older: dict[int, Callable[[bytes], V]] | None = None
) -> Table[V]:
    """A table whose rows are one version byte and the row as msgpack.

    A new optional field of `row` needs no new version: missing fields take their defaults, unknown
    ones are ignored. Any other change does: count `version` up and give the reader of each former
    version in `older`. Raises `UnknownRowVersion` on reading a version it does not know, `BrokenRow` on
    reading what is no row.
    """
    assert 1 <= version <= 255
    prefix = bytes([version])
    encoder = msgspec.msgpack.Encoder()
    decoder = msgspec.msgpack.Decoder(row)
    readers = {**(older or {}), version: decoder.decode}

    def encode(value: V) -> bytes:
        return prefix + encoder.encode(value)

    def decode(data: bytes) -> V:
        if not data:
            raise BrokenRow(f"table {name}: an empty row")
        reader = readers.get(data[0])
        if reader is None:
            raise UnknownRowVersion(
                f"table {name}: row version {data[0]}, this program knows {sorted(readers)}; "
                "run the version that wrote it, or a newer one"
            )
        try:
            return reader(memoryview(data)[1:])  # type: ignore[arg-type]
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise BrokenRow(
                f"table {name}: a row that is no {row.__name__}: {type(error).__name__}"
            ) from None

    return Table(name, encode, decode)


class Store(Protocol):
    """What lies under a partition's tables: ordered bytes."""

    def get(self, key: bytes) -> bytes | None: ...

    def scan(self, start: bytes, stop: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Rows with start <= key < stop, in key order, as they are when the scan begins."""
        ...


_MISSING: Final = object()


def after(prefix: str) -> str:
    """The smallest key greater than every key that starts with `prefix` (for `TableView.range`)."""
    return prefix + "\U0010ffff"


class Writes(list[tuple["TableView[Any]", bytes, Any, bool]]):
    """What the record at hand has written, in all tables: where, and what was there before. Its writes stand
    once this is cleared."""

    __slots__ = ()

    def undo(self) -> None:
        """The record is refused: its writes are gone, those of records before it stand."""
        for view, key, row, dirty in reversed(self):
            view._restore(key, row, dirty)
        self.clear()


class TableView(Generic[V]):
    """One table of one partition inside a batch: rows known from the batch and from batches before it, over
    the store below."""

    __slots__ = ("_dirty", "_rows", "_rows_max", "_store", "_writes", "prefix", "table")

    def __init__(self, table: Table[V], store: Store, writes: Writes, rows_max: int = cache_rows(1)) -> None:
        self.table = table
        self._rows_max = rows_max
        self.prefix = table.name.encode() + SEPARATOR
        self._writes = writes
        self._rows: dict[bytes, V | None] = {}
        """Decoded rows as the batch has left them so far. None: there is none."""
        self._dirty: dict[bytes, V | None] = {}
        """Those of them that the store does not have yet."""
        self._store = store

    def get(self, key: str | bytes, default: Any = None) -> V | Any:
        """The row of `key`, or `default`."""
        raw_key = key if type(key) is bytes else key.encode()  # type: ignore[union-attr]
        value: Any = self._rows.get(raw_key, _MISSING)
        if value is _MISSING:
            data = self._store.get(self.prefix + raw_key)
            value = None if data is None else self.table.decode(data)
            self._rows[raw_key] = value
        return default if value is None else value

    def __getitem__(self, key: str | bytes) -> V:
        value = self.get(key)
        if value is None:
            raise KeyError(key)
        return cast(V, value)

    def __contains__(self, key: str | bytes) -> bool:
        return self.get(key) is not None

    def __setitem__(self, key: str | bytes, value: V) -> None:
        assert value is not None, "None is no row: delete it instead"
        self._write(key if type(key) is bytes else key.encode(), value)  # type: ignore[union-attr]

    def __delitem__(self, key: str | bytes) -> None:
        """Deleting what is not there is allowed and writes a tombstone all the same."""
        self._write(key if type(key) is bytes else key.encode(), None)  # type: ignore[union-attr]

    def _write(self, key: bytes, value: V | None) -> None:
        rows, dirty = self._rows, self._dirty
        self._writes.append((self, key, rows.get(key, _MISSING), key in dirty))
        rows[key] = dirty[key] = value

    def _restore(self, key: bytes, row: Any, dirty: bool) -> None:
        if row is _MISSING:
            del self._rows[key]
        else:
            self._rows[key] = row
        if dirty:
            self._dirty[key] = row
        else:
            del self._dirty[key]

    def range(self, start: str | bytes, stop: str | bytes) -> Iterator[tuple[str, V]]:
        """Rows with start <= key < stop in key order, staged writes included, as they are when the
        iteration begins: writes during it do not disturb it."""
        low = start if isinstance(start, bytes) else start.encode()
        high = stop if isinstance(stop, bytes) else stop.encode()
        changed = self._dirty
        staged = [(key, changed[key]) for key in sorted(key for key in changed if low <= key < high)]
        cut = len(self.prefix)
        position = 0
        for stored_key, data in self._store.scan(self.prefix + low, self.prefix + high):
            key = stored_key[cut:]
            while position < len(staged) and staged[position][0] < key:
                staged_key, value = staged[position]
                position += 1
                if value is not None:
                    yield staged_key.decode(), value
            if position < len(staged) and staged[position][0] == key:
                value = staged[position][1]
                position += 1
                if value is not None:
                    yield key.decode(), value
                continue
            yield key.decode(), self.table.decode(data)
        for staged_key, value in staged[position:]:
            if value is not None:
                yield staged_key.decode(), value

    # -- used by the batch only ------------------------------------------------------------------

    def changes(self) -> list[tuple[bytes, bytes | None]]:
        """The batch's writes as (store key, row bytes or None for a deletion), each key once."""
        assert not self._writes, "a record is still open"
        prefix, encode = self.prefix, self.table.encode
        return [
            (prefix + key, None if value is None else encode(value)) for key, value in self._dirty.items()
        ]

    def committed(self) -> None:
        """The store now holds the batch's writes."""
        self._dirty.clear()
        rows = self._rows
        if len(rows) > self._rows_max:
            for old in list(rows)[: len(rows) - self._rows_max * 9 // 10]:
                del rows[old]
