"""What the topics hold, read back as any consumer would: committed records only."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Final

from aiokafka import TopicPartition

from mini_visa.kafka import admin, committed_records, end_offsets, lag
from mini_visa.settings import Settings

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
        async for record in committed_records(settings, [partition.topic], {partition: committed}):
            count += record.partition == partition.partition and record.offset < goal[partition]
        if count:
            left[f"{group} {partition.topic}/{partition.partition}"] = count
    return len(found), left
