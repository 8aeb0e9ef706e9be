"""Restore: how fast a worker whose disk is empty has its tables back from the changelog."""

from __future__ import annotations

import re
import shutil
import time

from mini_visa import topics
from tests.bench.ground import Ground
from tests.bench.processes import wait_until
from tests.bench.report import Figure, Result, console, number
from tests.bench.services import EVENT_TIME_BACK_MS, process
from tests.bench.workload import Workload

TIMEOUT_S = 180.0
ACQUIRED = re.compile(r"acquired in ([0-9.]+) s, (\d+) changelog records restored")
"""What a worker logs of each partition."""


async def measure(*, records: int, reps: int, command: str) -> Result:
    """The tables that `records` authorizations left, restored `reps` times. Records/s is all restored
    records over the time of the slowest partition: they restore side by side on the worker's one core."""
    result = Result("restore", command)
    rates: list[float] = []
    seconds: list[float] = []
    starts: list[float] = []
    restored = 0
    async with Ground() as ground:
        await ground.apply_topics()
        load = Workload(series="restore", start_ms=int(time.time() * 1_000) - EVENT_TIME_BACK_MS)
        source, sink = topics.ACCOUNT_COMMANDS.name, topics.PAYMENT_EVENTS.name
        await process(ground, "authorization", source, sink, load.open_accounts())
        await process(ground, "authorization", source, sink, load.authorizations(records, step_ms=1))
        log = ground.home / "logs" / "authorization.log"
        for turn in range(reps):
            shutil.rmtree(ground.home / "home" / "state")
            log.unlink(missing_ok=True)
            with ground.worker("authorization") as worker:
                started = wait_until(
                    "every partition is restored",
                    lambda: len(ACQUIRED.findall(log.read_text())) == ground.partitions,
                    timeout_s=TIMEOUT_S,
                    worker=worker,
                )
                rss = worker.rss_peak_mib
            found = ACQUIRED.findall(log.read_text())
            slowest = max(float(took) for took, _ in found)
            restored = sum(int(count) for _, count in found)
            if restored < records:
                raise RuntimeError(f"{restored} records restored of {records} authorizations' rows")
            rates.append(restored / slowest)
            seconds.append(slowest)
            starts.append(started)
            result.runs.append(
                {"restored": restored, "seconds": slowest, "from_start_s": started, "rss_mib": rss}
            )
            console.print(
                f"  restore {turn + 1}/{reps}: {restored:,} records in {slowest:.2f} s, "
                f"{number(rates[-1])}/s",
                style="dim",
            )
        result.cores = ground.placed()
    result.figures = [
        Figure("restore.per_s", "records/s", tuple(rates)),
        Figure("restore.seconds", "s", tuple(seconds)),
        Figure("restore.from_start_s", "s", tuple(starts)),
    ]
    result.notes.append(
        f"{restored:,} changelog records of authorization's tables in {ground.partitions} partitions, "
        "one worker on one core, empty disk; from_start_s: with the start of the interpreter and joining "
        "the group"
    )
    return result
