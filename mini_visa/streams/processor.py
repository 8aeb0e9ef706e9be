"""A processor: one source topic, some tables, some sink topics, one pure handler; and the execution
of that handler over a batch of one partition. No Kafka here: the runtime commits what comes out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from mini_visa.streams.table import AnyTable, Store, Table, TableView, Writes, cache_rows
from mini_visa.streams.topic import AnyTopic, Topic, partition_of

M = TypeVar("M")
V = TypeVar("V")

Headers = Sequence[tuple[str, bytes]]


class Impossible(Exception):
    """Raised by a handler for a record that no state allows: it goes to the dead letters, its writes
    and outputs are undone, and the partition goes on. Not for a business refusal: that is an event."""


class Record(NamedTuple):
    """One record of the source partition (a subset of aiokafka's ConsumerRecord, same names)."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Headers = ()


class Output(NamedTuple):
    topic: str
    partition: int
    key: bytes | None
    value: bytes | None
    timestamp: int
    headers: Headers = ()


RawOutput = tuple[str, int, bytes | None, bytes | None, int, Headers]
"""An `Output` as a plain tuple: there is one for almost every record, and a plain one costs a tenth."""


@dataclass(frozen=True, slots=True)
class BatchResult:
    """All that one batch does, to be committed as one."""

    outputs: list[RawOutput]
    changes: list[tuple[bytes, bytes | None]]
    """Table writes as (store key, row or None for a deletion), each key once."""
    next_offset: int
    partition_time: int
    """Event time of the partition, ms: the largest timestamp seen. It never goes back."""
    records: int
    dead_letters: int


Route = tuple[str, Callable[[Any], bytes], int, bool]
"""What emitting to a sink needs: its name, its codec, its number of partitions, and whether it is keyed like
the source, so that a record about the same key has the same partition number on both."""


class Context:
    """What a handler may know and do. Time, ids and state come from here and nowhere else."""

    __slots__ = (
        "_append", "_routes", "key", "offset", "partition", "record_timestamp", "tables", "timestamp",
    )  # fmt: skip

    def __init__(
        self,
        partition: int,
        tables: Mapping[AnyTable, TableView[Any]],
        routes: Mapping[AnyTopic, Route],
        outputs: list[RawOutput],
    ) -> None:
        self.partition = partition
        self.tables = tables
        self.key: bytes | None = None
        self.offset = -1
        self.timestamp = 0
        """Event time of the partition in ms: the record's, or the latest before it if that is later."""
        self.record_timestamp = 0
        """The record's own time in ms, for what may be late: it goes back and forth."""
        self._routes = routes
        self._append = outputs.append

    def table(self, table: Table[V]) -> TableView[V]:
        """The typed form of `tables[table]`."""
        return self.tables[table]

    def partitions(self, sink: AnyTopic) -> int:
        """How many the sink has in the cluster."""
        return self._routes[sink][2]

    def emit(
        self,
        topic: Topic[M],
        message: M,
        *,
        key: bytes | None = None,
        partition: int | None = None,
        headers: Headers = (),
    ) -> None:
        """Send `message` in this batch's transaction, at this record's event time.

        `key` defaults to the record's own. Without `partition` the record's own partition is used for
        its own key on a topic keyed like the source (they are co-partitioned), and Kafka's default
        partitioner for another key or another kind of topic.
        """
        route = self._routes.get(topic)
        assert route is not None, f"{topic} is not among this processor's sinks"
        name, encode, partitions, alongside = route
        if partition is None:
            if alongside and (key is None or key == self.key):
                partition = self.partition
            else:
                partition = partition_of(key or self.key or b"", partitions)
        self._append(
            (name, partition, self.key if key is None else key, encode(message), self.timestamp, headers)
        )


Handler = Callable[[Any, Context], None]


@dataclass(frozen=True, eq=False)
class Processor:
    """See `App.processor`, which makes one from a handler."""

    name: str
    source: AnyTopic
    handler: Handler
    tables: tuple[AnyTable, ...] = ()
    sinks: tuple[AnyTopic, ...] = ()
    tick: Callable[[], Any] | None = None
    """Makes the message that tells the source's partitions that time has passed; None: no ticks."""
    rest_s: float = 0.0
    """How long a partition rests before it looks for more records, unless it has fallen behind: for work that
    nobody waits for, so that a busy hour makes its batches larger and not more. A record that comes after a
    quiet moment is never held up."""
    config: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [table.name for table in self.tables]
        assert len(set(names)) == len(names), f"{self.name}: two tables of one name in {names}"


class Execution:
    """A processor on one partition: runs batches over its tables. Synchronous and deterministic."""

    def __init__(
        self,
        processor: Processor,
        partition: int,
        store: Store,
        *,
        dead_letters: str,
        partition_counts: Mapping[str, int],
        partition_time: int = 0,
    ) -> None:
        """`partition_time` is what the last committed batch left (0 on an empty partition)."""
        self.processor = processor
        self.partition = partition
        self.partition_time = partition_time
        self._dead_letters = dead_letters
        self._writes = Writes()
        rows_max = cache_rows(partition_counts.get(processor.source.name, 1))
        self._views = {table: TableView(table, store, self._writes, rows_max) for table in processor.tables}
        self._routes: dict[AnyTopic, Route] = {
            sink: (sink.name, sink.encode, partition_counts[sink.name], sink.key == processor.source.key)
            for sink in processor.sinks
        }
        self._open = False

    def run(self, records: Sequence[Any], *, timestamp_max: int | None = None) -> BatchResult:
        """Run the handler over `records` (aiokafka's or `Record`) in order and return all effects.

        Nothing is written yet: call `committed` once it is, or throw this object away. A record that
        cannot be decoded, is refused as `Impossible`, or is later than `timestamp_max` (ms) becomes a
        dead letter. Any other exception of the handler is a bug and passes through.
        """
        assert records, "an empty batch"
        assert not self._open, "the batch before this one was neither committed nor thrown away"
        self._open = True
        outputs: list[RawOutput] = []
        writes = self._writes
        context = Context(self.partition, self._views, self._routes, outputs)
        decode, handler = self.processor.source.decode, self.processor.handler
        now, dead = self.partition_time, 0
        for record in records:
            mark = len(outputs)
            try:
                timestamp = record.timestamp
                if timestamp_max is not None and timestamp > timestamp_max:
                    raise Impossible("its timestamp is in the future")
                try:
                    message = decode(record.value)
                except ValueError as error:
                    raise Impossible(str(error)) from None
                if timestamp > now:
                    now = timestamp
                context.key, context.offset = record.key, record.offset
                context.timestamp, context.record_timestamp = now, timestamp
                handler(message, context)
            except Impossible as refusal:
                del outputs[mark:]
                writes.undo()
                outputs.append(self._dead_letter(record, str(refusal), now))
                dead += 1
            else:
                writes.clear()
        self.partition_time = now
        changes = [change for view in self._views.values() for change in view.changes()]
        return BatchResult(outputs, changes, records[-1].offset + 1, now, len(records), dead)

    def committed(self) -> None:
        """The last batch is committed and in the store."""
        for view in self._views.values():
            view.committed()
        self._open = False

    def view(self, table: Table[V]) -> TableView[V]:
        return self._views[table]

    def _dead_letter(self, record: Any, reason: str, now: int) -> RawOutput:
        source = self.processor.source.name
        headers = (
            ("reason", reason.encode()),
            ("processor", self.processor.name.encode()),
            ("source", f"{source}/{self.partition}/{record.offset}".encode()),
            ("source-timestamp", str(record.timestamp).encode()),
        )
        return (self._dead_letters, self.partition, record.key, record.value, now, headers)
