"""A soak with random faults: workers are killed, frozen, blocked, made to fail at any step, join, leave and
lose their disks under load, while every output is compared with what its item must lead to. In the end
outputs, rows, progress and offsets are reckoned to the record.

    python -m tests.integration.kernel.soak --minutes 30

starts a broker of its own, says how far it is, and writes a report in JSON. Memory does not grow with time:
what is compared is forgotten.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import secrets
import shutil
import sys
import tempfile
import time
from collections import Counter, defaultdict, deque
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parent))

from apps import Item
from laboratory import Laboratory, Worker, fold
from watch import Commit, Tail, moves, pauses, silences, summary

from mini_visa.broker import EmbeddedBroker
from mini_visa.settings import Settings

STEPS = (
    "handled", "begin", "produced", "offsets", "commit_sent", "committed", "stored", "fenced", "restored"
)  # fmt: skip
ENDS = (0, 70, -9, -15)
"""Stopped, poisoned, killed, and stopped before the interpreter had come to its signal handlers."""
INSTANCES = ("a", "b", "c")
PARTITIONS = 6
KEYS = 997
RECORDS_MAX = 300
"""Of a partition at a time: they fit into a record batch of the producer's default size."""
SESSION_S = 6
OPTIONS = {"session_timeout_s": SESSION_S, "batch_records_max": 500, "transaction_timeout_s": 6}


PAUSE_S = 0.5
NOBODY = "nobody there"
"""The cause of a silence in which for a while no worker was."""


class Check:
    """One partition's items, outputs and changelog, compared as they come."""

    def __init__(self, laboratory: Laboratory, partition: int) -> None:
        self.partition = partition
        self._items = Tail(laboratory, laboratory.items, partition)
        self._seen = Tail(laboratory, laboratory.seen, partition)
        self._changelog = Tail(laboratory, laboratory.changelog(), partition)
        self._waiting: deque[Any] = deque()
        self._decode = msgspec.json.Decoder(Item).decode
        self._rows: dict[bytes, tuple[int, int]] = {}
        self._kept: dict[bytes, Any] = {}
        """The changelog's last record of each key."""
        self.counts: Counter[str] = Counter()
        self.silences: list[tuple[float, float]] = []
        """From the last commit of one owner to the first of the next: (beginning, seconds)."""
        self.pauses: list[float] = []
        self._last: list[Commit] = []

    async def follow(self) -> None:
        """Compare what is committed by now."""
        while seen := await self._seen.more():
            self._seen.commits.clear()
            for record in seen:
                expected = await self._next_output()
                got = (record.key, record.value)
                assert got == expected, (
                    f"partition {self.partition}, output {self.counts['outputs']}: {got}, not {expected}"
                )
                self.counts["outputs"] += 1
        while changes := await self._changelog.more():
            self.counts["changelog records"] += len(changes)
            for record in changes:
                self._kept[record.key] = record
        new, self._changelog.commits = self._changelog.commits, []
        self.counts["batches"] += len(new)
        self.silences += silences([*self._last, *new])
        self.pauses += pauses([*self._last, *new], PAUSE_S)
        self._last = new[-1:] or self._last

    async def finish(self) -> None:
        """Nothing is under way any more: everything must be there, and equal."""
        await self.follow()
        missing = await self._next_output(last=True)
        assert missing is None, f"partition {self.partition}: {missing} is missing, and maybe more"
        rows, progress = fold(self._kept.values())
        assert rows == self._rows, f"partition {self.partition}: rows differ"
        assert progress is not None and progress.next_offset == self._items.position, progress
        self.counts["rows"] = len(rows)

    async def _next_output(self, last: bool = False) -> tuple[bytes, bytes] | None:
        """The output that the items from here on lead to next, told in the plainest way."""
        while True:
            if not self._waiting:
                self._waiting.extend(await self._items.more())
                if not self._waiting:
                    assert last, f"partition {self.partition}: an output without an item"
                    return None
            record = self._waiting.popleft()
            self.counts["items"] += 1
            item = self._decode(record.value)
            if item.do == "delete":
                self._rows.pop(record.key, None)
            elif not item.do:
                count, total = self._rows.get(record.key, (0, 0))
                self._rows[record.key] = count, total = count + 1, total + item.number
                return record.key, b'{"number":%d,"count":%d,"total":%d}' % (item.number, count, total)


class Soak:
    def __init__(self, laboratory: Laboratory, seed: int, rate: int, every_s: float) -> None:
        self.laboratory = laboratory
        self.random = random.Random(seed)
        self.rate = rate
        self.every_s = every_s
        self.running: dict[str, Worker] = {}
        self.did: Counter[str] = Counter()
        self.events: list[tuple[float, str]] = []
        """When what was done, by the clock."""
        self.there: list[tuple[float, int]] = []
        """How many workers there were from when on."""
        self.written = 0
        self.enough = asyncio.Event()
        self.checks = [Check(laboratory, partition) for partition in range(laboratory.partitions)]

    # -- load ------------------------------------------------------------------------------------

    async def load(self, seconds: float, records_min: int) -> None:
        """`rate` items a second on the average, in record batches made here: a slow moment is made up for.
        Ends after `seconds`, but not before `records_min` are written."""
        producer = await self.laboratory.producer()
        partitions = self.laboratory.partitions
        began = time.monotonic()
        while (passed := time.monotonic() - began) < seconds or self.written < records_min:
            due = int(passed * self.rate)
            batches = [producer.create_batch() for _ in range(partitions)]
            upto = min(due, self.written + RECORDS_MAX * partitions)
            for number in range(self.written, upto):
                key = number % KEYS
                batch = batches[key % partitions]
                added = batch.append(key=b"key-%d" % key, value=item(number), timestamp=None)
                assert added is not None, "RECORDS_MAX are too many for a record batch"
            waiting = [
                await producer.send_batch(batch, self.laboratory.items, partition=partition)
                for partition, batch in enumerate(batches)
                if batch.record_count()
            ]
            await asyncio.gather(*waiting)
            self.written = upto
            if upto == due:
                await asyncio.sleep(0.1)
        self.enough.set()

    # -- disturbances ----------------------------------------------------------------------------

    def start(self, instance: str) -> None:
        """Start or restart a worker: sometimes with a fault to come, sometimes with its disk lost."""
        fault = ""
        if self.random.random() < 0.5:
            action = self.random.choice(("kill", "kill", "raise", "delay=1", f"block={SESSION_S + 3}"))
            step = self.random.choice(STEPS)
            upto = 2 if step in ("fenced", "restored") else 200 * self.every_s
            fault = f"{step}:{action}:{int(self.random.uniform(1, upto))}"
        if self.random.random() < 0.2:
            self.note("disk lost")
            shutil.rmtree(self.laboratory.home / instance, ignore_errors=True)
        self.note("join")
        if fault:
            self.did[f"armed to {fault.split(':')[1].split('=')[0]}"] += 1
        self.running[instance] = self.laboratory.worker(
            instance=instance, home=instance, fault=fault, **OPTIONS
        )
        self.count()

    def note(self, what: str) -> None:
        self.did[what] += 1
        self.events.append((time.time(), what))

    def count(self, frozen: int = 0) -> None:
        self.there.append((time.time(), len(self.running) - frozen))

    def _ended(self, instance: str, worker: Worker) -> None:
        code = worker.process.returncode
        assert code in ENDS, f"{instance} ended with {code}:\n{worker.log}"
        self.did[f"exit {code}"] += 1
        self.count()

    def notice_deaths(self) -> None:
        for instance, worker in list(self.running.items()):
            if worker.process.poll() is not None:
                self.note("fault")
                self._ended(instance, self.running.pop(instance))

    async def disturb(self) -> None:
        """Every `every_s`, about: somebody who is not there joins, or somebody leaves or is disturbed."""
        while True:
            await asyncio.sleep(self.random.uniform(0.75, 1.25) * self.every_s)
            if self.enough.is_set():
                return
            self.notice_deaths()
            absent = [instance for instance in INSTANCES if instance not in self.running]
            if absent and (not self.running or self.random.random() < 0.6):
                self.start(self.random.choice(absent))
                continue
            instance = self.random.choice(sorted(self.running))
            what = self.random.choice(("kill", "kill and restart", "stop", "freeze", "doze"))
            self.note(what)
            if what in ("freeze", "doze"):
                worker = self.running[instance]
                worker.freeze()
                self.count(frozen=1)
                await asyncio.sleep(SESSION_S + 3 if what == "freeze" else 1)
                worker.thaw()
                self.count()
                continue
            worker = self.running.pop(instance)
            self.count()
            await (worker.stop() if what == "stop" else worker.kill())
            self._ended(instance, worker)
            if what == "kill and restart":
                self.start(instance)

    # -- checking --------------------------------------------------------------------------------

    async def follow(self) -> None:
        """Compare all the time, and say how far it is."""
        began = said = time.monotonic()
        while not self.enough.is_set():
            now = time.monotonic()
            for check in self.checks:
                await check.follow()
            self.notice_deaths()
            if now - said > max(self.every_s, 5):
                said = now
                checked = sum(check.counts["outputs"] for check in self.checks)
                print(
                    f"{now - began:7.0f} s  {self.written:>10,} written  {checked:>10,} outputs compared  "
                    f"workers {' '.join(sorted(self.running)) or '-':6}  "
                    f"{self.events[-1][1] if self.events else ''}",
                    flush=True,
                )
            await asyncio.sleep(1)

    async def settle(self) -> Worker:
        """No more faults: one healthy worker finishes everything, and stops in order."""
        self.events.append((time.time(), "the end"))
        for worker in self.running.values():
            if worker.process.poll() is None:
                await worker.kill()
        worker = self.laboratory.worker(instance="a", home="a", **OPTIONS)
        await worker.says("acquired", times=self.laboratory.partitions)
        await self.laboratory.done(worker)
        assert await worker.stop() == 0, worker.log
        return worker

    async def run(self, seconds: float, records_min: int) -> dict[str, Any]:
        for instance in INSTANCES[:2]:
            self.start(instance)
        began = time.monotonic()
        tasks = [
            asyncio.create_task(work)
            for work in (self.load(seconds, records_min), self.disturb(), self.follow())
        ]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await self.settle()
        for check in self.checks:
            await check.finish()
        return self.report(time.monotonic() - began)

    # -- report ----------------------------------------------------------------------------------

    def report(self, seconds: float) -> dict[str, Any]:
        counts: Counter[str] = Counter()
        silences: dict[str, list[float]] = defaultdict(list)
        paused: list[float] = []
        for check in self.checks:
            counts.update(check.counts)
            paused += check.pauses
            for began, silent in check.silences:
                silences["all"].append(silent)
                silences[self._cause(began, began + silent)].append(silent)
        moved = moves(self.laboratory.workers)
        did = self.did
        return {
            "seconds": round(seconds, 1),
            "load_average": round(os.getloadavg()[1], 1),
            "partitions": self.laboratory.partitions,
            "compared": dict(sorted(counts.items())),
            "joins": did["join"],
            "leaves": did["stop"] + did["kill"] + did["kill and restart"] + did["fault"],
            "kills": did["exit -9"],
            "did": dict(sorted(did.items())),
            "rebalances": len(moved),
            "partitions_moved_per_rebalance": summary(moved),
            "pauses_of_who_stayed_s": summary(paused),
            "silence_s": {cause: summary(each) for cause, each in sorted(silences.items())},
        }

    def _cause(self, began: float, ended: float) -> str:
        """What was done in this silence, or last before it."""
        before = [there for when, there in self.there if when <= began][-1:]
        if 0 in (*before, *(there for when, there in self.there if began < when < ended)):
            return NOBODY
        earlier = [what for when, what in self.events if when <= ended and what != "disk lost"]
        inside = [what for when, what in self.events if began - 1 <= when <= ended and what != "disk lost"]
        return inside[0] if inside else f"after {earlier[-1]}" if earlier else "start"


def item(number: int) -> bytes:
    """Most are counted; some delete their row, some are refused, some do nothing."""
    match number % 100:
        case 13:
            return b'{"number":%d,"do":"delete"}' % number
        case 57:
            return b'{"number":%d,"do":"impossible"}' % number
        case 91:
            return b'{"number":%d,"do":"nothing"}' % number
    return b'{"number":%d}' % number


async def soak(
    broker: str,
    *,
    seconds: float,
    rate: int,
    every_s: float,
    seed: int,
    home: Path,
    records_min: int = 0,
) -> dict[str, Any]:
    """Run it; the report. Raises AssertionError at the first record that is not as it must be."""
    laboratory = Laboratory(broker, f"soak-{secrets.token_hex(4)}", home)
    try:
        await laboratory.create_topics(partitions=PARTITIONS)
        await laboratory.create_topic(laboratory.changelog(), partitions=PARTITIONS, cleanup_policy="compact")
        return {"seed": seed, **await Soak(laboratory, seed, rate, every_s).run(seconds, records_min)}
    finally:
        await laboratory.close()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--broker", help="HOST:PORT; by default one is started")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--records", type=int, default=0, help="go on until so many items are written")
    parser.add_argument("--rate", type=int, default=3_500, help="items a second")
    parser.add_argument("--every", type=float, default=20.0, help="seconds between disturbances, about")
    parser.add_argument("--seed", type=int, default=None, help="of the disturbances; a new one by default")
    parser.add_argument("--report", type=Path, default=Path("reports/soak.json"), help="where to write it")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else secrets.randbelow(1 << 32)
    print(f"seed {seed}", flush=True)
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        own = None
        if options.broker is None:
            own = EmbeddedBroker(home / "broker", libs_cache=Settings().home / "broker")
            own.start()
        try:
            report = asyncio.run(
                soak(
                    options.broker or str(own and own.address),
                    seconds=options.minutes * 60,
                    records_min=options.records,
                    rate=options.rate,
                    every_s=options.every,
                    seed=seed,
                    home=home,
                )
            )
        finally:
            if own is not None:
                own.stop()
    report = {"began": datetime.now(UTC).isoformat(timespec="seconds"), **report}
    options.report.parent.mkdir(parents=True, exist_ok=True)
    options.report.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))
    print(f"everything agrees; the report is in {options.report}")


if __name__ == "__main__":
    main()
