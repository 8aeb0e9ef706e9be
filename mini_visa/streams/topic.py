"""A topic as the program sees it: its name, its codec, its key and how long it keeps records."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Generic, TypeVar

from aiokafka.partitioner import murmur2

M = TypeVar("M")

FOR_EVER_MS = -1
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS


@dataclass(frozen=True, eq=False)
class Topic(Generic[M]):
    """Compared by identity: declare each topic once. `partitions` of None means the setting for
    topics keyed by account, which are all co-partitioned."""

    name: str
    decode: Callable[[bytes | None], M]
    """Bytes of a record's value -> message. Raises ValueError when they are not one."""
    encode: Callable[[M], bytes]
    key: str = "account"
    holds: str = ""
    written_by: str = ""
    retention_ms: int = 7 * DAY_MS
    compacted: bool = False
    partitions: int | None = None
    config: dict[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Topic({self.name!r})"


AnyTopic = Topic[Any]


@lru_cache(maxsize=65_536)
def partition_of(key: bytes, partitions: int) -> int:
    """The partition of Kafka's default partitioner (murmur2) for `key`."""
    return int(murmur2(key) & 0x7FFFFFFF) % partitions
