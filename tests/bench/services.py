"""The real services on the real domain: records/s of one worker on one core.

Accounts are opened first, with the worker on; then it is stopped, the source topic is filled, and it
is started again: measured is from the first to the last append of its output, so start-up, joining
and restore are out. Then every output is read and counted.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from aiokafka.structs import ConsumerRecord

from mini_visa import topics
from mini_visa.domain.commands import Authorize
from mini_visa.domain.events import PaymentAuthorized, PaymentDeclined, PaymentReversed
from mini_visa.domain.response_codes import APPROVED
from mini_visa.streams.topic import AnyTopic
from tests.bench.ground import Ground
from tests.bench.report import Figure, Result, console, number
from tests.bench.topiclog import Appended, Entry, Progress, ends, preload, read_all
from tests.bench.workload import HOT_HOLDS, HOT_REQUESTS, HOT_SHARE, Workload

APPROVED_SHARE_MIN = 0.9
STEP_MS = {"authorization": 1, "risk": 3}
"""Event time between two records. Risk counts per card over 60 s: at 3 ms a card has four."""
EVENT_TIME_BACK_MS = 6 * 3_600_000
"""Event time starts this long before now, so that no record is ahead of the clock."""
RUN_TIMEOUT_S = 180.0


@dataclass(slots=True)
class Run:
    """What one run of a service measured."""

    records: int
    seconds: float
    cpu_s: float
    """Start-up included."""
    cpu_us_per_record: float
    """From the first commit to the last."""
    rss_peak_mib: float
    approved_share: float
    per_s: list[int]
    """Records in each second of the run."""


async def measure(
    service: str, *, records: int, reps: int, hot: bool = False, command: str, profile: str = ""
) -> Result:
    """`service` is "authorization" or "risk". A count that is wrong is an error of the result."""
    name = f"{service}{'.hot' if hot else ''}"
    result = Result(name.replace(".", "-"), command)
    runs: list[Run] = []
    async with Ground() as ground:
        await ground.apply_topics([_sink(service)])
        now_ms = int(time.time() * 1_000) - EVENT_TIME_BACK_MS
        for turn in range(reps):
            load = Workload(series=f"{'hot' if hot else 'all'}{turn}", start_ms=now_ms)
            run = await _run(ground, service, load, records=records, hot=hot, profile=profile)
            runs.append(run)
            now_ms = load.now
            console.print(
                f"  {name} {turn + 1}/{reps}: {number(run.records / run.seconds)} records/s, "
                f"{run.cpu_us_per_record:.0f} CPU us each, {run.rss_peak_mib:.0f} MiB, "
                f"{run.approved_share:.0%} approved",
                style="dim",
            )
        result.cores = ground.placed()
    rates = tuple(run.records / run.seconds for run in runs)
    result.figures = [
        Figure(f"{name}.per_s", "records/s", rates),
        Figure(f"{name}.cpu_us", "CPU us a record", tuple(run.cpu_us_per_record for run in runs)),
        Figure(f"{name}.rss", "MiB", tuple(run.rss_peak_mib for run in runs)),
    ]
    result.series["records in each second"] = [(float(i), float(n)) for i, n in enumerate(runs[-1].per_s)]
    result.notes.append(
        f"{records:,} records on one worker pinned to one core; "
        f"{min(run.approved_share for run in runs):.0%} approved; CPU from first to last commit"
    )
    if hot:
        result.notes.append(
            f"one account takes {HOT_SHARE:.0%} of them, with {HOT_REQUESTS:,} recent request ids "
            f"and {HOT_HOLDS:,} open holds"
        )
    result.runs = [vars_of(run) for run in runs]
    if min(run.approved_share for run in runs) < APPROVED_SHARE_MIN:
        result.error = f"less than {APPROVED_SHARE_MIN:.0%} approved: the workload is not the one meant"
    return result


def vars_of(run: Run) -> dict[str, Any]:
    return {name: getattr(run, name) for name in Run.__dataclass_fields__}


def _source(service: str) -> AnyTopic:
    return topics.ACCOUNT_COMMANDS if service == "authorization" else topics.CARD_REQUESTS


def _sink(service: str) -> AnyTopic:
    return topics.PAYMENT_EVENTS if service == "authorization" else topics.ACCOUNT_COMMANDS


async def _run(ground: Ground, service: str, load: Workload, *, records: int, hot: bool, profile: str) -> Run:
    source, sink = _source(service), _sink(service)
    if service == "authorization":
        setup = [*load.open_accounts(), *(load.hot_history() if hot else ())]
    else:
        setup = list(load.authorizations(ACCOUNTS_WARM, step_ms=STEP_MS[service], assessed=False))
    await process(ground, service, source.name, sink.name, setup)
    entries = load.authorizations(
        records,
        step_ms=STEP_MS[service],
        hot_share=HOT_SHARE if hot else 0.0,
        assessed=service == "authorization",
    )
    before = await ends(ground.bootstrap, sink.name)
    await preload(ground.bootstrap, source.name, entries, partitions=ground.partitions)
    with ground.worker(service, BENCH_PROFILE=profile) as worker:
        async with Progress(ground.bootstrap, sink.name, lambda: worker.cpu_s) as progress:
            await progress.until(sum(before.values()) + records, timeout_s=RUN_TIMEOUT_S, check=worker.check)
        cpu_s = worker.cpu_s
    tally = Tally(service)
    found = await read_all(ground.bootstrap, sink.name, tally, start=before)
    check_counts(found, tally, records)
    return Run(
        records=records,
        seconds=found.seconds,
        cpu_s=cpu_s,
        cpu_us_per_record=progress.cpu_us_per_record(),
        rss_peak_mib=worker.rss_peak_mib,
        approved_share=tally.approved / records,
        per_s=found.per_s,
    )


ACCOUNTS_WARM = 5_000
"""Records that risk handles before it is measured, so that most cards have a row."""


async def process(ground: Ground, service: str, source: str, sink: str, setup: Iterable[Entry]) -> None:
    """Have a worker handle `setup`, then stop it."""
    entries = list(setup)
    before = await ends(ground.bootstrap, sink)
    await preload(ground.bootstrap, source, entries, partitions=ground.partitions)
    with ground.worker(service) as worker:
        async with Progress(ground.bootstrap, sink) as progress:
            await progress.until(
                sum(before.values()) + len(entries), timeout_s=RUN_TIMEOUT_S, check=worker.check
            )


class Tally:
    """Counts a service's outputs: one per record, with its outcome."""

    def __init__(self, service: str) -> None:
        self._decode = _sink(service).decode
        self.kinds: Counter[str] = Counter()
        self.approved = 0
        self.request_ids: set[str] = set()

    def __call__(self, record: ConsumerRecord) -> bool:
        """Whether it is the outcome of a record of the workload (and not a tick passed on)."""
        message = self._decode(record.value)
        kind = type(message).__name__
        self.kinds[kind] += 1
        if isinstance(message, PaymentAuthorized | PaymentReversed | PaymentDeclined):
            self.approved += message.response_code == APPROVED
        elif isinstance(message, Authorize):
            assert message.verdict is not None, "risk passed a request on without a verdict"
            self.approved += not message.verdict.response_code
        else:
            return False
        self.request_ids.add(message.request_id)
        return True


def check_counts(found: Appended, tally: Tally, records: int) -> None:
    if found.records != records or len(tally.request_ids) != records:
        raise RuntimeError(
            f"{records} records in, {found.records} out about {len(tally.request_ids)} requests: "
            f"{dict(tally.kinds)}"
        )
