"""Topics under test: made, filled before a run, and read after it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.structs import ConsumerRecord, TopicPartition

from mini_visa.streams.topic import partition_of

BATCH_BYTES = 1 << 20
LOG_APPEND_TIME = {"message.timestamp.type": "LogAppendTime"}
"""For outputs: the broker stamps each record, so first to last append can be read off the topic."""

Entry = tuple[bytes, bytes, int]
"""key, value, timestamp in ms."""


async def create_topics(bootstrap: str, topics: Mapping[str, Mapping[str, str]], *, partitions: int) -> None:
    """Make each topic with its configuration. One that is there is an error."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        new = [NewTopic(name, partitions, 1, topic_configs=dict(config)) for name, config in topics.items()]
        answer = await admin.create_topics(new)
        failed = [error for error in answer.topic_errors if error[1]]
        if failed:
            raise RuntimeError(f"topics not made: {failed}")
    finally:
        await admin.close()


async def delete_topics(bootstrap: str, names: Iterable[str]) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        await admin.delete_topics(list(names))
    finally:
        await admin.close()


async def preload(bootstrap: str, topic: str, entries: Iterable[Entry], *, partitions: int) -> list[int]:
    """Append `entries` in order, each on its key's partition; the number of records per partition."""
    counts = [0] * partitions
    producer = AIOKafkaProducer(
        bootstrap_servers=bootstrap, acks="all", max_batch_size=BATCH_BYTES, linger_ms=0
    )
    await producer.start()
    try:
        batches = [producer.create_batch() for _ in range(partitions)]
        sent = []

        async def send(partition: int) -> None:
            batch, batches[partition] = batches[partition], producer.create_batch()
            batch.close()
            sent.append(await producer.send_batch(batch, topic, partition=partition))

        for key, value, timestamp in entries:
            partition = partition_of(key, partitions)
            counts[partition] += 1
            if batches[partition].append(key=key, value=value, timestamp=timestamp) is None:
                await send(partition)
                appended = batches[partition].append(key=key, value=value, timestamp=timestamp)
                assert appended is not None, f"a record larger than {BATCH_BYTES} bytes"
        for partition in range(partitions):
            if batches[partition].record_count():
                await send(partition)
        for future in sent:
            await future
    finally:
        await producer.stop()
    return counts


@dataclass(slots=True)
class Appended:
    """What a topic holds, as a read_committed consumer sees it."""

    records: int = 0
    first_ms: int = 0
    last_ms: int = 0
    """Of the records' timestamps (append time, where the topic is made with LOG_APPEND_TIME)."""
    per_s: list[int] = field(default_factory=list)
    """Records appended in each second from the first."""

    @property
    def seconds(self) -> float:
        return (self.last_ms - self.first_ms) / 1_000


async def ends(bootstrap: str, topic: str) -> dict[int, int]:
    """Last stable offset of each partition."""
    async with reader(bootstrap) as consumer:
        partitions = await partitions_of(consumer, topic)
        return {tp.partition: end for tp, end in (await consumer.end_offsets(partitions)).items()}


def reader(bootstrap: str, *, fetch_min_bytes: int = 1, fetch_max_wait_ms: int = 20) -> AIOKafkaConsumer:
    """A read_committed consumer with no group."""
    return AIOKafkaConsumer(
        bootstrap_servers=bootstrap,
        enable_auto_commit=False,
        isolation_level="read_committed",
        auto_offset_reset="earliest",
        fetch_min_bytes=fetch_min_bytes,
        fetch_max_wait_ms=fetch_max_wait_ms,
        max_partition_fetch_bytes=8 << 20,
    )


async def read_all(
    bootstrap: str,
    topic: str,
    counts: Callable[[ConsumerRecord], bool] = lambda record: True,
    *,
    start: Mapping[int, int] | None = None,
) -> Appended:
    """What `topic` holds now (from `start`, offsets by partition) of the records that `counts` accepts."""
    found = Appended()
    stamps: list[int] = []
    async with reader(bootstrap) as consumer:
        partitions = await partitions_of(consumer, topic)
        consumer.assign(partitions)
        until = await consumer.end_offsets(partitions)
        for tp in partitions:
            consumer.seek(tp, (start or {}).get(tp.partition, 0))
        left = {tp for tp in partitions if until[tp] > (start or {}).get(tp.partition, 0)}
        deadline = time.monotonic() + 300
        while left:
            assert time.monotonic() < deadline, f"{topic}: not read within 300 s"
            for records in (await consumer.getmany(*left, timeout_ms=200, max_records=20_000)).values():
                stamps += [record.timestamp for record in records if counts(record)]
                await asyncio.sleep(0)
            for tp in list(left):
                if await consumer.position(tp) >= until[tp]:
                    left.discard(tp)
    if stamps:
        found.records = len(stamps)
        found.first_ms, found.last_ms = min(stamps), max(stamps)
        found.per_s = [0] * ((found.last_ms - found.first_ms) // 1_000 + 1)
        for stamp in stamps:
            found.per_s[(stamp - found.first_ms) // 1_000] += 1
    return found


async def partitions_of(consumer: AIOKafkaConsumer, topic: str) -> list[TopicPartition]:
    await consumer._client.force_metadata_update()
    known = consumer.partitions_for_topic(topic)
    if known is None:
        await consumer._client.add_topic(topic)
        known = consumer.partitions_for_topic(topic)
    assert known, f"no topic {topic}"
    return [TopicPartition(topic, partition) for partition in sorted(known)]


class Progress:
    """Watches a topic grow: how many records are committed, polled, with the time of the last move."""

    def __init__(self, bootstrap: str, topic: str, cpu: Callable[[], float] = lambda: 0.0) -> None:
        """`cpu`: CPU seconds of what is measured, so far."""
        self._consumer = reader(bootstrap)
        self._topic = topic
        self._cpu = cpu
        self.curve: list[tuple[float, int, float]] = []
        """(monotonic seconds, sum of last stable offsets, CPU seconds so far), at each change."""

    async def __aenter__(self) -> Progress:
        await self._consumer.start()
        self._topic_partitions = await partitions_of(self._consumer, self._topic)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._consumer.stop()

    async def sample(self) -> int:
        """Sum of the last stable offsets now."""
        end: int = sum((await self._consumer.end_offsets(self._topic_partitions)).values())
        if not self.curve or end != self.curve[-1][1]:
            self.curve.append((time.monotonic(), end, self._cpu()))
        return end

    def cpu_us_per_record(self) -> float:
        """Between the first and the last change: without start-up and without stop."""
        moves = self.curve[1:] if len(self.curve) > 2 else self.curve
        records = moves[-1][1] - moves[0][1]
        return (moves[-1][2] - moves[0][2]) / records * 1e6 if records else float("nan")

    async def until(
        self, records: int, *, timeout_s: float, still: float = 1.0, check: Callable[[], None]
    ) -> None:
        """Until `records` offsets are there and none was added for `still` seconds. `check` may raise."""
        deadline = time.monotonic() + timeout_s
        while True:
            end = await self.sample()
            if end >= records and time.monotonic() - self.curve[-1][0] > still:
                return
            check()
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self._topic}: {end} of {records} offsets after {timeout_s:g} s")
            await asyncio.sleep(0.1)
