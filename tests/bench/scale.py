"""What partitions and workers cost: authorization on 4 to 64 partitions, by one worker and by two.

All workers share one core, so that CPU time a record is what is compared; the second joins at the start of
the run, and takes half of the partitions over.
"""

from __future__ import annotations

import contextlib
import time

from mini_visa import topics
from tests.bench.ground import Ground
from tests.bench.report import Figure, Result, console
from tests.bench.services import EVENT_TIME_BACK_MS, RUN_TIMEOUT_S, Tally, process
from tests.bench.topiclog import Progress, ends, preload, read_all
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
            cpu_us, rss_mib = await _run(partitions, workers, records)
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
        f"{records:,} authorizations a run; PARTITIONSxWORKERS; CPU of all workers, from first to last commit"
    )
    return result


async def _run(partitions: int, workers: int, records: int) -> tuple[float, float]:
    """CPU us a record, and MiB resident."""
    source, sink = topics.ACCOUNT_COMMANDS.name, topics.PAYMENT_EVENTS.name
    load = Workload(series="scale", start_ms=int(time.time() * 1_000) - EVENT_TIME_BACK_MS)
    async with Ground(partitions=partitions) as ground:
        await ground.apply_topics([topics.PAYMENT_EVENTS])
        await process(ground, SERVICE, source, sink, load.open_accounts())
        before = await ends(ground.bootstrap, sink)
        await preload(
            ground.bootstrap, source, load.authorizations(records, step_ms=1), partitions=partitions
        )
        with contextlib.ExitStack() as stack:
            running = [
                stack.enter_context(
                    ground.worker(
                        SERVICE,
                        MINI_VISA_INSTANCE=f"{SERVICE}-{number}",
                        **({"MINI_VISA_HOME": str(ground.home / f"home-{number}")} if number else {}),
                    )
                )
                for number in range(workers)
            ]

            def check() -> None:
                for worker in running:
                    worker.check()

            async with Progress(
                ground.bootstrap, sink, lambda: sum(worker.cpu_s for worker in running)
            ) as progress:
                await progress.until(sum(before.values()) + records, timeout_s=RUN_TIMEOUT_S, check=check)
            rss_mib = sum(worker.rss_peak_mib for worker in running)
        tally = Tally(SERVICE)
        await read_all(ground.bootstrap, sink, tally, start=before)
        if len(tally.request_ids) != records:
            raise RuntimeError(f"{len(tally.request_ids)} requests decided of {records}")
    return progress.cpu_us_per_record(), rss_mib
