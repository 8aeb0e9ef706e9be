"""Where the microseconds go: the steps of a batch, one after the other in this process, without a broker.

A worker on a busy machine measures the machine. These are the same steps on the same records, timed by
the CPU time of this thread, each the best of several passes over batches of one partition: what the code
costs, and what a change to it gains. What is missing is the network and the event loop.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import msgspec
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.structs import TopicPartition

from mini_visa.settings import Settings
from mini_visa.streams.app import collect_garbage_seldom, keep_freed_memory
from mini_visa.streams.commit import Transactions
from mini_visa.streams.processor import BatchResult, Execution, Processor
from mini_visa.streams.store import PROGRESS_VERSION, Applied, Identity, Progress, RocksStore, encode_progress
from mini_visa.streams.transaction_wire import Producer
from mini_visa.streams.wire import unpack
from tests.bench.report import Figure, Result
from tests.bench.services import EVENT_TIME_BACK_MS, STEP_MS
from tests.bench.topiclog import Entry
from tests.bench.w1.rule import requests
from tests.bench.w1.service import CARDS, decisions_topic, make_handler, requests_topic
from tests.bench.workload import Workload

BATCH = 4_000
PARTITIONS = 4
STEPS = ("consume", "decode", "handle", "rows", "pack", "store")
AT_WORK = tuple(
    f"rocksdb.{what}"
    for what in (
        "mem-table-flush-pending",
        "num-running-flushes",
        "compaction-pending",
        "num-running-compactions",
    )
)
"""RocksDB's properties that are all 0 when it has nothing left to do."""
_PRODUCER = Producer(1, 0)
_IDENTITY = Identity("parts", b"\x00" * 16, b"\x00" * 16)


def _w1() -> tuple[Processor, list[Entry], Callable[[int], Iterable[Entry]]]:
    decisions = decisions_topic("decisions")
    processor = Processor("w1", requests_topic("requests"), make_handler(decisions), (CARDS,), (decisions,))

    def entries(count: int) -> Iterable[Entry]:
        for request in requests(count):
            yield request["card"].encode(), msgspec.json.encode(request), request["ts"]

    return processor, [], entries


def _service(name: str) -> tuple[Processor, list[Entry], Callable[[int], Iterable[Entry]]]:
    from mini_visa.streams.worker import find

    (processor,) = find(name).app.processors.values()
    load = Workload(series="parts", start_ms=int(time.time() * 1_000) - EVENT_TIME_BACK_MS)
    assessed = name == "authorization"
    setup = list(load.open_accounts()) if assessed else []
    return (
        processor,
        setup,
        lambda count: load.authorizations(count, step_ms=STEP_MS[name], assessed=assessed),
    )


def fetched(entries: Sequence[Entry], base: int) -> bytes:
    """`entries` as a broker would send them: one record batch."""
    builder = DefaultRecordBatchBuilder(
        magic=2,
        compression_type=0,
        is_transactional=0,
        producer_id=-1,
        producer_epoch=-1,
        base_sequence=-1,
        batch_size=1 << 30,
    )
    for offset, (key, value, timestamp) in enumerate(entries):
        builder.append(offset, timestamp, key, value, [])
    data = bytearray(builder.build())
    data[0:8] = base.to_bytes(8, "big")  # the base offset is outside of the checksum
    return bytes(data)


class Pass:
    """One pass over all batches on an empty store."""

    def __init__(self, processor: Processor, folder: Path) -> None:
        self._store = RocksStore(folder, Settings().rocksdb_memory_bytes)
        names = {topic.name for topic in (processor.source, *processor.sinks)}
        self._execution = Execution(
            processor,
            0,
            self._store,
            dead_letters="dead-letters",
            partition_counts=dict.fromkeys(names, PARTITIONS),
        )
        self._processor = processor
        self._transactions = Transactions(
            "parts",
            "parts",
            TopicPartition(processor.source.name, 0),
            TopicPartition("changelog", 0),
            10.0,
            {},
        )
        self.ns = dict.fromkeys(STEPS, 0)
        self.results: list[BatchResult] = []

    def run(self, data: bytes, base: int, *, measured: bool) -> BatchResult:
        clock = time.thread_time_ns
        began = clock()
        records = unpack(data, None, base, 1 << 60, "parts").records
        consumed = clock()
        for record in records:
            self._processor.source.decode(record.value)
        decoded = clock()
        result = self._execution.run(records)
        handled = clock()
        assert not result.dead_letters, "the workload has a record that is refused"
        for view in self._execution._views.values():
            view.changes()
        rowed = clock()
        progress = encode_progress(
            Progress(PROGRESS_VERSION, result.next_offset, result.partition_time, _IDENTITY)
        )
        for pack in self._transactions.pack(result.outputs, result.changes, progress):
            for _ in list(pack.builders):
                pack.next_batch(_PRODUCER)
                pack.acknowledged()
        packed = clock()
        self._store.write(result.changes, progress, Applied(result.next_offset, 0, _IDENTITY))
        self._execution.committed()
        stored = clock()
        if measured:
            decode, rows = decoded - consumed, rowed - handled
            steps = (
                consumed - began,
                decode,
                handled - decoded - decode - rows,
                rows,
                packed - rowed,
                stored - packed,
            )
            for step, ns in zip(STEPS, steps, strict=True):
                self.ns[step] += ns
            self.results.append(result)
        return result

    def settle(self, timeout_s: float = 300.0) -> None:
        """Have RocksDB write out what is in memory, and return once it has nothing left to do."""
        database, deadline = self._store._database, time.monotonic() + timeout_s
        database.flush()
        while any(database.property_int_value(name) for name in AT_WORK):
            if time.monotonic() > deadline:
                raise TimeoutError(f"RocksDB is at work for {timeout_s:g} s")
            time.sleep(0.01)

    def close(self) -> None:
        self._store.close()


async def measure(name: str, *, records: int, reps: int, command: str) -> Result:
    """`name`: "w1", "authorization" or "risk". us of CPU per record and step, each the least of `reps`."""
    processor, setup, make = _w1() if name == "w1" else _service(name)
    entries = list(make(records))
    collect_garbage_seldom()
    keep_freed_memory()
    passes: list[Pass] = []
    last: list[BatchResult] = []
    for _ in range(reps):
        folder = Path(tempfile.mkdtemp(prefix="mini-visa-parts-"))
        one = Pass(processor, folder)
        try:
            base = 0
            for part, measured in ((setup, False), (entries, True)):
                for start in range(0, len(part), BATCH):
                    batch = part[start : start + BATCH]
                    one.run(fetched(batch, base), base, measured=measured)
                    base += len(batch)
                    await asyncio.sleep(0)
        finally:
            one.close()
            shutil.rmtree(folder, ignore_errors=True)
        last, one.results = one.results, []
        passes.append(one)
    result = Result(f"parts-{name}", command)
    us = {step: tuple(one.ns[step] / records / 1_000 for one in passes) for step in STEPS}
    result.figures = [Figure(f"parts.{name}.{step}", "CPU us a record", us[step]) for step in STEPS]
    least = sum(min(values) for values in us.values())
    result.figures.append(
        Figure(f"parts.{name}.all", "CPU us a record", tuple(sum(v) for v in zip(*us.values(), strict=True)))
    )
    outputs = sum(len(batch.outputs) for batch in last)
    rows = sum(len(batch.changes) for batch in last)
    sizes = (
        sum(len(value) for _, value, _ in entries),
        sum(len(output[3] or b"") for batch in last for output in batch.outputs),
        sum(len(row or b"") for batch in last for _, row in batch.changes),
    )
    result.notes.append(
        f"the sum of each step's least: {least:.1f} us; a record of {sizes[0] // records} bytes becomes "
        f"{outputs / records:.2f} outputs ({sizes[1] // records} bytes) and {rows / records:.2f} rows "
        f"({sizes[2] // records} bytes)"
    )
    return result
