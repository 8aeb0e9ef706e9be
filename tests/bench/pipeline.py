"""The whole pipeline: payments that are authorized, captured, cleared, posted and told in SQL, as
`mini-visa up` does it, all on two cores, and on no more where there are more.

The requests are put on card.requests at once, as a gateway would have: what is measured is everything
behind it, with the clearing house and its HTTP. Each payment that is approved is captured by a command of
its own, by a client that reads the answers; or, as a row of its own, it is a sale: authorized and captured in
one. A payment is done when its capture has cleared, its entries are in the journal, and the read model tells
all of it; the run, when every payment is, and the balances add up to nothing.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack, closing, suppress
from pathlib import Path
from typing import Any, Final

import psutil  # type: ignore[import-untyped]
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from mini_visa import topics
from mini_visa.domain.events import CaptureCleared, PaymentCaptured
from mini_visa.readmodel.database import sqlite_file
from mini_visa.settings import Settings
from mini_visa.supervisor.lock import Running
from tests.bench.capturing import Capturing
from tests.bench.ground import Ground
from tests.bench.meters import Batches, Meter
from tests.bench.processes import Watched
from tests.bench.report import Figure, Result, console, number
from tests.bench.topiclog import Entry, preload
from tests.bench.workload import Workload

ACCOUNTS_MIN = 10_000
PAYMENTS_AN_ACCOUNT = 3
"""In all runs together: no card comes near the rules' ten a minute."""
WARM_PAYMENTS = 20_000
"""Before the first run that counts: a JVM that has just started compiles for as long as it works."""
EVENT_TIME_BACK_MS = 3_600_000
STEP_MS = 5
"""Event time between two payments, until the first tick tells what time it is."""
STALL_TIMEOUT_S = 60.0
"""Nothing more of what is waited for in this time: it will not come."""
LOOK_S = 0.25
ENTRIES_EACH: Final = {False: 3, True: 2}
"""Of a payment: its hold, its capture, its clearing. A sale is never on hold."""


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

    def check(self, decided: int, captured: int, entries: int) -> None:
        """Slow. Raises `RuntimeError` unless there are exactly so many of each since the beginning, each
        capture has cleared once, and the balances add up."""
        found = {
            "payments decided": (self.decided(), decided),
            "captured": (self.captured(), captured),
            "cleared": (self.cleared(), captured),
            "events of captures": (self.events(PaymentCaptured), captured),
            "events of clearings": (self.events(CaptureCleared), captured),
            "journal entries": (self.entries(), entries),
        }
        wrong = [f"{what}: {is_:,} for {must:,}" for what, (is_, must) in found.items() if is_ != must]
        if not self.balanced():
            wrong.append("the balances do not add up")
        if wrong:
            raise RuntimeError("; ".join(wrong))


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


class Runs:
    """Payments through the whole system, a number of them after the other."""

    def __init__(self, ground: Ground, state: Running, load: Workload, bars: Bars) -> None:
        self._ground, self._load, self._bars = ground, load, bars
        self._meter = Meter({**state.pids, "broker": ground.broker_pid, "this": os.getpid()})
        self._batches = Batches(state.web_ports[service] for service in topics.SERVICES)
        self.books = Books(sqlite_file(Settings(home=ground.home / "home")))

    async def open_accounts(self) -> None:
        commands = topics.ACCOUNT_COMMANDS.name
        await preload(
            self._ground.bootstrap, commands, self._load.open_accounts(), partitions=self._ground.partitions
        )
        await self._bars.until("accounts opened", self.books.opened, len(self._load.accounts))

    async def run(self, payments: int, *, sale: bool) -> dict[str, Any]:
        """What one run took. Raises `RuntimeError` unless every stage has exactly what must be there."""
        load, books, until = self._load, self.books, self._bars.until
        before = books.decided(), books.captured(), books.entries()
        blocked = load.blocked
        requests = list(
            load.authorizations(payments, step_ms=STEP_MS, evenly=True, assessed=False, capture=sale)
        )
        approved = payments - (load.blocked - blocked)
        after = (
            before[0] + payments,
            before[1] + approved,
            before[2] + ENTRIES_EACH[sale] * approved,
        )
        self._batches.begin()
        self._meter.begin()
        began = time.monotonic()
        async with AsyncExitStack() as stack:
            client = None if sale else await stack.enter_async_context(self._client())
            await self._put(requests)
            await until("decided", books.decided, after[0], before[0])
            decided_s = time.monotonic() - began
            if client is not None:
                await until("answered", client.answered, payments)
                if client.captured != approved:
                    raise RuntimeError(f"{client.captured:,} payments approved, {approved:,} must be")
            await until("captured", books.captured, after[1], before[1])
            await until("cleared", books.cleared, after[1], before[1])
            await until("journal entries", books.entries, after[2], before[2])
        seconds = time.monotonic() - began
        try:
            cpu_us = self._meter.us_each(payments)
        except psutil.NoSuchProcess as gone:
            raise RuntimeError(f"a service ended during the run: {self._bars.system.tail(40)}") from gone
        records_each = self._batches.records_each()
        books.check(*after)
        return {
            "sale": sale,
            "payments": payments,
            "captured": approved,
            "seconds": seconds,
            "decided_s": decided_s,
            "cpu_us": cpu_us,
            "records_a_batch": records_each,
        }

    def _client(self) -> Capturing:
        return Capturing(self._ground.bootstrap, self._load, partitions=self._ground.partitions)

    async def _put(self, requests: Sequence[Entry]) -> None:
        name, partitions = topics.CARD_REQUESTS.name, self._ground.partitions
        await preload(self._ground.bootstrap, name, requests, partitions=partitions)


async def measure(*, payments: int, reps: int, command: str) -> Result:
    """`payments` in a run: `reps` runs of one system with captures of their own, and as many of sales."""
    result = Result("pipeline", command)
    accounts = max(ACCOUNTS_MIN, (WARM_PAYMENTS + 2 * payments * reps) // PAYMENTS_AN_ACCOUNT)
    console.print("  starting the broker and all services", style="dim")
    async with Ground(pinned=False) as ground:
        environment = {
            "MINI_VISA_CLEARING_HOUSE_PORT": "0",
            "MINI_VISA_TRANSACTION_TIMEOUT_S": "60",  # as `Ground.worker` has it
        }
        async with ground.system(**environment) as (system, state):
            start_ms = int(time.time() * 1_000) - EVENT_TIME_BACK_MS
            load = Workload(series="pipeline", accounts=accounts, start_ms=start_ms)
            with _progress() as progress:
                runs = Runs(ground, state, load, Bars(progress, system))
                await runs.open_accounts()
                warm = await runs.run(WARM_PAYMENTS, sale=False)
                progress.print(f"[dim]  pipeline, warming up: {_told(warm)}")
                for turn in range(reps):
                    for sale in (False, True) if turn % 2 == 0 else (True, False):
                        run = await runs.run(payments, sale=sale)
                        result.runs.append(run)
                        what = "sales" if sale else "payments"
                        progress.print(f"[dim]  pipeline, {what} {turn + 1}/{reps}: {_told(run)}")
            rss = system.rss_peak_mib
        result.cores = ground.placed()
    for name, sale in (("pipeline", False), ("pipeline.sale", True)):
        _add(result, name, [run for run in result.runs if run["sale"] == sale])
    result.figures.append(Figure("pipeline.rss", "MiB, all processes but the broker", (rss,)))
    result.notes.append(
        f"{payments:,} payments a run on {accounts:,} accounts, each authorized, captured by a command of "
        "its own (sale: in one), cleared over HTTP, posted and told in SQL; broker, eleven processes and "
        "this one share two cores"
    )
    return result


def _progress() -> Progress:
    columns = TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    return Progress(*columns, console=console, transient=True, auto_refresh=console.is_terminal)


def _add(result: Result, name: str, runs: Sequence[Mapping[str, Any]]) -> None:
    rates = tuple(run["payments"] / run["seconds"] for run in runs)
    result.figures.append(Figure(f"{name}.per_s", "payments/s", rates))
    result.figures += [
        Figure(f"{name}.cpu.{process}", "CPU us a payment", tuple(run["cpu_us"][process] for run in runs))
        for process in runs[0]["cpu_us"]
    ]


def _told(run: Mapping[str, Any]) -> str:
    rate = number(run["payments"] / run["seconds"])
    cpu = ", ".join(f"{name} {us:.0f}" for name, us in run["cpu_us"].items())
    batches = ", ".join(f"{name} {records:.0f}" for name, records in run["records_a_batch"].items())
    return (
        f"{rate} payments/s, all decided after {run['decided_s']:.1f} s, all done after "
        f"{run['seconds']:.1f} s; CPU us a payment: {cpu}; records a batch: {batches}"
    )
