"""Growth and skew: what a payment costs as accounts grow, and when one account takes a fifth of them.

The authorization service's own steps on one partition, in this process and without a broker, as in
`parts`; but here the CPU time of the whole process counts, so that RocksDB's flushes and compactions are in.
Accounts are those of one partition: a cluster has as many times more as it has partitions.
"""

from __future__ import annotations

import asyncio
import resource
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from mini_visa.streams.app import collect_garbage_seldom, keep_freed_memory
from mini_visa.streams.worker import find
from tests.bench.parts import BATCH, Pass, fetched
from tests.bench.report import Figure, Result, console
from tests.bench.services import EVENT_TIME_BACK_MS, STEP_MS
from tests.bench.topiclog import Entry
from tests.bench.workload import HOT_HOLDS, HOT_REQUESTS, HOT_SHARE, Workload

SIZES = (2_500, 25_000, 250_000, 2_500_000)
BASE = 2_500
"""Accounts of a partition, one of four: of 10,000 in all, and of 10 million."""


def _batches(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    rest = iter(entries)
    while batch := list(islice(rest, BATCH)):
        yield batch


class Partition:
    """One partition of the authorization service, with its accounts open."""

    def __init__(self, accounts: int, *, hot: bool) -> None:
        self.load = Workload(
            series="growth", accounts=accounts, start_ms=int(time.time() * 1_000) - EVENT_TIME_BACK_MS
        )
        (processor,) = find("authorization").app.processors.values()
        self._folder = Path(tempfile.mkdtemp(prefix="mini-visa-growth-"))
        self._one = Pass(processor, self._folder)
        self._offset = 0
        self._hot_share = HOT_SHARE if hot else 0.0
        self._run(self.load.open_accounts())
        if hot:
            self._run(self.load.hot_history())

    def _run(self, entries: Iterable[Entry]) -> float:
        """CPU seconds of this process for them."""
        used = 0.0
        for batch in _batches(entries):
            data = fetched(batch, self._offset)
            began = time.process_time()
            self._one.run(data, self._offset, measured=False)
            used += time.process_time() - began
            self._offset += len(batch)
        return used

    def us_each(self, records: int) -> float:
        entries = self.load.authorizations(
            records, step_ms=STEP_MS["authorization"], hot_share=self._hot_share
        )
        return self._run(entries) / records * 1e6

    def disk_mib(self) -> float:
        return sum(path.stat().st_size for path in self._folder.rglob("*") if path.is_file()) / 2**20

    def close(self) -> None:
        self._one.close()
        shutil.rmtree(self._folder, ignore_errors=True)


async def measure(*, accounts_max: int, records: int, reps: int, command: str) -> Result:
    """`records` authorizations a run. Runs of two partitions that are compared take turns."""
    result = Result("growth", command)
    collect_garbage_seldom()
    keep_freed_memory()
    base = Partition(BASE, hot=False)
    try:
        hot = Partition(BASE, hot=True)
        try:
            pairs = [(base.us_each(records), hot.us_each(records)) for _ in range(reps)]
        finally:
            hot.close()
        result.figures += [
            Figure("growth.hot.cpu_us", "CPU us a record", tuple(h for _, h in pairs)),
            Figure("growth.hot.ratio", "x the speed without", tuple(b / h for b, h in pairs)),
        ]
        curve: list[tuple[float, float]] = []
        for size in (size for size in SIZES if size <= accounts_max):
            grown = Partition(size, hot=False)
            try:
                runs = [(base.us_each(records), grown.us_each(records)) for _ in range(reps)]
                disk = grown.disk_mib()
            finally:
                grown.close()
            figures = [
                Figure(f"growth.{size}.cpu_us", "CPU us a record", tuple(us for _, us in runs)),
                Figure(f"growth.{size}.ratio", "x the cost", tuple(us / b for b, us in runs)),
                Figure(f"growth.{size}.disk", "MiB", (disk,)),
            ]
            result.figures += figures
            if size == SIZES[-1]:
                result.figures.append(Figure("growth.cost_ratio", "x the cost", figures[1].values))
            curve.append((float(size), figures[0].median))
            resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            console.print(
                f"  {size:,} accounts: {figures[0].spread()} us a record, {figures[1].spread()} times "
                f"{BASE:,}; {disk:.0f} MiB on disk, {resident:.0f} MiB resident, workload included",
                style="dim",
            )
            await asyncio.sleep(0)
        result.series["authorization"] = curve
    finally:
        base.close()
    result.notes.append(
        f"{records:,} authorizations a run on a partition, in turns with one of {BASE:,} accounts; hot: one "
        f"account takes {HOT_SHARE:.0%}, with {HOT_REQUESTS:,} recent request ids and {HOT_HOLDS:,} holds"
    )
    return result
