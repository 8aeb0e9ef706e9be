"""What the logs tell from outside: who committed when, how long a partition was silent, what moved."""

from __future__ import annotations

import re
import statistics
from collections import defaultdict
from collections.abc import Iterable
from itertools import pairwise
from typing import Any, NamedTuple

from aiokafka.protocol.fetch import FetchRequest
from aiokafka.record.control_record import ABORT_MARKER, ControlRecord
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.structs import TopicPartition
from laboratory import Laboratory, Worker

from mini_visa.streams.wire import READ_COMMITTED, unpack

FETCH_BYTES = 1 << 20


class Commit(NamedTuple):
    """A transaction's commit marker in a changelog: one for each batch of the partition's owner."""

    time_s: float
    producer: int
    epoch: int
    """One more with every transaction (KIP-890), and one more again with every acquisition."""

    def follows(self, other: Commit) -> bool:
        """Whether both are of one ownership."""
        return self.producer == other.producer and self.epoch <= other.epoch + 1


class Tail:
    """Follows one partition's committed records."""

    def __init__(self, laboratory: Laboratory, topic: str, partition: int) -> None:
        self._laboratory = laboratory
        self._target = TopicPartition(topic, partition)
        self.position = 0
        self.commits: list[Commit] = []

    async def more(self) -> list[Any]:
        """What has been committed since, up to a MiB; empty when there is nothing yet."""
        wire = await self._laboratory.wire()

        async def ask() -> Any:
            request = FetchRequest(
                0,
                1,
                FETCH_BYTES,
                READ_COMMITTED,
                [(self._target.topic, [(self._target.partition, self.position, FETCH_BYTES)])],
            )
            response = await wire._client.send(wire._leader(self._target), request)
            ((_, (answer,)),) = response.topics
            assert not answer[1], f"{self._target} at {self.position}: error {answer[1]}"
            return response.API_VERSION, answer

        while True:
            version, answer = await wire._persist(f"follow {self._target}", ask)
            data = answer[-1] or b""
            aborted = answer[5] if version >= 5 else answer[4]
            chunk = unpack(data, aborted, self.position, answer[3], self._target)
            if data:
                self._note_commits(data)
            moved = chunk.next_offset > self.position
            self.position = chunk.next_offset
            if chunk.records or not moved:
                return chunk.records

    def _note_commits(self, data: bytes) -> None:
        memory = MemoryRecords(data)
        while memory.has_next():
            batch = memory.next_batch()
            if not batch.is_control_batch or batch.base_offset < self.position:
                continue
            if ControlRecord.parse(next(iter(batch)).key) != ABORT_MARKER:
                time_s = batch.max_timestamp / 1000
                self.commits.append(Commit(time_s, batch.producer_id, batch.producer_epoch))


async def commits(laboratory: Laboratory, partition: int) -> list[Commit]:
    """Every batch of a partition so far, in order."""
    tail = Tail(laboratory, laboratory.changelog(), partition)
    while await tail.more():
        pass
    return tail.commits


def silences(commits: Iterable[Commit]) -> list[tuple[float, float]]:
    """From the last commit of one ownership to the first of the next: (when it began, seconds)."""
    return [
        (before.time_s, after.time_s - before.time_s)
        for before, after in pairwise(commits)
        if not after.follows(before)
    ]


def pauses(commits: Iterable[Commit], longer_than_s: float) -> list[float]:
    """Seconds between two commits of one ownership where they are many for the load: rebalances that the
    partition stayed through, freezes, delays."""
    return [
        after.time_s - before.time_s
        for before, after in pairwise(commits)
        if after.follows(before) and after.time_s - before.time_s > longer_than_s
    ]


def moves(workers: Iterable[Worker]) -> list[int]:
    """Of each generation of the group: how many partitions have another owner than before."""
    said: dict[int, dict[int, str]] = defaultdict(dict)
    pattern = re.compile(r"generation (\d+), partitions \[([\d, ]*)\]")
    for worker in workers:
        instance = worker.log_file.stem.split("-", 1)[1]
        for generation, partitions in pattern.findall(worker.log):
            for partition in filter(None, partitions.split(", ")):
                said[int(generation)][int(partition)] = instance
    owner: dict[int, str] = {}
    moved = []
    for generation in sorted(said):
        changed = [p for p, instance in said[generation].items() if owner.get(p, instance) != instance]
        owner.update(said[generation])
        moved.append(len(changed))
    return moved


def summary(values: list[float] | list[int]) -> dict[str, float]:
    if not values:
        return {"n": 0}
    ordered = sorted(values)
    return {
        "n": len(ordered),
        "p50": round(statistics.median(ordered), 3),
        "p95": round(ordered[min(len(ordered) - 1, int(len(ordered) * 0.95))], 3),
        "max": round(ordered[-1], 3),
    }
