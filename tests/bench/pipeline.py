"""The whole pipeline: payments that are authorized, captured, cleared, posted and told in SQL, as
`mini-visa up` does it, all on two cores, and on no more where there are more.

The requests are put on card.requests at once, as a gateway would have: what is measured is everything
behind it, with the clearing house and its HTTP. A payment is done when its capture has cleared, its
entries are in the journal, and the read model tells all of it; the run, when every payment is, and the
balances add up to nothing.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Final

import psutil  # type: ignore[import-untyped]
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from mini_visa import topics
from mini_visa.domain.events import CaptureCleared, PaymentCaptured
from mini_visa.readmodel.database import sqlite_file
from mini_visa.settings import Settings
from mini_visa.supervisor.lock import Running, running
from tests.bench.ground import Ground
from tests.bench.meters import Batches, Meter
from tests.bench.processes import Watched
from tests.bench.report import Figure, Result, console, number
from tests.bench.topiclog import preload
from tests.bench.workload import Workload

ACCOUNTS_MIN = 10_000
PAYMENTS_AN_ACCOUNT = 3
"""In all runs, which may take a minute together: few cards come near the rules' ten a minute."""
WARM_PAYMENTS = 20_000
"""Before the first run that counts: a JVM that has just started compiles for as long as it works."""
STEP_MS = 5
"""Event time between two payments, until the first tick tells what time it is."""
START_TIMEOUT_S = 180.0
STALL_TIMEOUT_S = 60.0
"""Nothing more of what is waited for in this time: it will not come."""
LOOK_S = 0.25
CLEARED_SHARE_MIN = 0.9
ENTRIES_EACH: Final = 2
"""Of a payment: its capture, its clearing."""


class Books:
    """The read model, as anybody who has its file sees it. What is looked at while the run lasts is counted
    in an index, which costs a millisecond or two."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def _one(self, query: str, *values: str) -> int:
        with closing(sqlite3.connect(f"file:{self._path}?mode=ro", uri=True, timeout=30)) as database:
            (value,) = database.execute(query, values).fetchone()
            return int(value or 0)

    def opened(self) -> int:
        return self._one("SELECT count(*) FROM accounts")

    def decided(self) -> int:
        return self._one("SELECT count(*) FROM payments")

    def captured(self) -> int:
        return self._one("SELECT count(*) FROM payments WHERE status = 'captured'")

    def cleared(self) -> int:
        waiting = self._one("SELECT count(*) FROM payments WHERE clearing = 'submitted'")
        return self.captured() - waiting

    def entries(self) -> int:
        return self._one("SELECT count(*) FROM journal_entries WHERE payment_key IS NOT NULL")

    def events(self, kind: type[PaymentCaptured | CaptureCleared]) -> int:
        """Slow: reads them all."""
        tag = str(kind.__struct_config__.tag)
        return self._one("SELECT count(*) FROM payment_events WHERE type = ?", tag)

    def balanced(self) -> bool:
        return self._one("SELECT sum(debits) = sum(credits) FROM ledger_balances") == 1


class Bars:
    """A progress bar for each thing that a run waits for, and the wait itself."""

    def __init__(self, progress: Progress, system: Watched) -> None:
        self._progress = progress
        self.system = system

    async def until(self, what: str, count: Callable[[], int], least: int, former: int = 0) -> None:
        """Until `count()` is `least`; `former` of them were there before. Raises `TimeoutError` with what was
        waited for when it has not grown for `STALL_TIMEOUT_S`."""
        bar: TaskID = self._progress.add_task(what, total=least - former)
        found, moved_at = former, time.monotonic()
        while True:
            with suppress(sqlite3.OperationalError):  # not made yet, or a writer holds it
                now = count()
                if now != found:
                    found, moved_at = now, time.monotonic()
            self._progress.update(bar, completed=found - former)
            if found >= least:
                self._progress.remove_task(bar)
                return
            self.system.check()
            if time.monotonic() - moved_at > STALL_TIMEOUT_S:
                raise TimeoutError(
                    f"{what}: {found - former:,} of {least - former:,}, and none more for "
                    f"{STALL_TIMEOUT_S:g} s. The services' last words:\n{self.system.tail()}"
                )
            await asyncio.sleep(LOOK_S)


async def measure(*, payments: int, reps: int, command: str) -> Result:
    """`payments` in a run, `reps` runs of one system, one after the other."""
    result = Result("pipeline", command)
    costs: list[dict[str, float]] = []
    accounts = max(ACCOUNTS_MIN, (WARM_PAYMENTS + payments * reps) // PAYMENTS_AN_ACCOUNT)
    console.print("  starting the broker and all services", style="dim")
    async with Ground(pinned=False) as ground:
        await ground.apply_topics()
        program = str(Path(sys.executable).with_name("mini-visa"))
        home = ground.home / "home"
        environment = ground.environment(
            MINI_VISA_GATEWAY_PORT="0",
            MINI_VISA_CLEARING_HOUSE_PORT="0",
            MINI_VISA_LOG_LEVEL="warning",
            MINI_VISA_TRANSACTION_TIMEOUT_S="60",  # as `Ground.worker` has it
        )
        with ground.watched(
            "services", [program, "up"], log=ground.home / "up.log", env=environment
        ) as system:
            state = await _ready(home, system)
            meter = Meter({**state.pids, "broker": ground.broker_pid, "this": os.getpid()})
            batches = Batches(state.web_ports[service] for service in topics.SERVICES)
            books = Books(sqlite_file(Settings(home=home)))
            load = Workload(
                series="pipeline", accounts=accounts, start_ms=int(time.time() * 1_000) - 3_600_000
            )
            await preload(
                ground.bootstrap,
                topics.ACCOUNT_COMMANDS.name,
                load.open_accounts(),
                partitions=ground.partitions,
            )
            columns = (
                TextColumn("  {task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
            )
            with Progress(
                *columns, console=console, transient=True, auto_refresh=console.is_terminal
            ) as progress:
                bars = Bars(progress, system)
                await bars.until("accounts opened", books.opened, accounts)
                warm = await _run(ground, load, WARM_PAYMENTS, books, bars, meter, batches)
                progress.print(f"[dim]  pipeline, warming up: {_told(warm)}")
                for turn in range(reps):
                    run = await _run(ground, load, payments, books, bars, meter, batches)
                    costs.append(run["cpu_us"])
                    result.runs.append(run)
                    progress.print(f"[dim]  pipeline {turn + 1}/{reps}: {_told(run)}")
            rss = system.rss_peak_mib
        result.cores = ground.placed()
    result.figures = [
        Figure("pipeline.per_s", "payments/s", tuple(payments / run["seconds"] for run in result.runs)),
        *(
            Figure(f"pipeline.cpu.{name}", "CPU us a payment", tuple(cost[name] for cost in costs))
            for name in costs[0]
        ),
        Figure("pipeline.rss", "MiB, all processes but the broker", (rss,)),
    ]
    result.notes.append(
        f"{payments:,} payments on {accounts:,} accounts, each authorized and captured in one, cleared "
        "over HTTP, posted twice and told in SQL; broker, eleven processes and this one share two cores"
    )
    return result


async def _run(
    ground: Ground, load: Workload, payments: int, books: Books, bars: Bars, meter: Meter, batches: Batches
) -> dict[str, Any]:
    """One run: what it took."""
    decided, captured, entries = books.decided(), books.captured(), books.entries()
    requests = list(load.authorizations(payments, step_ms=STEP_MS, assessed=False, capture=True))
    batches.begin()
    meter.begin()
    began = time.monotonic()
    await preload(ground.bootstrap, topics.CARD_REQUESTS.name, requests, partitions=ground.partitions)
    await bars.until("decided", books.decided, decided + payments, decided)
    decided_s = time.monotonic() - began
    done = books.captured()
    await bars.until("cleared", books.cleared, done, captured)
    posted = entries + ENTRIES_EACH * (done - captured)
    await bars.until("journal entries", books.entries, posted, entries)
    seconds = time.monotonic() - began
    try:
        cpu_us = meter.us_each(payments)
    except psutil.NoSuchProcess as gone:
        raise RuntimeError(f"a service ended during the run: {bars.system.tail(40)}") from gone
    records_each = batches.records_each()
    share = (done - captured) / payments
    if share < CLEARED_SHARE_MIN:
        raise RuntimeError(f"{share:.0%} of the payments were captured: not the workload meant")
    told = books.events(PaymentCaptured), books.events(CaptureCleared)
    if told != (done, done) or books.entries() != posted or not books.balanced():
        raise RuntimeError(
            f"{done:,} captures, but {told[0]:,} events of captures, {told[1]:,} of clearings, "
            f"{books.entries():,} entries for {posted:,}; balances add up: {books.balanced()}"
        )
    return {
        "payments": payments,
        "seconds": seconds,
        "decided_s": decided_s,
        "cpu_us": cpu_us,
        "records_a_batch": records_each,
    }


def _told(run: Mapping[str, Any]) -> str:
    rate = number(run["payments"] / run["seconds"])
    cpu = ", ".join(f"{name} {us:.0f}" for name, us in run["cpu_us"].items())
    batches = ", ".join(f"{name} {records:.0f}" for name, records in run["records_a_batch"].items())
    return (
        f"{rate} payments/s, all decided after {run['decided_s']:.1f} s, all done after "
        f"{run['seconds']:.1f} s; CPU us a payment: {cpu}; records a batch: {batches}"
    )


async def _ready(home: Path, system: Watched) -> Running:
    """What `up` says of itself once it is ready."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while "Ready" not in system.tail(200):
        system.check()
        if time.monotonic() > deadline:
            raise TimeoutError(f"`mini-visa up` is not ready after {START_TIMEOUT_S:g} s: {system.tail()}")
        await asyncio.sleep(0.1)
    state = running(home)
    assert state is not None
    return state
