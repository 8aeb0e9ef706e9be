"""Run a processor with no broker: records in, outputs, rows and dead letters back."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

from mini_visa.streams.processor import BatchResult, Execution, Output, Processor, Record
from mini_visa.streams.table import Table
from mini_visa.streams.topic import AnyTopic, Topic

V = TypeVar("V")
M = TypeVar("M")

DEAD_LETTERS = "dead-letters"


class MemoryStore:
    """An ordered store in memory, with the interface of the RocksDB one."""

    def __init__(self) -> None:
        self.rows: dict[bytes, bytes] = {}
        self.bytes = 0
        """Of all keys and values."""
        self._keys: list[bytes] = []

    def get(self, key: bytes) -> bytes | None:
        return self.rows.get(key)

    def scan(self, start: bytes, stop: bytes) -> Iterator[tuple[bytes, bytes]]:
        first, last = bisect_left(self._keys, start), bisect_left(self._keys, stop)
        return iter([(key, self.rows[key]) for key in self._keys[first:last]])

    def write(self, changes: Sequence[tuple[bytes, bytes | None]]) -> None:
        for key, value in changes:
            former = self.rows.get(key)
            if former is not None:
                self.bytes -= len(key) + len(former)
            if value is None:
                if former is not None:
                    del self.rows[key], self._keys[bisect_left(self._keys, key)]
            else:
                if former is None:
                    insort(self._keys, key)
                self.rows[key] = value
                self.bytes += len(key) + len(value)


class Sent(NamedTuple):
    """An output, decoded."""

    message: Any
    key: bytes | None
    partition: int
    timestamp: int


class Driver:
    """One partition of `processor`, in memory.

    driver = Driver(processor)
    driver.send(Tick(), key=b"a", at=1_000)
    assert driver.sent(topics.PAYMENT_EVENTS) == [...]
    """

    def __init__(self, processor: Processor, *, partition: int = 0, partitions: int = 4) -> None:
        topics = (processor.source, *processor.sinks)
        self.processor = processor
        self.store = MemoryStore()
        self.outputs: list[Output] = []
        self.log: list[Record] = []
        """Every record so far."""
        self.offset = 0
        self._topics: dict[str, AnyTopic] = {topic.name: topic for topic in topics}
        self.execution = Execution(
            processor,
            partition,
            self.store,
            dead_letters=DEAD_LETTERS,
            partition_counts={topic.name: topic.partitions or partitions for topic in topics},
        )

    def send(self, message: Any, *, key: bytes | None = None, at: int = 0) -> list[Output]:
        """Process one message at event time `at` (ms); returns its outputs."""
        return self.send_raw(self.processor.source.encode(message), key=key, at=at)

    def send_raw(self, value: bytes | None, *, key: bytes | None = None, at: int = 0) -> list[Output]:
        """The same with the bytes as they are, for garbage."""
        return [Output(*raw) for raw in self.run([Record(self.offset, at, key, value)]).outputs]

    def run(self, records: Sequence[Record]) -> BatchResult:
        """Process `records` as one batch and commit it."""
        result = self.execution.run(records)
        self.store.write(result.changes)
        self.execution.committed()
        self.offset = result.next_offset
        self.log.extend(records)
        self.outputs.extend(Output(*raw) for raw in result.outputs)
        return result

    def sent(self, topic: Topic[M]) -> list[M]:
        """Every message sent to `topic` so far, decoded."""
        return [topic.decode(output.value) for output in self.outputs if output.topic == topic.name]

    def dead_letters(self) -> list[Output]:
        return [output for output in self.outputs if output.topic == DEAD_LETTERS]

    def row(self, table: Table[V], key: str | bytes) -> V | None:
        return self.execution.view(table).get(key)

    def rows(self, table: Table[V]) -> dict[str, V]:
        """All rows of `table`."""
        return dict(self.execution.view(table).range(b"", b"\xff"))
