"""The real services on the real domain: records/s of one worker on one core.

Accounts are opened first, with the worker on; then it is stopped, the source topic is filled, and it
is started again: measured is from the first to the last append of its output, so start-up, joining
and restore are out. Then every output is read and counted: one for each record, and as many approvals as
follow from the workload.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from aiokafka.structs import ConsumerRecord

from mini_visa import topics
from mini_visa.domain.answers import Answer
from mini_visa.domain.commands import Authorize
from mini_visa.domain.events import PaymentAuthorized, PaymentDeclined, PaymentReversed
from mini_visa.domain.response_codes import APPROVED
from mini_visa.streams.topic import AnyTopic
from tests.bench.ground import Ground
from tests.bench.report import Figure, Result, console, number
from tests.bench.topiclog import Appended, Entry, Progress, ends, preload, read_all
from tests.bench.workload import HOT, HOT_HOLDS, HOT_REQUESTS, HOT_SHARE, PLAIN, SPREAD, Mix, Workload

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
    approved: int
    in_each_second: list[int]
    """Records in each second of the run."""

    @property
    def per_s(self) -> float:
        return self.records / self.seconds

    @property
    def approved_share(self) -> float:
        return self.approved / self.records


async def measure(service: str, *, records: int, reps: int, command: str, profile: str = "") -> Result:
    """`service` is "authorization" or "risk". A count that is wrong raises `RuntimeError`."""
    result = Result(service, command)
    runs: list[Run] = []
    async with Ground() as ground:
        await ground.apply_topics(outputs(service))
        now_ms = int(time.time() * 1_000) - EVENT_TIME_BACK_MS
        for turn in range(reps):
            load = Workload(series=f"all{turn}", start_ms=now_ms)
            runs.append(await _run(ground, service, load, records=records, profile=profile))
            now_ms = load.now
            _tell(f"{service} {turn + 1}/{reps}", runs[-1])
        result.cores = ground.placed()
    _add(result, service, runs)
    result.notes.append(
        f"{records:,} records on one worker alone on one core; {runs[0].approved_share:.0%} approved, as "
        "many as must be; CPU from first to last commit"
    )
    return result


async def measure_hot(*, records: int, reps: int, command: str, profile: str = "") -> Result:
    """Authorization with and without a hot account: the same commands, in turns on one broker, who is first
    taking turns too."""
    result = Result("authorization-hot", command)
    runs: dict[bool, list[Run]] = {False: [], True: []}
    async with Ground() as ground:
        await ground.apply_topics(outputs("authorization"))
        now_ms = int(time.time() * 1_000) - EVENT_TIME_BACK_MS
        for turn in range(reps):
            for hot in (False, True) if turn % 2 == 0 else (True, False):
                name = "hot" if hot else "spread"
                load = Workload(series=f"{name}{turn}", start_ms=now_ms)
                run = await _run(
                    ground,
                    "authorization",
                    load,
                    records=records,
                    mix=HOT if hot else SPREAD,
                    profile=profile if hot else "",
                )
                runs[hot].append(run)
                now_ms = load.now
                _tell(f"authorization {name} {turn + 1}/{reps}", run)
        result.cores = ground.placed()
    pairs = list(zip(runs[True], runs[False], strict=True))
    _add(result, "authorization.hot", runs[True])
    _add(result, "authorization.spread", runs[False])
    result.figures += [
        Figure("authorization.hot.ratio", "x the speed", tuple(h.per_s / s.per_s for h, s in pairs)),
        Figure(
            "authorization.hot.cpu_ratio",
            "x the CPU time",
            tuple(h.cpu_us_per_record / s.cpu_us_per_record for h, s in pairs),
        ),
    ]
    result.notes.append(
        f"{records:,} commands a run, in turns: hot, {HOT_SHARE:.0%} of them on one account, half of these "
        f"reversals, with {HOT_REQUESTS:,} recent request ids and {HOT_HOLDS:,} open holds; spread, all of "
        "that on all accounts"
    )
    return result


def _add(result: Result, name: str, runs: Sequence[Run]) -> None:
    """The figures, the curve of the last and all that was measured of `runs`."""
    result.figures += [
        Figure(f"{name}.per_s", "records/s", tuple(run.per_s for run in runs)),
        Figure(f"{name}.cpu_us", "CPU us a record", tuple(run.cpu_us_per_record for run in runs)),
        Figure(f"{name}.rss", "MiB", tuple(run.rss_peak_mib for run in runs)),
    ]
    curve = [(float(second), float(records)) for second, records in enumerate(runs[-1].in_each_second)]
    result.series[f"{name}, records in each second"] = curve
    result.runs += [{"what": name, **asdict(run)} for run in runs]


def _tell(what: str, run: Run) -> None:
    console.print(
        f"  {what}: {number(run.per_s)} records/s, {run.cpu_us_per_record:.0f} CPU us each, "
        f"{run.rss_peak_mib:.0f} MiB, {run.approved_share:.0%} approved",
        style="dim",
    )


def _source(service: str) -> AnyTopic:
    return topics.ACCOUNT_COMMANDS if service == "authorization" else topics.CARD_REQUESTS


def outputs(service: str) -> tuple[AnyTopic, ...]:
    """The topics that have a record for each one taken; the first is what a run is timed by."""
    if service == "authorization":
        return topics.PAYMENT_EVENTS, topics.GATEWAY_REPLIES
    return (topics.ACCOUNT_COMMANDS,)


async def _run(
    ground: Ground, service: str, load: Workload, *, records: int, mix: Mix = PLAIN, profile: str
) -> Run:
    source, sink = _source(service), outputs(service)[0]
    if service == "authorization":
        setup = [*load.open_accounts(), *load.history(mix)]
    else:
        setup = list(load.authorizations(ACCOUNTS_WARM, step_ms=STEP_MS[service], assessed=False))
    await process(ground, service, source.name, sink.name, setup)
    approved_before = load.approved
    entries = load.authorizations(
        records,
        step_ms=STEP_MS[service],
        mix=mix,
        assessed=service == "authorization",
    )
    before = await output_ends(ground, service)
    await preload(ground.bootstrap, source.name, entries, partitions=ground.partitions)
    approved = load.approved - approved_before
    with ground.worker(service, BENCH_PROFILE=profile) as worker:
        async with Progress(ground.bootstrap, sink.name, lambda: worker.cpu_s) as progress:
            until = sum(before[sink.name].values()) + records
            await progress.until(until, timeout_s=RUN_TIMEOUT_S, check=worker.check)
        cpu_s = worker.cpu_s
    found = await count_outputs(ground, service, before, records=records, approved=approved)
    return Run(
        records=records,
        seconds=found.seconds,
        cpu_s=cpu_s,
        cpu_us_per_record=progress.cpu_us_per_record(),
        rss_peak_mib=worker.rss_peak_mib,
        approved=approved,
        in_each_second=found.per_s,
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


Ends = dict[str, dict[int, int]]
"""Topic -> partition -> offset."""


async def output_ends(ground: Ground, service: str) -> Ends:
    """Where the outputs of `service` end now."""
    return {topic.name: await ends(ground.bootstrap, topic.name) for topic in outputs(service)}


async def count_outputs(
    ground: Ground, service: str, start: Ends, *, records: int, approved: int
) -> Appended:
    """Read all outputs of `service` from `start`, and return what there is of the first of them. Raises
    `RuntimeError` unless each of them has one for each of `records`, and `approved` approvals among them."""
    found = []
    for topic in outputs(service):
        tally = Tally(topic)
        found.append(await read_all(ground.bootstrap, topic.name, tally, start=start[topic.name]))
        tally.check(records, approved)
    return found[0]


class Tally:
    """Counts the records of one output: one for each record taken, with its outcome."""

    def __init__(self, topic: AnyTopic) -> None:
        self._topic = topic
        self._decode = topic.decode
        self.kinds: Counter[str] = Counter()
        self.records = 0
        self.approved = 0
        self.about: set[str] = set()
        """Requests, or attempts at them."""

    def __call__(self, record: ConsumerRecord) -> bool:
        """Whether it is the outcome of a record of the workload (and not a tick passed on)."""
        message = self._decode(record.value)
        self.kinds[type(message).__name__] += 1
        if isinstance(message, PaymentAuthorized | PaymentReversed | PaymentDeclined):
            about, approved = message.request_id, message.response_code == APPROVED
        elif isinstance(message, Answer):
            about, approved = message.attempt, message.outcome.response_code == APPROVED
        elif isinstance(message, Authorize):
            assert message.verdict is not None, "risk passed a request on without a verdict"
            about, approved = message.request_id, not message.verdict.response_code
        else:
            return False
        self.records += 1
        self.approved += approved
        self.about.add(about)
        return True

    def check(self, records: int, approved: int) -> None:
        """Raises `RuntimeError` unless there is one for each of `records`, `approved` of them approvals."""
        if self.records != records or len(self.about) != records:
            raise RuntimeError(
                f"{records} records in, {self.records} on {self._topic.name} about {len(self.about)} "
                f"requests: {dict(self.kinds)}"
            )
        if self.approved != approved:
            raise RuntimeError(
                f"{self.approved} of {records} approved on {self._topic.name}, {approved} must be: "
                f"{dict(self.kinds)}"
            )
