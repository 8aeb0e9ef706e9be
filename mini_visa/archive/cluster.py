"""Asking a cluster for offsets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from aiokafka import AIOKafkaConsumer, TopicPartition

from mini_visa.kafka import client_options
from mini_visa.settings import Settings


def is_changelog(name: str, settings: Settings) -> bool:
    return name.startswith(f"{settings.environment}.") and name.endswith(".changelog")


async def end_offsets_of(
    reader: AIOKafkaConsumer, places: Sequence[TopicPartition]
) -> dict[TopicPartition, int]:
    return dict(await reader.end_offsets(places)) if places else {}


@asynccontextmanager
async def asking(settings: Settings, *, committed: bool) -> AsyncIterator[AIOKafkaConsumer]:
    """Asks for offsets: `committed`, those up to which every transaction is decided."""
    reader = AIOKafkaConsumer(
        **client_options(settings),
        enable_auto_commit=False,
        isolation_level="read_committed" if committed else "read_uncommitted",
    )
    await reader.start()
    await asyncio.sleep(0)  # aiokafka 0.14 cannot stop one whose own task has not begun
    try:
        yield reader
    finally:
        await reader.stop()
