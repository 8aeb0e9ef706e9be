"""Where the microseconds of a payment go, service by service, without a broker: sales that are decided,
cleared, posted and told in SQL, one batch after the other in this process. See `parts`.

What is missing is the network, the event loop, HTTP and the broker.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from mini_visa import topics
from mini_visa.clearing_house.connector import outcome_command
from mini_visa.domain.clearing import ACCEPTED, Presentment
from mini_visa.readmodel.apply import Applier, Batch
from mini_visa.readmodel.database import Database
from mini_visa.readmodel.projector import BATCHES_AT_ONCE
from mini_visa.readmodel.views import ALL
from mini_visa.settings import Settings
from mini_visa.streams.app import collect_garbage_seldom, keep_freed_memory
from mini_visa.streams.processor import Processor, RawOutput, Record
from mini_visa.streams.worker import find
from tests.bench.parts import BATCH, STEPS, Pass, fetched
from tests.bench.report import Figure, Result
from tests.bench.services import EVENT_TIME_BACK_MS
from tests.bench.topiclog import Entry
from tests.bench.workload import Workload

SERVICES: Final = ("authorization", "ledger", "clearing", "reversal")
ACCOUNTS_EACH: Final = 3
"""Payments of an account."""
STEP_MS: Final = 20


class Chain:
    """One partition of the services, in memory, and the read model in a file."""

    def __init__(self, folder: Path) -> None:
        self._passes: dict[str, list[Pass]] = defaultdict(list)
        self.by_name: dict[str, Pass] = {}
        for service in SERVICES:
            for processor in find(service).app.processors.values():
                self._add(processor, folder / processor.name)
        self._offsets: Counter[str] = Counter()
        self._views = {view.topic.name: view for view in ALL}
        self._told: dict[str, list[Record]] = {}
        self._database = Database.of(Settings(home=folder), write=True)
        self._applier = Applier(self._database)
        self._applied: Counter[str] = Counter()
        self.sql_ns = 0

    def _add(self, processor: Processor, folder: Path) -> None:
        self.by_name[processor.name] = Pass(processor, folder)
        self._passes[processor.source.name].append(self.by_name[processor.name])

    async def open(self) -> None:
        await self._database.migrate()
        await self._applier.positions({(name, 0): 0 for name in self._views})

    async def close(self) -> None:
        for one in self.by_name.values():
            one.close()
        await self._database.close()

    async def put(self, topic: str, entries: Sequence[Entry], *, measured: bool) -> list[Presentment]:
        """All that follows from a batch of a topic; returns what is to be presented."""
        submitted: list[Presentment] = []
        waiting = [(topic, entries)]
        while waiting:
            name, batch = waiting.pop()
            base = self._offsets[name]
            self._offsets[name] += len(batch)
            if name == topics.CLEARING_SUBMISSIONS.name:
                found = (topics.CLEARING_SUBMISSIONS.decode(value) for _, value, _ in batch)
                submitted += (one for one in found if isinstance(one, Presentment))
            if name in self._views:
                records = [Record(base + i, at, key, value) for i, (key, value, at) in enumerate(batch)]
                self._told.setdefault(name, []).extend(records)
            for one in self._passes.get(name, ()):
                outputs: dict[str, list[Entry]] = defaultdict(list)
                for output in one.run(fetched(batch, base), base, measured=measured).outputs:
                    outputs[output[0]].append(_entry(output))
                waiting += outputs.items()
        return submitted

    async def tell(self, *, measured: bool) -> None:
        """What has been said so far into SQL, in batches as large as a projection's that is behind."""
        size = BATCHES_AT_ONCE * BATCH // max(1, len(self._told))
        while self._told:
            batches = []
            for name in list(self._told):
                records, rest = self._told[name][:size], self._told[name][size:]
                batches.append(
                    Batch(self._views[name], 0, self._applied[name], records, records[-1].timestamp)
                )
                self._applied[name] = records[-1].offset + 1
                self._told[name] = rest
                if not rest:
                    del self._told[name]
            began = time.process_time_ns()
            await self._applier.apply(batches, _refuse)
            if measured:
                self.sql_ns += time.process_time_ns() - began


def _entry(output: RawOutput) -> Entry:
    _, _, key, value, timestamp, _ = output
    assert value is not None
    return key or b"", value, timestamp


def _refuse(record: object, reason: str) -> None:
    raise AssertionError(f"{record}: {reason}")


def _outcomes(presentments: Iterable[Presentment], at: int) -> list[Entry]:
    """What the connector says when all are accepted."""
    return [
        (one.account.encode(), topics.ACCOUNT_COMMANDS.encode(outcome_command(one, ACCEPTED, "")), at)
        for one in presentments
    ]


async def measure(*, records: int, reps: int, command: str) -> Result:
    """`records` payments, `reps` times. us of CPU per payment and processor, each the least of `reps`."""
    collect_garbage_seldom()
    keep_freed_memory()
    us: dict[str, list[float]] = defaultdict(list)
    steps: dict[str, dict[str, float]] = {}
    for _ in range(reps):
        load = Workload(
            series="chain",
            accounts=max(1, records // ACCOUNTS_EACH),
            start_ms=int(time.time() * 1_000) - EVENT_TIME_BACK_MS,
        )
        folder = Path(tempfile.mkdtemp(prefix="mini-visa-chain-"))
        chain = Chain(folder)
        commands = topics.ACCOUNT_COMMANDS.name
        try:
            await chain.open()
            await chain.put(commands, list(load.open_accounts()), measured=False)
            await chain.tell(measured=False)
            sales = list(load.authorizations(records, step_ms=STEP_MS, capture=True))
            for start in range(0, records, BATCH):
                submitted = await chain.put(commands, sales[start : start + BATCH], measured=True)
                await chain.put(commands, _outcomes(submitted, load.now), measured=True)
                await chain.tell(measured=True)
        finally:
            await chain.close()
            shutil.rmtree(folder, ignore_errors=True)
        for name, one in chain.by_name.items():
            us[name].append(sum(one.ns.values()) / records / 1_000)
            steps[name] = {step: one.ns[step] / records / 1_000 for step in STEPS}
        us["read model"].append(chain.sql_ns / records / 1_000)
    result = Result("parts-pipeline", command)
    result.figures = [
        Figure(f"parts.pipeline.{name}", "CPU us a payment", tuple(values)) for name, values in us.items()
    ]
    for name, found in steps.items():
        if sum(found.values()) >= 1:
            parts = ", ".join(f"{step} {value:.1f}" for step, value in found.items())
            result.notes.append(f"{name}, in the last run: {parts}")
    least = sum(min(values) for values in us.values())
    result.notes.append(f"{records:,} sales; the sum of the least of each: {least:.0f} us")
    return result
