"""A soak with random faults: workers are killed, frozen, made to fail at any step, join, leave and lose their
disks under load; in the end every output, row, progress record and offset is reckoned to the record.

    python -m tests.integration.kernel.soak --broker 127.0.0.1:9092 --minutes 30 --rate 3000
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import secrets
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from aiokafka.structs import TopicPartition

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parent))

from laboratory import Laboratory, Worker, fold, reckon

STEPS = (
    "handled", "begin", "produced", "offsets", "commit_sent", "committed", "stored", "fenced", "restored"
)  # fmt: skip
ENDS = (0, 70, -9, -15)
"""Stopped, poisoned, killed, and stopped before the interpreter had come to its signal handlers."""
INSTANCES = ("a", "b", "c")
OPTIONS = {"session_timeout_s": 6, "batch_records_max": 500, "transaction_timeout_s": 6}


class Soak:
    def __init__(self, laboratory: Laboratory, seed: int, rate: int) -> None:
        self.laboratory = laboratory
        self.random = random.Random(seed)
        self.rate = rate
        self.running: dict[str, Worker] = {}
        self.did: Counter[str] = Counter()
        self.written = 0

    async def load(self, until: float) -> None:
        """About `rate` items a second, some of them refused by the handler."""
        step = max(1, self.rate // 10)
        while time.monotonic() < until:
            began = time.monotonic()
            first = self.written
            await self.laboratory.put(
                range(first, first + step), key=lambda number: b"key-%d" % (number % 997)
            )
            if first % 7 == 0:
                await self.laboratory.put([first], do=self.random.choice(("impossible", "delete", "nothing")))
            self.written = first + step
            await asyncio.sleep(max(0.0, 0.1 - (time.monotonic() - began)))

    def start(self, instance: str) -> None:
        """Start or restart a worker: sometimes with a fault to come, sometimes with its disk lost."""
        fault = ""
        if self.random.random() < 0.6:
            action = self.random.choice(("kill", "kill", "raise", "delay=1"))
            fault = f"{self.random.choice(STEPS)}:{action}:{self.random.randrange(1, 60)}"
        if self.random.random() < 0.2:
            self.did["disk lost"] += 1
            shutil.rmtree(self.laboratory.home / instance, ignore_errors=True)
        self.did[f"started{' to ' + fault.split(':')[1].split('=')[0] if fault else ''}"] += 1
        self.running[instance] = self.laboratory.worker(
            instance=instance, home=instance, fault=fault, **OPTIONS
        )

    async def disturb(self, until: float, every_s: float) -> None:
        while time.monotonic() < until:
            await asyncio.sleep(self.random.uniform(0.5, 1.5) * every_s)
            for instance, worker in list(self.running.items()):
                code = worker.process.poll()
                if code is not None:
                    assert code in ENDS, f"{instance} ended with {code}:\n{worker.log}"
                    self.start(instance)
            instance = self.random.choice(INSTANCES)
            worker = self.running.get(instance)
            match self.random.choice(("kill", "stop", "freeze", "nothing")):
                case _ if worker is None:
                    self.start(instance)
                case "kill":
                    self.did["killed"] += 1
                    await worker.kill()
                case "stop" if len(self.running) > 1:
                    self.did["stopped"] += 1
                    code = await worker.stop()
                    assert code in ENDS, f"{instance} ended with {code}:\n{worker.log}"
                    del self.running[instance]
                case "freeze":
                    self.did["frozen"] += 1
                    worker.freeze()
                    await asyncio.sleep(self.random.choice((1.0, 9.0)))
                    worker.thaw()

    async def settle(self) -> None:
        """No more faults: one healthy worker finishes everything."""
        for worker in self.running.values():
            if worker.process.poll() is None:
                await worker.kill()
        worker = self.laboratory.worker(instance="a", home="a", **OPTIONS)
        deadline = time.monotonic() + 300
        while await self.laboratory.committed() != await self.laboratory.ends():
            assert worker.process.poll() is None, worker.log
            assert time.monotonic() < deadline, worker.log
            await asyncio.sleep(0.5)
        assert await worker.stop() == 0, worker.log

    async def reckon(self) -> dict[str, int]:
        """Raises AssertionError unless everything agrees; counts of what was compared."""
        counts: Counter[str] = Counter()
        for partition in range(self.laboratory.partitions):
            items = [record async for record in self.records(self.laboratory.items, partition)]
            rows, outputs = reckon(items)
            counts["items"] += len(items)
            position = 0
            async for record in self.records(self.laboratory.seen, partition):
                got = (record.key, json.loads(record.value))
                assert position < len(outputs), f"{partition}: one output too many: {got}"
                assert got == outputs[position], f"{partition}: {got}, not {outputs[position]}, at {position}"
                position += 1
            assert position == len(outputs), f"{partition}: {len(outputs) - position} outputs are missing"
            counts["outputs"] += position
            changelog = [record async for record in self.records(self.laboratory.changelog(), partition)]
            found, progress = fold(changelog)
            assert found == rows, f"{partition}: rows differ"
            assert progress is not None and progress.next_offset == items[-1].offset + 1
            counts["rows"] += len(rows)
            counts["changelog records"] += len(changelog)
        return dict(counts)

    async def records(self, topic: str, partition: int) -> AsyncIterator[Any]:
        wire = await self.laboratory.wire()
        target = TopicPartition(topic, partition)
        position, end = await wire.bounds(target)
        while position < end:
            chunk = await wire.fetch(target, position, bytes_max=1 << 20, wait_ms=100)
            position = chunk.next_offset
            for record in chunk.records:
                yield record


async def soak(
    broker: str, seconds: float, rate: int, every_s: float, seed: int, home: Path
) -> dict[str, int]:
    """Run it; the counts of what was done and compared."""
    laboratory = Laboratory(broker, f"soak-{secrets.token_hex(4)}", home)
    try:
        await laboratory.create_topics(partitions=4)
        run = Soak(laboratory, seed, rate)
        run.start("a")
        until = time.monotonic() + seconds
        await asyncio.gather(run.load(until), run.disturb(until, every_s))
        await run.settle()
        return {**run.did, **await run.reckon()}
    finally:
        await laboratory.close()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--broker", required=True, help="HOST:PORT")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--rate", type=int, default=3_000, help="items a second")
    parser.add_argument("--every", type=float, default=4.0, help="seconds between disturbances, about")
    parser.add_argument("--seed", type=int, default=None, help="of the disturbances; a new one by default")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else secrets.randbelow(1 << 32)
    print(f"seed {seed}", flush=True)
    with tempfile.TemporaryDirectory() as home:
        counts = asyncio.run(
            soak(options.broker, options.minutes * 60, options.rate, options.every, seed, Path(home))
        )
    for name, count in sorted(counts.items()):
        print(f"{count:>12,} {name}")
    print("everything agrees")


if __name__ == "__main__":
    main()
