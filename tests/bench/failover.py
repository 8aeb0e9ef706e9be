"""Fail-over: SIGKILL of a worker under load, a new one started at once; how long until it decides."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from datetime import datetime
from typing import Any

from aiokafka import AIOKafkaProducer

from mini_visa import topics
from mini_visa.streams.topic import partition_of
from tests.bench.ground import Ground
from tests.bench.report import Figure, Result, console
from tests.bench.services import process
from tests.bench.topiclog import partitions_of, reader
from tests.bench.workload import Workload

RATE_PER_S = 1_000
BETWEEN_S = 4.0
"""Of quiet running before each kill."""
TIMEOUT_S = 60.0


class Watcher:
    """Reads payment.events as its readers do, and notes when what was appended after a kill arrives."""

    def __init__(self) -> None:
        self.killed_at_ms = 0
        self.first: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self.all: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self.events = 0
        self._seen: set[int] = set()

    def expect(self, killed_at_ms: int) -> None:
        """From now on only records appended after `killed_at_ms` (the broker's clock is ours) count."""
        loop = asyncio.get_running_loop()
        self.killed_at_ms, self._seen = killed_at_ms, set()
        self.first, self.all = loop.create_future(), loop.create_future()

    async def watch(self, bootstrap: str, partitions: int) -> None:
        async with reader(bootstrap) as consumer:
            consumer.assign(await partitions_of(consumer, topics.PAYMENT_EVENTS.name))
            await consumer.seek_to_end()
            while True:
                for tp, records in (await consumer.getmany(timeout_ms=50)).items():
                    self.events += len(records)
                    if not self.killed_at_ms or records[-1].timestamp <= self.killed_at_ms:
                        continue
                    self._seen.add(tp.partition)
                    if not self.first.done():
                        self.first.set_result(time.monotonic())
                    if len(self._seen) == partitions and not self.all.done():
                        self.all.set_result(time.monotonic())


async def measure(*, kills: int, command: str) -> Result:
    """`kills` times: from SIGKILL to the first decision that a reader sees, and to one on every partition."""
    result = Result("failover", command)
    first: list[float] = []
    every: list[float] = []
    async with Ground() as ground:
        await ground.apply_topics([topics.PAYMENT_EVENTS])
        load = Workload(series="failover", start_ms=int(time.time() * 1_000) - 3_600_000)
        source, sink = topics.ACCOUNT_COMMANDS.name, topics.PAYMENT_EVENTS.name
        await process(ground, "authorization", source, sink, load.open_accounts())
        watcher = Watcher()
        tasks = [
            asyncio.create_task(watcher.watch(ground.bootstrap, ground.partitions)),
            asyncio.create_task(_send(ground, load)),
        ]
        worker = ground.worker("authorization").__enter__()
        try:
            for kill in range(kills):
                watcher.expect(int(time.time() * 1_000))
                await _within(watcher.all, tasks)
                await asyncio.sleep(BETWEEN_S)
                worker.kill()
                killed, killed_ms = time.monotonic(), int(time.time() * 1_000)
                watcher.expect(killed_ms)
                worker.stop()
                worker.log.unlink()
                worker = ground.worker("authorization").__enter__()
                first.append(await _within(watcher.first, tasks) - killed)
                every.append(await _within(watcher.all, tasks) - killed)
                steps = _steps(worker.log.read_text(), killed_ms)
                result.runs.append({**steps, "first_decision_s": first[-1], "every_partition_s": every[-1]})
                console.print(
                    f"  failover {kill + 1}/{kills}: first decision after {first[-1]:.2f} s, "
                    f"on every partition {every[-1]:.2f} s ("
                    + ", ".join(f"{step} {at:.2f}" for step, at in steps.items())
                    + ")",
                    style="dim",
                )
        finally:
            worker.stop()
            for task in tasks:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
        result.cores = ground.placed()
    result.figures = [
        *(
            Figure(f"failover.{step}_s", "s", tuple(run[step] for run in result.runs if step in run))
            for step in STEPS
            if any(step in run for run in result.runs)
        ),
        Figure("failover.first_decision_s", "s", tuple(first)),
        Figure("failover.every_partition_s", "s", tuple(every)),
    ]
    result.notes.append(
        f"SIGKILL of the authorization worker at {RATE_PER_S:,} commands/s, its tables on its disk, "
        "a fresh interpreter started at once; until a read_committed reader of payment.events has a "
        "decision made after it"
    )
    return result


STEPS = {"imported": "Kernel]: Starting", "joined": ": generation ", "acquired": ": acquired in "}
"""What a worker logs on its way."""


def _steps(log: str, killed_ms: int) -> dict[str, float]:
    """Seconds from the kill to each step that the new worker's log tells, its first time."""
    lines = log.splitlines()
    found = {}
    for step, text in STEPS.items():
        line = next((line for line in lines if text in line), None)
        if line is not None:
            at = datetime.fromisoformat(line.split(maxsplit=1)[0])
            found[step] = at.timestamp() - killed_ms / 1_000
    return found


async def _send(ground: Ground, load: Workload) -> None:
    """Authorizations at `RATE_PER_S`, each on its account's partition, until cancelled."""
    producer = AIOKafkaProducer(bootstrap_servers=ground.bootstrap, acks="all", linger_ms=5)
    await producer.start()
    try:
        start = time.monotonic()
        for sent, (key, value, _) in enumerate(load.authorizations(10**9, step_ms=1)):
            await producer.send(
                topics.ACCOUNT_COMMANDS.name,
                value,
                key=key,
                partition=partition_of(key, ground.partitions),
            )
            if sent % 20 == 0:
                await asyncio.sleep(max(0.0, start + sent / RATE_PER_S - time.monotonic()))
    finally:
        await producer.stop()


async def _within(future: asyncio.Future[float], tasks: list[asyncio.Task[None]]) -> float:
    """The future's result. Raises when it does not come, or what it needs has failed."""
    waiting: set[asyncio.Future[Any]] = {future, *tasks}
    await asyncio.wait(waiting, timeout=TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        if task.done():
            task.result()
    if not future.done():
        raise TimeoutError(f"no decision within {TIMEOUT_S:g} s")
    return future.result()
