"""The whole way over HTTP: gateway, risk, authorization and back, as `mini-visa up` runs it.

Latency at fixed rates is open loop, counted from the moment each request was due. Saturation is 32
connections that send as soon as they are answered. Load generator, broker and services share two
cores, and have no more where there are more.
"""

from __future__ import annotations

import itertools
import json
import os
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from mini_visa import topics
from mini_visa.supervisor.lock import Running
from tests.bench.ground import Ground
from tests.bench.httpload import ANSWER_TIMEOUT_S, Load, closed_loop, open_loop, post
from tests.bench.meters import Batches, Meter
from tests.bench.report import Figure, Result, console, number
from tests.bench.workload import pan_of

ACCOUNTS_MIN = 10_000
REQUESTS_A_MINUTE = 5
"""Of a card, at most: the rules decline from the eleventh on."""
CONNECTIONS = 32
RATE_PER_S = 500
LIMIT = "1000000.00"
WARM_S = 25.0
"""The broker's JVM compiles what is hot for about as long; until then half a core is its compiler's."""
PERCENTILES = (1, 5, 10, 25, 50, 75, 90, 95, 98, 99, 99.5, 99.9)


def account_requests(host: str, count: int) -> Iterator[bytes]:
    for account in range(count):
        body = {"request_id": f"open-{account}", "pan": pan_of(account), "limit": LIMIT, "currency": "USD"}
        yield post(host, "/accounts", json.dumps(body).encode())


def payment_requests(host: str, accounts: int, run: str) -> Iterator[bytes]:
    """Authorizations without end, the accounts in turn."""
    draw = random.Random(run)
    pans = [pan_of(account) for account in range(accounts)]
    draw.shuffle(pans)
    for i, pan in enumerate(itertools.cycle(pans)):
        amount = f"{draw.randrange(1, 50)}.{draw.randrange(100):02d}"
        merchant = f"merchant-{draw.randrange(1_000):04d}"
        yield post(
            host,
            "/payments/authorize",
            (
                f'{{"request_id":"{run}-{i}","pan":"{pan}","amount":"{amount}","currency":"USD",'
                f'"merchant_id":"{merchant}","mcc":"5411"}}'
            ).encode(),
        )


@dataclass(frozen=True, slots=True)
class Way:
    """How requests are sent: `rate` a second whatever becomes of them (open loop), or, with a rate of 0, by
    `CONNECTIONS` clients as soon as they are answered (closed loop)."""

    rate: int

    @property
    def name(self) -> str:
        return f"{self.rate}/s" if self.rate else "saturated"

    @property
    def label(self) -> str:
        if self.rate:
            return f"{self.rate}/s, open loop: from when a request was due"
        return f"{CONNECTIONS} connections, closed loop: from when a request was sent"

    @property
    def prefix(self) -> str:
        """Of the figures of its latencies."""
        if not self.rate:
            return "http.saturation_"
        return "http." if self.rate == RATE_PER_S else f"http.{self.rate}."


@dataclass(slots=True)
class Run:
    """What became of a load, and what it took."""

    load: Load
    cpu_us: dict[str, float]
    """A request, by process."""
    records_a_batch: dict[str, float]
    """By processor."""

    def as_dict(self) -> dict[str, Any]:
        return {
            "requests": self.load.requests,
            "per_s": self.load.per_s,
            "statuses": dict(self.load.statuses),
            "approved": self.load.approved,
            "connections": self.load.connections,
            "records_a_batch": self.records_a_batch,
        }


class System:
    """`mini-visa up` as its clients see it."""

    def __init__(self, state: Running, accounts: int, broker_pid: int) -> None:
        url = urlsplit(state.gateway_url)
        self._host, self._port = url.hostname or "127.0.0.1", url.port or 80
        self._name = f"{self._host}:{self._port}"
        self._accounts = accounts
        self._meter = Meter({**state.pids, "broker": broker_pid, "load generator": os.getpid()})
        self._batches = Batches(state.web_ports[service] for service in topics.SERVICES)

    async def open_accounts(self) -> None:
        requests = account_requests(self._name, self._accounts)
        opened = await closed_loop(self._host, self._port, requests, connections=CONNECTIONS, seconds=300)
        if opened.statuses != {200: self._accounts}:
            raise RuntimeError(f"{self._accounts} accounts were to be opened: {dict(opened.statuses)}")

    async def run(self, way: Way, seconds: float, name: str) -> Run:
        """Payments sent in that way; `name` sets their request ids apart."""
        requests = payment_requests(self._name, self._accounts, name)
        self._batches.begin()
        self._meter.begin()
        if way.rate:
            load = await open_loop(self._host, self._port, requests, rate=way.rate, seconds=seconds)
        else:
            load = await closed_loop(
                self._host, self._port, requests, connections=CONNECTIONS, seconds=min(seconds, 10.0)
            )
        cpu_us = self._meter.us_each(load.answered)
        return Run(load, cpu_us, self._batches.records_each())


async def measure(*, rates: Sequence[int], seconds: float, reps: int, command: str) -> Result:
    """Latency at each of `rates` and the saturation point, `reps` times each, in turns."""
    result = Result("http", command)
    runs: dict[Way, list[Run]] = {Way(rate): [] for rate in (*rates, 0)}
    accounts = max(ACCOUNTS_MIN, max(rates) * 60 // REQUESTS_A_MINUTE)
    async with Ground(pinned=False) as ground:
        async with ground.system() as (services, state):
            system = System(state, accounts, ground.broker_pid)
            await system.open_accounts()
            warm = await system.run(Way(rates[0]), WARM_S, "warm")
            for turn in range(reps):
                for way in runs:
                    run = await system.run(way, seconds, f"{way.name.replace('/', '-')}-{turn}")
                    services.check()
                    runs[way].append(run)
                    _tell(f"{way.name} {turn + 1}/{reps}", run)
            rss = services.rss_peak_mib
        result.cores = ground.placed()
    for way, done in runs.items():
        _add(result, way, done)
    result.figures.append(Figure("http.rss", "MiB, all processes but the broker", (rss,)))
    result.notes.append(
        f"{seconds:g} s at each rate (open loop), latency from when a request was due; saturated: "
        f"{CONNECTIONS} connections (closed loop), from when it was sent; {accounts:,} accounts"
    )
    if faults := faults_of([warm]):
        result.notes.append(f"warming up, which does not count: {faults}")
    result.error = faults_of(itertools.chain.from_iterable(runs.values()))
    return result


def faults_of(runs: Iterable[Run]) -> str:
    """What went wrong in any of `runs`; "" when every request was answered with 200 and approved."""
    statuses: Counter[int] = Counter()
    approved = 0
    for run in runs:
        statuses += run.load.statuses
        approved += run.load.approved
    total, unanswered = statuses.total(), statuses.pop(0, 0)
    others = total - unanswered - statuses[200]
    faults = []
    if unanswered:
        faults.append(f"{unanswered} of {total} requests were not answered within {ANSWER_TIMEOUT_S:g} s")
    if others:
        faults.append(f"{others} of {total} were answered with something else than 200: {dict(statuses)}")
    if approved != statuses[200]:
        faults.append(f"{statuses[200] - approved} of {total} were declined, and no rule or limit is near")
    return "; ".join(faults)


def _add(result: Result, way: Way, runs: Sequence[Run]) -> None:
    """The figures, the last run's curve and all that was measured of `runs`."""
    if not way.rate:
        result.figures.append(
            Figure("http.saturation_per_s", "requests/s", tuple(run.load.per_s for run in runs))
        )
    unit = "ms" if way.rate else "ms, closed loop"
    for name, percent in (("p50_ms", 50), ("p99_ms", 99), ("max_ms", 100)):
        values = tuple(run.load.percentile_ms(percent) for run in runs)
        result.figures.append(Figure(f"{way.prefix}{name}", unit, values))
    result.series[way.label] = [(p, runs[-1].load.percentile_ms(p)) for p in PERCENTILES]
    result.figures += [
        Figure(
            f"http.cpu.{way.name}.{process}", "CPU us a request", tuple(run.cpu_us[process] for run in runs)
        )
        for process in runs[0].cpu_us
    ]
    result.figures += [
        Figure(
            f"http.batch.{way.name}.{processor}",
            "records a batch",
            tuple(run.records_a_batch[processor] for run in runs),
        )
        for processor in runs[0].records_a_batch
    ]
    result.runs += [{"at": way.name, **run.as_dict()} for run in runs]


def _tell(what: str, run: Run) -> None:
    load = run.load
    console.print(
        f"  http {what}: {number(load.per_s)}/s, p50 {load.percentile_ms(50):.1f} ms, "
        f"p99 {load.percentile_ms(99):.1f} ms, max {load.percentile_ms(100):.0f} ms, "
        f"{load.approved_share:.0%} approved, {dict(load.statuses)}",
        style="dim",
    )
    console.print(
        f"  CPU us a request: {', '.join(f'{name} {us:.0f}' for name, us in run.cpu_us.items())}; "
        f"records a batch: {', '.join(f'{name} {each:.1f}' for name, each in run.records_a_batch.items())}",
        style="dim",
    )
