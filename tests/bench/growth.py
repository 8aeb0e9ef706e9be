"""Growth and skew: what a payment costs as accounts grow, and when one account takes a fifth of them.

The authorization service's own steps on one partition without a broker, as in `parts`, each partition in a
process of its own. A run's cost is the CPU time of the steps, and on top an even share of what RocksDB did in
the background for all runs of that partition: its flushes and compactions are awaited before a run and
after it, and come in lumps.

Accounts are those of one partition: a cluster has as many times more as it has partitions.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import resource
import shutil
import signal
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType

from mini_visa.streams.app import collect_garbage_seldom, keep_freed_memory
from mini_visa.streams.worker import find
from tests.bench.parts import BATCH, Pass, fetched
from tests.bench.report import Figure, Result, console
from tests.bench.services import EVENT_TIME_BACK_MS, STEP_MS
from tests.bench.topiclog import Entry
from tests.bench.workload import HOT, HOT_HOLDS, HOT_REQUESTS, HOT_SHARE, PLAIN, SPREAD, Mix, Workload

SIZES = (2_500, 25_000, 250_000, 2_500_000)
BASE = 2_500
"""Accounts of a partition, one of four: of 10,000 in all, and of 10 million."""
REPS = 5


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one run, in CPU us a record; and how large the partition is after it."""

    steps_us: float
    """Of the thread that takes the steps."""
    background_us: float
    """Of RocksDB's threads, until they had nothing left to do."""
    disk_mib: float
    resident_mib: float
    """At most so far, of the process; the workload's own names are in it."""


class Partition:
    """One partition of the authorization service, with its accounts open."""

    def __init__(self, accounts: int, mix: Mix, folder: Path) -> None:
        start_ms = int(time.time() * 1_000) - EVENT_TIME_BACK_MS
        self._load = Workload(series="growth", accounts=accounts, start_ms=start_ms)
        (processor,) = find("authorization").app.processors.values()
        self._folder, self._mix = folder, mix
        self._pass = Pass(processor, folder)
        self._offset = 0
        self._run(self._load.open_accounts())
        self._run(self._load.history(mix))

    def _run(self, entries: Iterable[Entry]) -> float:
        """CPU seconds of this thread for them."""
        used = 0.0
        for batch in _batches(entries):
            data = fetched(batch, self._offset)
            began = time.thread_time()
            self._pass.run(data, self._offset, measured=False)
            used += time.thread_time() - began
            self._offset += len(batch)
        return used

    def cost(self, records: int) -> Cost:
        entries = self._load.authorizations(records, step_ms=STEP_MS["authorization"], mix=self._mix)
        self._pass.settle()
        process_s, thread_s = time.process_time(), time.thread_time()
        steps_s = self._run(entries)
        self._pass.settle()
        others_s = (time.process_time() - process_s) - (time.thread_time() - thread_s)
        return Cost(
            steps_us=steps_s / records * 1e6,
            background_us=max(0.0, others_s) / records * 1e6,
            disk_mib=sum(path.stat().st_size for path in self._folder.rglob("*") if path.is_file()) / 2**20,
            resident_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        )


def _batches(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    rest = iter(entries)
    while batch := list(islice(rest, BATCH)):
        yield batch


def _serve(pipe: Connection, accounts: int, mix: Mix, folder: Path) -> None:
    """A partition's process: a cost for each number of records, until nobody asks any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever asks ends this
    collect_garbage_seldom()
    keep_freed_memory()
    partition = Partition(accounts, mix, folder)
    while True:
        try:
            records = pipe.recv()
        except EOFError:
            return
        pipe.send(partition.cost(records))


class Apart:
    """A partition in a process of its own: `with Apart(2_500) as partition: await partition.cost(40_000)`."""

    def __init__(self, accounts: int, mix: Mix = PLAIN) -> None:
        self.costs: list[Cost] = []
        self._folder = Path(tempfile.mkdtemp(prefix="mini-visa-growth-"))
        spawn = multiprocessing.get_context("spawn")
        self._pipe, self._theirs = spawn.Pipe()
        self._process = spawn.Process(
            target=_serve, args=(self._theirs, accounts, mix, self._folder), daemon=True
        )

    def __enter__(self) -> Apart:
        self._process.start()
        self._theirs.close()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.join()
        shutil.rmtree(self._folder, ignore_errors=True)

    async def run(self, records: int) -> None:
        """Add the cost of so many to `costs`. Raises `RuntimeError` when the process is gone."""
        try:
            self._pipe.send(records)
            self.costs.append(await asyncio.to_thread(self._pipe.recv))
        except (EOFError, OSError):
            raise RuntimeError("a partition's process ended; what it said is above") from None


def totals_us(costs: Sequence[Cost]) -> tuple[float, ...]:
    """CPU us a record of each run: its own steps, and an even share of all background work."""
    background_us = statistics.mean(cost.background_us for cost in costs)
    return tuple(cost.steps_us + background_us for cost in costs)


async def _in_turns(one: Apart, other: Apart, *, records: int, reps: int) -> tuple[float, ...]:
    """Run both `reps` times, who is first taking turns too: the cost of `other`, times that of `one`."""
    for turn in range(reps):
        for partition in (one, other) if turn % 2 == 0 else (other, one):
            await partition.run(records)
    return tuple(b / a for a, b in zip(totals_us(one.costs), totals_us(other.costs), strict=True))


async def measure(*, accounts_max: int, records: int, reps: int, command: str) -> Result:
    """`records` commands a run. Runs of two partitions that are compared take turns."""
    result = Result("growth", command)
    with Apart(BASE, SPREAD) as spread, Apart(BASE, HOT) as hot:
        ratios = await _in_turns(spread, hot, records=records, reps=reps)
    _add(result, "growth.hot", hot.costs)
    result.figures.append(Figure("growth.hot.ratio", "x the cost", ratios))
    console.print(f"  hot: {result.figures[-1].spread()} times the cost", style="dim")
    curve: list[tuple[float, float]] = []
    for size in (size for size in SIZES if size <= accounts_max):
        with Apart(BASE) as base, Apart(size) as grown:
            ratios = await _in_turns(base, grown, records=records, reps=reps)
        cost = _add(result, f"growth.{size}", grown.costs)
        result.figures.append(Figure(f"growth.{size}.ratio", "x the cost", ratios))
        console.print(
            f"  {size:,} accounts: {cost.spread()} us a record, {result.figures[-1].spread()} times {BASE:,}",
            style="dim",
        )
        if size == SIZES[-1]:
            result.figures.append(Figure("growth.cost_ratio", "x the cost", ratios))
        curve.append((float(size), cost.median))
    result.series["authorization"] = curve
    result.notes.append(
        f"{records:,} authorizations a run on a partition in a process of its own, in turns with one of "
        f"{BASE:,} accounts; hot: one account takes {HOT_SHARE:.0%}, half of these reversals, with "
        f"{HOT_REQUESTS:,} recent request ids and {HOT_HOLDS:,} holds, in turns with the same spread over all"
    )
    return result


def _add(result: Result, name: str, costs: Sequence[Cost]) -> Figure:
    """The figures of a partition's runs, of which its cost is returned."""
    figures = [
        Figure(f"{name}.cpu_us", "CPU us a record", totals_us(costs)),
        Figure(f"{name}.background_us", "of it RocksDB's", tuple(cost.background_us for cost in costs)),
        Figure(f"{name}.disk", "MiB", (costs[-1].disk_mib,)),
        Figure(f"{name}.rss", "MiB, workload included", (costs[-1].resident_mib,)),
    ]
    result.figures += figures
    return figures[0]
