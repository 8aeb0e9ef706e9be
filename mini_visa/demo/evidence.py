"""What the topics hold, read back as any consumer would: committed records only."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition

from mini_visa.kafka import admin, client_options, end_offsets, lag
from mini_visa.settings import Settings

FETCH_WAIT_MS: Final = 200
STALLED_S: Final = 20.0
LAG_TIMEOUT_S: Final = 10.0
LAG_INTERVAL_S: Final = 0.25

Positions = dict[TopicPartition, int]


async def topic_names(settings: Settings) -> list[str]:
    """Every topic of the cluster but Kafka's own."""
    async with admin(settings) as client:
        return sorted(name for name in await client.list_topics() if not name.startswith("__"))


async def positions(settings: Settings, topics: Sequence[str]) -> Positions:
    """Where each partition ends now."""
    return await end_offsets(settings, topics)


async def records(
    settings: Settings, topics: Sequence[str], start: Positions
) -> AsyncIterator[ConsumerRecord]:
    """Every committed record of `topics` from `start` (a partition that is not in it: from its first) up
    to where each ends now. Raises TimeoutError when the broker delivers nothing for `STALLED_S`."""
    if not topics:
        return
    consumer = AIOKafkaConsumer(
        **client_options(settings),
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        isolation_level="read_committed",
        fetch_max_wait_ms=FETCH_WAIT_MS,
        max_partition_fetch_bytes=4 << 20,
    )
    await consumer.start()
    try:
        ends = await end_offsets(settings, topics)
        consumer.assign(list(ends))
        consumer.pause(*ends)
        begins = await consumer.beginning_offsets(list(ends))
        open_: dict[TopicPartition, int] = {}
        for partition, end in ends.items():
            first = max(start.get(partition, 0), begins[partition])
            if first < end:
                open_[partition] = end
        for partition in open_:
            consumer.seek(partition, max(start.get(partition, 0), begins[partition]))
            consumer.resume(partition)
        alive = time.monotonic()
        while open_:
            fetched: dict[TopicPartition, list[Any]] = await consumer.getmany(
                *open_, timeout_ms=FETCH_WAIT_MS
            )
            for partition, batch in fetched.items():
                alive = time.monotonic()
                for record in batch:
                    if record.offset < open_[partition]:
                        yield record
            for partition in list(open_):
                # The position passes what holds no record: commit markers, aborted batches.
                if await consumer.position(partition) >= open_[partition]:
                    del open_[partition]
            if time.monotonic() - alive > STALLED_S:
                raise TimeoutError(f"nothing came from {sorted(map(str, open_))} for {STALLED_S:.0f} s")
    finally:
        await consumer.stop()


async def remaining_lag(settings: Settings, groups: int) -> tuple[int, dict[str, int]]:
    """(partitions looked at, records that consumers still have before them by group and partition), once
    they have had time to work off what is there now. At least `groups` groups must have a position."""
    goal: Positions = {}
    deadline = time.monotonic() + LAG_TIMEOUT_S
    while True:
        found = await lag(settings)
        if not goal:
            goal = {TopicPartition(one.topic, one.partition): one.end for one in found}
        behind = {
            (one.group, partition): one.committed
            for one in found
            if one.committed < goal.get(partition := TopicPartition(one.topic, one.partition), 0)
        }
        missing = groups - len({one.group for one in found})
        if missing <= 0 and not behind:
            return len(found), {}
        if time.monotonic() > deadline:
            break
        await asyncio.sleep(LAG_INTERVAL_S)
    left = {f"{missing} consumer groups without a position": missing} if missing > 0 else {}
    for (group, partition), committed in behind.items():
        # What is between may be commit markers only, which no consumer can commit past.
        count = 0
        async for record in records(settings, [partition.topic], {partition: committed}):
            count += record.partition == partition.partition and record.offset < goal[partition]
        if count:
            left[f"{group} {partition.topic}/{partition.partition}"] = count
    return len(found), left
