"""What partitions and workers cost: authorization on 4 to 64 partitions, by one worker and by two.

All workers share one core, so that CPU time a record is what is compared. They wait for the records, which
come as fast as one process writes them.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence

from mini_visa import topics
from tests.bench.ground import Ground
from tests.bench.processes import Watched, wait_until
from tests.bench.report import Figure, Result, console
from tests.bench.restore import ACQUIRED
from tests.bench.services import (
    EVENT_TIME_BACK_MS,
    RUN_TIMEOUT_S,
    count_outputs,
    output_ends,
    outputs,
    process,
)
from tests.bench.topiclog import Progress, preload
from tests.bench.workload import Workload

SERVICE = "authorization"
SHAPES = ((4, 1), (16, 1), (64, 1), (4, 2), (64, 2))
"""(partitions, workers)."""


async def measure(*, records: int, reps: int, command: str) -> Result:
    """`records` authorizations a run; the shapes take turns. A count that is wrong raises `RuntimeError`."""
    result = Result("scale", command)
    found: dict[tuple[int, int], list[tuple[float, float]]] = {shape: [] for shape in SHAPES}
    for turn in range(reps):
        for partitions, workers in SHAPES:
            cpu_us, rss_mib, cores = await _run(partitions, workers, records)
            result.cores |= cores
            found[partitions, workers].append((cpu_us, rss_mib))
            console.print(
                f"  scale {turn + 1}/{reps}: {partitions} partitions, {workers} worker{'s' * (workers > 1)}: "
                f"{cpu_us:.0f} CPU us a record, {rss_mib:.0f} MiB",
                style="dim",
            )
    for (partitions, workers), runs in found.items():
        name = f"scale.{partitions}x{workers}"
        result.figures += [
            Figure(f"{name}.cpu_us", "CPU us a record", tuple(cpu for cpu, _ in runs)),
            Figure(f"{name}.rss", "MiB, all workers", tuple(rss for _, rss in runs)),
        ]
    result.notes.append(
        f"{records:,} authorizations a run; PARTITIONSxWORKERS; CPU of all workers, from the first record on"
    )
    return result


async def _run(partitions: int, workers: int, records: int) -> tuple[float, float, dict[str, list[int]]]:
    """CPU us a record, MiB resident, and the cores that each process was on."""
    source, sink = topics.ACCOUNT_COMMANDS.name, topics.PAYMENT_EVENTS.name
    load = Workload(series="scale", start_ms=int(time.time() * 1_000) - EVENT_TIME_BACK_MS)
    async with Ground(partitions=partitions) as ground:
        await ground.apply_topics(outputs(SERVICE))
        await process(ground, SERVICE, source, sink, load.open_accounts())
        before = await output_ends(ground, SERVICE)
        with contextlib.ExitStack() as stack:
            running = [stack.enter_context(_worker(ground, number)) for number in range(workers)]

            def cpu_s() -> float:
                return sum(worker.cpu_s for worker in running)

            def check() -> None:
                for worker in running:
                    worker.check()

            await asyncio.to_thread(
                wait_until,
                "every partition is taken, and by all workers",
                lambda: _shared_out(running, partitions),
                timeout_s=RUN_TIMEOUT_S,
                worker=running[0],
            )
            began_s = cpu_s()
            await preload(
                ground.bootstrap, source, load.authorizations(records, step_ms=1), partitions=partitions
            )
            async with Progress(ground.bootstrap, sink) as progress:
                await progress.until(
                    sum(before[sink].values()) + records, timeout_s=RUN_TIMEOUT_S, check=check
                )
            cpu_us = (cpu_s() - began_s) / records * 1e6
            rss_mib = sum(worker.rss_peak_mib for worker in running)
        await count_outputs(ground, SERVICE, before, records=records, approved=load.approved)
        return cpu_us, rss_mib, ground.placed()


def _worker(ground: Ground, number: int) -> Watched:
    name = f"{SERVICE}-{number}"
    home = {"MINI_VISA_HOME": str(ground.home / name)} if number else {}
    return ground.worker(SERVICE, name=name, MINI_VISA_INSTANCE=name, **home)


def _shared_out(running: Sequence[Watched], partitions: int) -> bool:
    """Every worker has taken something, and each partition was taken by the last to join or left alone."""
    taken = [len(ACQUIRED.findall(worker.log.read_text())) for worker in running]
    return sum(taken) >= partitions and taken[-1] >= partitions // len(running)
