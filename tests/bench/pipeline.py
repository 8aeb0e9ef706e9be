"""The whole pipeline: payments that are authorized, captured, cleared, posted and told in SQL, as
`mini-visa up` does it, all on this machine's cores.

The requests are put on card.requests at once, as a gateway would have: what is measured is everything
behind it, with the clearing house and its HTTP. A payment is done when its capture has cleared, both its
entries are in the journal, and the read model tells both; the run, when every payment is, and the balances
add up to nothing.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import sys
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

from mini_visa import topics
from mini_visa.supervisor.lock import Running, running
from tests.bench.gateway import Meter
from tests.bench.ground import Ground
from tests.bench.processes import Watched
from tests.bench.report import Figure, Result, console, number
from tests.bench.topiclog import preload
from tests.bench.workload import Workload

ACCOUNTS = 10_000
STEP_MS = 5
"""Event time between two payments: no card comes near the rules' ten a minute."""
START_TIMEOUT_S = 180.0
RUN_TIMEOUT_S = 400.0
CLEARED_SHARE_MIN = 0.9


class Books:
    """The read model, as anybody who has its file sees it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def _one(self, query: str) -> int:
        with closing(sqlite3.connect(f"file:{self._path}?mode=ro", uri=True, timeout=30)) as database:
            (value,) = database.execute(query).fetchone()
            return int(value or 0)

    def events(self, kind: str) -> int:
        return self._one(f"SELECT count(*) FROM payment_events WHERE type = '{kind}'")

    def entries(self, kind: str) -> int:
        return self._one(f"SELECT count(*) FROM journal_entries WHERE kind = '{kind}'")

    def opened(self) -> int:
        return self.events("account_opened")

    def decided(self) -> int:
        return self.events("payment_captured") + self.events("payment_declined")

    def done(self) -> int:
        """Payments whose capture has cleared, with both entries posted."""
        cleared = self.events("capture_cleared")
        return min(cleared, self.entries("capture_cleared"), self.entries("payment_captured"))

    def balanced(self) -> int:
        return self._one("SELECT sum(debits) = sum(credits) FROM ledger_balances")


async def measure(*, payments: int, reps: int, command: str) -> Result:
    """`payments` in a run, `reps` runs of one system, one after the other."""
    result = Result("pipeline", command)
    rates: list[float] = []
    costs: list[dict[str, float]] = []
    async with Ground(pinned=False) as ground:
        await ground.apply_topics()
        program = str(Path(sys.executable).with_name("mini-visa"))
        home = ground.home / "home"
        environment = ground.environment(
            MINI_VISA_GATEWAY_PORT="0",
            MINI_VISA_CLEARING_HOUSE_PORT="0",
            MINI_VISA_LOG_LEVEL="warning",
        )
        with Watched([program, "up"], log=ground.home / "up.log", env=environment, core=None) as system:
            state = await _ready(home, system)
            meter = Meter({**state.pids, "broker": ground.broker_pid, "this": os.getpid()})
            books = Books(home / "readmodel.sqlite")
            load = Workload(
                series="pipeline", accounts=ACCOUNTS, start_ms=int(time.time() * 1_000) - 3_600_000
            )
            await preload(
                ground.bootstrap,
                topics.ACCOUNT_COMMANDS.name,
                load.open_accounts(),
                partitions=ground.partitions,
            )
            await _until("the accounts are open", books.opened, ACCOUNTS, system)
            for turn in range(reps):
                captured, decided = books.events("payment_captured"), books.decided()
                requests = list(load.authorizations(payments, step_ms=STEP_MS, assessed=False, capture=True))
                meter.begin()
                began = time.monotonic()
                await preload(
                    ground.bootstrap, topics.CARD_REQUESTS.name, requests, partitions=ground.partitions
                )
                await _until("every request is decided", books.decided, decided + payments, system)
                decided_s = time.monotonic() - began
                captured = books.events("payment_captured") - captured
                done = books.events("payment_captured")
                await _until("every capture is cleared and posted", books.done, done, system)
                seconds = time.monotonic() - began
                await _until("debits equal credits", books.balanced, 1, system)
                share = captured / payments
                if share < CLEARED_SHARE_MIN:
                    raise RuntimeError(f"{share:.0%} of the payments were captured: not the workload meant")
                rates.append(payments / seconds)
                costs.append(meter.us_each(payments))
                result.runs.append(
                    {"payments": payments, "seconds": seconds, "decided_s": decided_s, "cpu_us": costs[-1]}
                )
                console.print(
                    f"  pipeline {turn + 1}/{reps}: {number(rates[-1])} payments/s, all decided after "
                    f"{decided_s:.1f} s, all done after {seconds:.1f} s; CPU us a payment: "
                    + ", ".join(f"{name} {us:.0f}" for name, us in costs[-1].items()),
                    style="dim",
                )
            rss = system.rss_peak_mib
    result.figures = [
        Figure("pipeline.per_s", "payments/s", tuple(rates)),
        *(
            Figure(f"pipeline.cpu.{name}", "CPU us a payment", tuple(cost[name] for cost in costs))
            for name in costs[0]
        ),
        Figure("pipeline.rss", "MiB, all processes but the broker", (rss,)),
    ]
    result.notes.append(
        f"{payments:,} payments on {ACCOUNTS:,} accounts, each authorized and captured in one, cleared "
        "over HTTP, posted twice and told in SQL; broker, nine processes and this one share the cores"
    )
    return result


async def _ready(home: Path, system: Watched) -> Running:
    """What `up` says of itself once it is ready."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while "Ready" not in system.tail(200):
        system.check()
        if time.monotonic() > deadline:
            raise TimeoutError(f"not ready after {START_TIMEOUT_S:g} s: {system.tail()}")
        await asyncio.sleep(0.1)
    state = running(home)
    assert state is not None
    return state


async def _until(what: str, count: Callable[[], int], least: int, system: Watched) -> None:
    deadline, found = time.monotonic() + RUN_TIMEOUT_S, 0
    while True:
        with suppress(sqlite3.OperationalError):  # not made yet, or a writer holds it
            found = count()
        if found >= least:
            return
        system.check()
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: {found} of {least} after {RUN_TIMEOUT_S:g} s")
        await asyncio.sleep(0.25)
