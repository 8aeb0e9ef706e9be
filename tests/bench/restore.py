"""Restore: how fast a worker whose disk is empty has its tables back from the changelog."""

from __future__ import annotations

import re
import shutil
import time
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from mini_visa import topics
from mini_visa.streams.store import APPLIED_KEY, RocksStore
from tests.bench.ground import Ground
from tests.bench.processes import wait_until
from tests.bench.report import Figure, Result, console, number
from tests.bench.services import EVENT_TIME_BACK_MS, process
from tests.bench.topiclog import read_all
from tests.bench.workload import Workload

TIMEOUT_S = 180.0
MEMORY_BYTES = 64 << 20
"""For RocksDB, while tables are compared."""
ACQUIRED = re.compile(r"acquired in ([0-9.]+) s, (\d+) changelog records restored")
"""What a worker logs of each partition."""


CHANGELOG = "bench.authorization.decide.changelog"
"""In the environment that `Ground` gives its processes."""


@dataclass(frozen=True, slots=True)
class Tables:
    """What a worker's tables hold, all partitions together."""

    rows: int
    digest: str
    """Of every key and value, partition by partition, and of how far each has come."""


def tables_in(state: Path) -> Tables:
    """Of a processor's directory that no worker uses, one directory below it for each partition."""
    rows, digest = 0, sha256()
    for folder in sorted(state.iterdir()):
        digest.update(folder.name.encode())
        store = RocksStore(folder, MEMORY_BYTES)
        for key, value in store.scan(b"", b"\xff"):
            if key != APPLIED_KEY:  # when and where from, which is not the tables' own
                rows += 1
                digest.update(b"%d %d " % (len(key), len(value)) + key + value)
        store.close()
    return Tables(rows, digest.hexdigest())


async def measure(*, records: int, reps: int, command: str) -> Result:
    """The tables that `records` authorizations left, restored `reps` times. Records/s is all restored
    records over the time of the slowest partition: they restore side by side on the worker's one core. Raises
    `RuntimeError` when not all that the changelog holds was restored, or the tables are not as they were."""
    result = Result("restore", command)
    async with Ground() as ground:
        await ground.apply_topics()
        load = Workload(series="restore", start_ms=int(time.time() * 1_000) - EVENT_TIME_BACK_MS)
        source, sink = topics.ACCOUNT_COMMANDS.name, topics.PAYMENT_EVENTS.name
        await process(ground, "authorization", source, sink, load.open_accounts())
        await process(ground, "authorization", source, sink, load.authorizations(records, step_ms=1))
        state = ground.home / "home/state/bench/authorization/decide"
        before = tables_in(state)
        held = (await read_all(ground.bootstrap, CHANGELOG)).records
        for turn in range(reps):
            shutil.rmtree(state)
            run = _restore(ground)
            formerly, held = held, (await read_all(ground.bootstrap, CHANGELOG)).records
            check(run["restored"], formerly, held, before, tables_in(state))
            result.runs.append(run)
            console.print(
                f"  restore {turn + 1}/{reps}: {run['restored']:,} records in {run['seconds']:.2f} s, "
                f"{number(run['restored'] / run['seconds'])}/s",
                style="dim",
            )
        result.cores = ground.placed()
    result.figures = [
        Figure("restore.per_s", "records/s", tuple(run["restored"] / run["seconds"] for run in result.runs)),
        Figure("restore.seconds", "s", tuple(run["seconds"] for run in result.runs)),
        Figure("restore.from_start_s", "s", tuple(run["from_start_s"] for run in result.runs)),
    ]
    result.notes.append(
        f"{held:,} changelog records, all there are, of authorization's {before.rows:,} rows in "
        f"{ground.partitions} partitions, which are as they were before; one worker on one core, empty disk; "
        "from_start_s: with the start of the interpreter and joining the group"
    )
    return result


def _restore(ground: Ground) -> dict[str, Any]:
    """What a worker of an empty disk restored, in what time."""
    log = ground.home / "logs" / "authorization.log"
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
    return {
        "restored": sum(int(count) for _, count in found),
        "seconds": max(float(took) for took, _ in found),
        "from_start_s": started,
        "rss_mib": rss,
    }


def check(restored: int, held_before: int, held_after: int, before: Tables, after: Tables) -> None:
    """Raises `RuntimeError` unless all that the changelog held was restored (the broker may have compacted it
    meanwhile: no less than was left then), and the tables are as they were."""
    if not held_after <= restored <= held_before:
        raise RuntimeError(
            f"{restored:,} records restored, the changelog held {held_before:,} before, {held_after:,} after"
        )
    if after != before:
        raise RuntimeError(
            f"the restored tables are not those from before: {after.rows:,} rows, {before.rows:,} then"
        )
