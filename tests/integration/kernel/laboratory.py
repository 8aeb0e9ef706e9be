"""A laboratory for the kernel: topics of a test's own, workers as processes, and an exact reckoning."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import warm
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic, RecordsToDelete
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from mini_visa.streams.store import PROGRESS_KEY, Progress, decode_progress
from mini_visa.streams.wire import Wire

WAIT_S = 120.0


@dataclass
class Worker:
    """A worker process. `fault` of `Laboratory.worker` makes something go wrong in it."""

    process: warm.Warm | subprocess.Popen[bytes]
    log_file: Path

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    async def says(self, text: str, times: int = 1, timeout_s: float = WAIT_S) -> None:
        """Wait until the log holds `text` so many times."""
        deadline = time.monotonic() + timeout_s
        while self.log.count(text) < times:
            assert time.monotonic() < deadline, f"never said {text!r}:\n{self.log}"
            assert self.process.poll() is None or self.log.count(text) >= times, (
                f"ended without saying {text!r}:\n{self.log}"
            )
            await asyncio.sleep(0.02)

    async def ends(self, timeout_s: float = WAIT_S) -> int:
        """Wait for its end by itself; the exit code (negative: the signal)."""
        deadline = time.monotonic() + timeout_s
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"does not end:\n{self.log}"
            await asyncio.sleep(0.02)
        return self.process.returncode

    async def stop(self) -> int:
        self.process.terminate()
        return await self.ends()

    async def kill(self) -> None:
        self.process.kill()
        await self.ends()

    def freeze(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)


@dataclass
class Laboratory:
    broker: str
    prefix: str
    home: Path
    partitions: int = 2
    workers: list[Worker] = field(default_factory=list)
    _producer: AIOKafkaProducer | None = None
    _admin: AIOKafkaAdminClient | None = None
    _wire: Wire | None = None

    # -- names -----------------------------------------------------------------------------------

    @property
    def items(self) -> str:
        return f"{self.prefix}.items"

    @property
    def seen(self) -> str:
        return f"{self.prefix}.seen"

    @property
    def other(self) -> str:
        return f"{self.prefix}.other"

    @property
    def dead_letters(self) -> str:
        return f"{self.prefix}.dead-letters"

    def group(self, processor: str = "count") -> str:
        return f"{self.prefix}.{self.prefix}.{processor}"

    def changelog(self, processor: str = "count") -> str:
        return f"{self.group(processor)}.changelog"

    # -- cluster ---------------------------------------------------------------------------------

    @property
    def options(self) -> dict[str, Any]:
        return {"bootstrap_servers": self.broker}

    async def admin(self) -> AIOKafkaAdminClient:
        if self._admin is None:
            self._admin = AIOKafkaAdminClient(**self.options)
            await self._admin.start()
        return self._admin

    async def create_topics(self, partitions: int = 2) -> None:
        self.partitions = partitions
        await self.create_topic(self.items, self.seen, self.other, partitions=partitions)

    async def create_topic(self, *names: str, partitions: int, **config: str) -> None:
        configs = {name.replace("_", "."): value for name, value in config.items()}
        admin = await self.admin()
        answer = await admin.create_topics(
            [NewTopic(name, partitions, 1, topic_configs=configs) for name in names]
        )
        assert all(error[1] == 0 for error in answer.topic_errors), answer
        consumer = AIOKafkaConsumer(**self.options)
        await consumer.start()
        try:
            for name in names:
                while len(consumer.partitions_for_topic(name) or ()) < partitions:
                    await consumer._client.force_metadata_update()
                    await asyncio.sleep(0.02)
        finally:
            await consumer.stop()

    async def delete_topic(self, name: str) -> None:
        admin = await self.admin()
        await admin.delete_topics([name])
        while name in await admin.list_topics():  # noqa: ASYNC110
            await asyncio.sleep(0.05)

    async def configure(self, topic: str, **config: str) -> None:
        admin = await self.admin()
        await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, config)])
        await asyncio.sleep(0.2)

    async def delete_records(self, topic: str, partition: int, before: int) -> None:
        admin = await self.admin()
        await admin.delete_records({TopicPartition(topic, partition): RecordsToDelete(before_offset=before)})

    async def put(
        self,
        numbers: Iterable[int],
        *,
        do: str = "",
        key: Callable[[int], bytes] = lambda number: b"key-%d" % (number % 23),
        partition: Callable[[int], int] | None = None,
        timestamp_ms: int | None = None,
    ) -> None:
        """Write an item for each number; by default of 23 keys spread over the partitions."""
        place = partition or (lambda number: number % 23 % self.partitions)
        producer = await self.producer()
        waiting = []
        for number in numbers:
            item: dict[str, Any] = {"number": number}
            if do:
                item["do"] = do
            waiting.append(
                await producer.send(
                    self.items,
                    json.dumps(item).encode(),
                    key=key(number),
                    partition=place(number),
                    timestamp_ms=timestamp_ms,
                )
            )
        await asyncio.gather(*waiting)

    async def put_raw(self, value: bytes | None, key: bytes | None = b"key", partition: int = 0) -> None:
        await (await self.producer()).send_and_wait(self.items, value, key=key, partition=partition)

    async def producer(self) -> AIOKafkaProducer:
        if self._producer is None:
            self._producer = AIOKafkaProducer(enable_idempotence=True, linger_ms=2, **self.options)
            await self._producer.start()
        return self._producer

    async def read(self, topic: str, *, committed: bool = True) -> dict[int, list[Any]]:
        """All records of a topic now, by partition, through an ordinary consumer."""
        consumer = AIOKafkaConsumer(
            isolation_level="read_committed" if committed else "read_uncommitted",
            fetch_max_wait_ms=50,
            **self.options,
        )
        await consumer.start()
        try:
            await consumer._client.set_topics([topic])
            partitions = [
                TopicPartition(topic, number) for number in consumer.partitions_for_topic(topic) or ()
            ]
            records: dict[int, list[Any]] = {partition.partition: [] for partition in partitions}
            consumer.assign(partitions)
            await consumer.seek_to_beginning()
            ends = await consumer.end_offsets(partitions)
            deadline = time.monotonic() + WAIT_S
            while True:
                behind = [tp for tp in partitions if await consumer.position(tp) < ends[tp]]
                if not behind:
                    return records
                assert time.monotonic() < deadline, f"{topic}: an open transaction hides its end"
                for tp, found in (await consumer.getmany(timeout_ms=100)).items():
                    records[tp.partition].extend(found)
        finally:
            await consumer.stop()

    async def count(self, topic: str) -> int:
        return sum(len(records) for records in (await self.read(topic)).values())

    async def committed(self, group: str | None = None) -> dict[int, int]:
        """The group's committed offsets by partition of the items."""
        wire = await self.wire()
        found = {
            partition: await wire.committed(group or self.group(), TopicPartition(self.items, partition))
            for partition in range(self.partitions)
        }
        return {partition: offset for partition, offset in found.items() if offset is not None}

    async def ends(self) -> dict[int, int]:
        """End offsets of the items' partitions that are not empty."""
        wire = await self.wire()
        found = {
            partition: (await wire.bounds(TopicPartition(self.items, partition)))[1]
            for partition in range(self.partitions)
        }
        return {partition: end for partition, end in found.items() if end}

    async def wire(self) -> Wire:
        if self._wire is None:
            self._wire = Wire("laboratory", self.options)
            await self._wire.start()
        return self._wire

    # -- workers ---------------------------------------------------------------------------------

    def worker(
        self,
        *,
        fault: str = "",
        instance: str = "worker-1",
        home: str = "home",
        services: Iterable[str] = ("counting",),
        **settings: Any,
    ) -> Worker:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MINI_VISA_")}
        environment |= {
            "KERNEL_TEST_PREFIX": self.prefix,
            "MINI_VISA_BROKER": f"kafka://{self.broker}",
            "MINI_VISA_ENVIRONMENT": self.prefix,
            "MINI_VISA_HOME": str(self.home / home),
            "MINI_VISA_INSTANCE": instance,
            "MINI_VISA_FAULT": fault,
        }
        environment |= {f"MINI_VISA_{name.upper()}": str(value) for name, value in settings.items()}
        log_file = self.home / f"{len(self.workers)}-{instance}.log"
        log_file.touch()
        process = warm.start(
            "tests.integration.kernel.apps", list(services), environment=environment, log=log_file
        )
        worker = Worker(process, log_file)
        self.workers.append(worker)
        return worker

    async def done(self, worker: Worker | None = None, group: str | None = None) -> None:
        """Wait until the group has committed every item there is."""
        deadline = time.monotonic() + WAIT_S
        while True:
            if await self.committed(group) == await self.ends():
                return
            for each in self.workers if worker is None else [worker]:
                code = each.process.poll()
                assert code in (None, 0, -9, 70) if worker is None else code is None, f"ended:\n{each.log}"
            assert time.monotonic() < deadline, "not done:\n" + "\n".join(each.log for each in self.workers)
            await asyncio.sleep(0.05)

    async def close(self) -> None:
        """End what still runs; delete this test's topics."""
        for worker in self.workers:
            if worker.process.poll() is None:
                worker.thaw()
                worker.process.kill()
                worker.process.wait()
        if self._producer is not None:
            await self._producer.stop()
        if self._wire is not None:
            await self._wire.stop()
        if self._admin is not None:
            mine = [name for name in await self._admin.list_topics() if name.startswith(self.prefix)]
            if mine:
                await self._admin.delete_topics(mine)
            await self._admin.close()

    # -- reckoning -------------------------------------------------------------------------------

    async def expect_exact(self, *, committed: bool = True) -> None:
        """Every item processed once and in order: outputs, changelog, progress and offsets all say so.

        With `committed` of False only a part may be processed: then everything must agree on which."""
        items = await self.read(self.items)
        seen = await self.read(self.seen)
        changelog = await self.read(self.changelog())
        offsets = await self.committed()
        for partition, records in items.items():
            rows, progress = fold(changelog[partition])
            upto = offsets.get(partition)
            if committed:
                assert upto == (records[-1].offset + 1 if records else None)
            assert (None if progress is None else progress.next_offset) == upto
            done = [record for record in records if upto is not None and record.offset < upto]
            expected_rows, expected_outputs = reckon(done)
            outputs = [(record.key, json.loads(record.value)) for record in seen[partition]]
            assert outputs == expected_outputs, (
                f"partition {partition}: {_difference(outputs, expected_outputs)}"
            )
            assert rows == expected_rows


def fold(changelog: Iterable[Any]) -> tuple[dict[bytes, tuple[int, int]], Progress | None]:
    """The rows that a changelog's records leave, by key, and the last progress record."""
    import msgspec

    rows: dict[bytes, tuple[int, int]] = {}
    progress = None
    for record in changelog:
        if record.key == PROGRESS_KEY:
            progress = decode_progress(record.value)
        elif record.key.startswith(b"rows\0"):
            key = record.key[5:]
            if record.value is None:
                rows.pop(key, None)
            else:
                row = msgspec.msgpack.decode(record.value[1:])
                rows[key] = (row["count"], row["total"])
    return rows, progress


def reckon(items: Iterable[Any]) -> tuple[dict[bytes, tuple[int, int]], list[tuple[bytes, dict[str, int]]]]:
    """What `apps.count` must have done with these records, told again in the plainest way."""
    rows: dict[bytes, tuple[int, int]] = defaultdict(lambda: (0, 0))
    outputs = []
    for record in items:
        try:
            item = json.loads(record.value)
            number, do = item["number"], item.get("do", "")
        except (TypeError, ValueError, KeyError):
            continue
        if do in ("impossible", "nothing", "only output"):
            continue
        if do == "delete":
            rows.pop(record.key, None)
            continue
        count, total = rows[record.key]
        rows[record.key] = (count + 1, total + number)
        outputs.append((record.key, {"number": number, "count": count + 1, "total": total + number}))
    return dict(rows), outputs


def _difference(outputs: list[Any], expected: list[Any]) -> str:
    for position, (got, wanted) in enumerate(zip(outputs, expected, strict=False)):
        if got != wanted:
            return (
                f"{len(outputs)} outputs, {len(expected)} expected; number {position} is {got}, not {wanted}"
            )
    return f"{len(outputs)} outputs, {len(expected)} expected"
