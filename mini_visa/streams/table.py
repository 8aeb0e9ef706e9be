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
CACHE_ROWS_MAX: Final = 50_000
"""Decoded rows kept per table and partition. A bound on memory, never on correctness."""


class UnknownRowVersion(ValueError):
    """A row was written by a newer version of the program than this one."""


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
    version in `older`. Raises `UnknownRowVersion` on reading a version it does not know.
    """
    assert 1 <= version <= 255
    prefix = bytes([version])
    encoder = msgspec.msgpack.Encoder()
    decoder = msgspec.msgpack.Decoder(row)
    readers = {**(older or {}), version: decoder.decode}

    def encode(value: V) -> bytes:
        return prefix + encoder.encode(value)

    def decode(data: bytes) -> V:
        reader = readers.get(data[0])
        if reader is None:
            raise UnknownRowVersion(
                f"table {name}: row version {data[0]}, this program knows {sorted(readers)}; "
                "run the version that wrote it, or a newer one"
            )
        return reader(memoryview(data)[1:])  # type: ignore[arg-type]

    return Table(name, encode, decode)


class Store(Protocol):
    """What lies under a partition's tables: ordered bytes."""

    def get(self, key: bytes) -> bytes | None: ...

    def scan(self, start: bytes, stop: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Rows with start <= key < stop, in key order, as they are when the scan begins."""
        ...


class _Deleted:
    __slots__ = ()

    def __repr__(self) -> str:
        return "DELETED"


DELETED: Final = _Deleted()
_MISSING: Final = object()


def after(prefix: str) -> str:
    """The smallest key greater than every key that starts with `prefix` (for `TableView.range`)."""
    return prefix + "\U0010ffff"


class TableView(Generic[V]):
    """One table of one partition inside a batch: the store below, staged writes above."""

    __slots__ = ("_cache", "_store", "_undo", "dirty", "prefix", "table")

    def __init__(self, table: Table[V], store: Store) -> None:
        self.table = table
        self.prefix = table.name.encode() + SEPARATOR
        self.dirty: dict[bytes, V | _Deleted] = {}
        self._store = store
        self._cache: dict[bytes, V | None] = {}
        self._undo: list[tuple[bytes, Any]] = []

    def get(self, key: str | bytes, default: Any = None) -> V | Any:
        """The row of `key`, or `default`."""
        raw_key = key if type(key) is bytes else key.encode()  # type: ignore[union-attr]
        value: Any = self.dirty.get(raw_key, _MISSING)
        if value is _MISSING:
            value = self._cache.get(raw_key, _MISSING)
            if value is _MISSING:
                data = self._store.get(self.prefix + raw_key)
                value = None if data is None else self.table.decode(data)
                self._remember(raw_key, value)
            if value is None:
                return default
            return value
        return default if value is DELETED else value

    def __getitem__(self, key: str | bytes) -> V:
        value = self.get(key, _MISSING)
        if value is _MISSING:
            raise KeyError(key)
        return cast(V, value)

    def __contains__(self, key: str | bytes) -> bool:
        return self.get(key, _MISSING) is not _MISSING

    def __setitem__(self, key: str | bytes, value: V) -> None:
        self._stage(key if type(key) is bytes else key.encode(), value)  # type: ignore[union-attr]

    def __delitem__(self, key: str | bytes) -> None:
        """Deleting what is not there is allowed and writes a tombstone all the same."""
        self._stage(key if type(key) is bytes else key.encode(), DELETED)  # type: ignore[union-attr]

    def range(self, start: str | bytes, stop: str | bytes) -> Iterator[tuple[str, V]]:
        """Rows with start <= key < stop in key order, staged writes included, as they are when the
        iteration begins: writes during it do not disturb it."""
        low = start if isinstance(start, bytes) else start.encode()
        high = stop if isinstance(stop, bytes) else stop.encode()
        staged = sorted(item for item in self.dirty.items() if low <= item[0] < high)
        cut = len(self.prefix)
        position = 0
        for stored_key, data in self._store.scan(self.prefix + low, self.prefix + high):
            key = stored_key[cut:]
            while position < len(staged) and staged[position][0] < key:
                staged_key, value = staged[position]
                position += 1
                if value is not DELETED:
                    yield staged_key.decode(), cast(V, value)
            if position < len(staged) and staged[position][0] == key:
                value = staged[position][1]
                position += 1
                if value is not DELETED:
                    yield key.decode(), cast(V, value)
                continue
            yield key.decode(), self.table.decode(data)
        for staged_key, value in staged[position:]:
            if value is not DELETED:
                yield staged_key.decode(), cast(V, value)

    # -- used by the batch only ------------------------------------------------------------------

    def _stage(self, key: bytes, value: V | _Deleted) -> None:
        self._undo.append((key, self.dirty.get(key, _MISSING)))
        self.dirty[key] = value

    def keep_record(self) -> None:
        """The record's writes stand."""
        self._undo.clear()

    def undo_record(self) -> None:
        """The record is refused: its writes are gone, those of records before it stand."""
        for key, former in reversed(self._undo):
            if former is _MISSING:
                del self.dirty[key]
            else:
                self.dirty[key] = former
        self._undo.clear()

    def changes(self) -> list[tuple[bytes, bytes | None]]:
        """The batch's writes as (store key, row bytes or None for a deletion), each key once."""
        assert not self._undo, "a record is still open"
        prefix, encode = self.prefix, self.table.encode
        return [
            (prefix + key, None if value is DELETED else encode(cast(V, value)))
            for key, value in self.dirty.items()
        ]

    def committed(self) -> None:
        """The store now holds the batch's writes."""
        for key, value in self.dirty.items():
            self._remember(key, None if value is DELETED else cast(V, value))
        self.dirty.clear()

    def _remember(self, key: bytes, value: V | None) -> None:
        cache = self._cache
        if len(cache) >= CACHE_ROWS_MAX:
            for old in list(cache)[: CACHE_ROWS_MAX // 10]:
                del cache[old]
        cache[key] = value
