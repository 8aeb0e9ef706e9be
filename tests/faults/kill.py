"""SIGKILL each service under load, again and again, and account for every payment.

    python -m tests.faults.kill --rounds 5 --seed 1

Shoppers send bursts of twelve requests a card, of which the velocity rule must approve exactly ten, and
send a request again, as it was, until it has an answer. Meanwhile the services are killed, one after the
other; in two rounds of five their local disk is wiped before they come back. In the end every
acknowledged payment must be in the events once, with the answer that was given, and every count, sum and
balance must be exact.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import orjson
from rich.console import Console

from mini_visa.demo import evidence
from mini_visa.demo.cards import card_numbers
from mini_visa.demo.checks import Check, Folded, History, history, no_dead_letters, no_lag
from mini_visa.demo.model import VELOCITY_COUNT
from mini_visa.demo.report import show_checks
from mini_visa.demo.script import text_of
from mini_visa.demo.traffic import Sender
from mini_visa.kafka import committed_records
from mini_visa.settings import Settings
from mini_visa.supervisor.system import GATEWAY, GROUPS, SERVICES, Service, System

BURST = VELOCITY_COUNT + 2
BURST_S_MAX = 45.0
"""A burst that took longer may have left the rule's window of 60 s: its count proves nothing."""
LIMIT = 1_000_00
SHOPPERS = 24
QUIET_S = 1.5
"""Between a recovery and the next kill."""
RECOVERY_S_MAX = 90.0
ANSWER_S_MAX = 120.0
PAUSE_S = 0.02


@dataclass
class Purchase:
    """One authorization and how it ended for the client."""

    request_id: str
    amount: int
    attempts: int = 0
    timeouts: int = 0
    """Attempts that were answered 504: the gateway has promised that no hold remains."""
    code: str = ""
    payment_id: str = ""


@dataclass
class Card:
    pan: str
    account_id: str
    purchases: list[Purchase] = field(default_factory=list)
    seconds: float = 0.0


@dataclass
class Recovery:
    """What one kill did."""

    service: str
    wiped: bool
    first_s: float
    """Until a payment that was sent after the kill was answered; of the projection: until one was shown."""
    all_s: float
    """The same on every partition."""


class Load:
    """Shoppers that never give up on a request."""

    def __init__(self, sender: Sender, seed: int, partitions: int) -> None:
        self.cards: list[Card] = []
        self.answers: Counter[int] = Counter()
        self.lost = 0
        """Attempts that ended without an answer."""
        self.latest: tuple[str, str] | None = None
        """A payment id and its consistency token."""
        self._sender = sender
        self._choose = random.Random(seed)
        self._pans = card_numbers(self._choose)
        self._partitions = partitions
        self._numbers = iter(range(1, sys.maxsize))
        self._stop = asyncio.Event()
        self._killed_at = 0.0
        self._seen: set[str] = set()
        self._first: asyncio.Future[float] | None = None
        self._all: asyncio.Future[float] | None = None

    async def shop(self) -> None:
        while not self._stop.is_set():
            await self._burst()

    def stop(self) -> None:
        self._stop.set()

    def expect(self) -> tuple[asyncio.Future[float], asyncio.Future[float]]:
        """From now on: seconds until the first decision on what is sent from now on, and until there was
        one on every partition."""
        loop = asyncio.get_running_loop()
        self._killed_at, self._seen = time.monotonic(), set()
        self._first, self._all = loop.create_future(), loop.create_future()
        return self._first, self._all

    async def _burst(self) -> None:
        number = next(self._numbers)
        pan = next(self._pans)
        body = {"request_id": f"kill-open-{number}", "pan": pan, "limit": text_of(LIMIT, "USD")}
        opened, _, _ = await self._until_answered("/accounts", body)
        card = Card(pan, opened["account_id"])
        self.cards.append(card)
        began = time.monotonic()
        for place in range(BURST):
            amount = self._choose.randint(1_00, 9_00)
            purchase = Purchase(f"kill-{number}-{place}", amount)
            card.purchases.append(purchase)
            body = {"request_id": purchase.request_id, "pan": pan, "amount": text_of(amount, "USD")}
            payment, headers, statuses = await self._until_answered("/payments/authorize", body)
            purchase.attempts = len(statuses)
            purchase.timeouts = statuses.count(504)
            purchase.code = payment["response_code"]
            purchase.payment_id = payment["payment_id"]
            self.latest = purchase.payment_id, headers["Consistency-Token"]
        card.seconds = time.monotonic() - began

    async def _until_answered(
        self, path: str, body: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, str], list[int]]:
        """Send it, the same each time, until it is answered for good. 0 among the statuses: no answer."""
        statuses: list[int] = []
        deadline = time.monotonic() + ANSWER_S_MAX
        while True:
            sent = time.monotonic()
            try:
                status, headers, answer = await self._sender.call("POST", path, body)
            except (aiohttp.ClientError, TimeoutError, OSError):
                status = 0
                self.lost += 1
            self.answers[status] += 1
            statuses.append(status)
            if status == 200:
                self._decided(sent, headers["Consistency-Token"].partition(":")[0])
                return orjson.loads(answer), headers, statuses
            assert status in (0, 503, 504), f"{path}: {status} {answer.decode()[:300]}"
            assert time.monotonic() < deadline, f"no answer within {ANSWER_S_MAX:.0f} s: {statuses}"
            await asyncio.sleep(PAUSE_S)

    def _decided(self, sent: float, partition: str) -> None:
        if self._first is None or self._all is None or sent < self._killed_at:
            return
        self._seen.add(partition)
        after_s = time.monotonic() - self._killed_at
        if not self._first.done():
            self._first.set_result(after_s)
        if len(self._seen) == self._partitions and not self._all.done():
            self._all.set_result(after_s)


NOT_WIPED = frozenset({GATEWAY.name, "connector", "clearing-house"})
"""The gateway's only file is the key that makes the tokens; the connector has none; the clearing house is
the outside."""


class Wiper:
    """Removes a service's local disk at its next start, when no process of it runs."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self.next: set[str] = set()
        self.wiped: Counter[str] = Counter()

    def before_start(self, service: Service) -> None:
        if service.name not in self.next:
            return
        self.next.discard(service.name)
        if service.name == "projection":
            targets = list(self._home.glob("readmodel.sqlite*"))
        else:
            targets = list((self._home / "state").glob(f"*/{service.name}"))
        assert targets, f"{service.name} has nothing on its disk"
        for target in targets:
            shutil.rmtree(target) if target.is_dir() else target.unlink()
        self.wiped[service.name] += 1


async def run(rounds: int, seed: int, home: Path, jars: Path, console: Console) -> dict[str, Any]:
    """The report. `passed` in it says whether everything adds up."""
    wiper = Wiper(home)
    settings = Settings(home=home, gateway_port=0)
    recoveries: list[Recovery] = []
    async with System(settings, jars=jars, before_start=wiper.before_start) as system:
        settings = system.settings.model_copy(update={"broker": system.backbone.address})
        async with Sender(system.gateway_url, SHOPPERS + 4) as sender:
            load = Load(sender, seed, settings.partitions)
            shoppers = [asyncio.create_task(load.shop()) for _ in range(SHOPPERS)]
            work = asyncio.create_task(
                _kill_all(system, sender, load, wiper, rounds, random.Random(seed), recoveries, console)
            )
            await asyncio.wait([work, system.failure, *shoppers], return_when=asyncio.FIRST_COMPLETED)
            if system.failure.done():
                system.failure.result()
            for shopper in shoppers:
                if shopper.done():
                    shopper.result()
            await work
            load.stop()
            await asyncio.gather(*shoppers)
            found = await _account_for(load, sender, settings)
    found.append(_nobody_was_killed_at_the_end(system))
    purchases = sum(len(card.purchases) for card in load.cards)
    console.print(
        f"{len(load.cards):,} cards, {purchases:,} purchases, {load.lost:,} attempts without an answer, "
        f"answers {dict(sorted(load.answers.items()))}"
    )
    show_checks(found, console)
    times = _times(recoveries)
    for name, values in times.items():
        console.print(
            f"{name:24} first decision: p50 {values['first_p50_s']:.2f} s, "
            f"max {values['first_max_s']:.2f} s; every partition: p50 {values['all_p50_s']:.2f} s, "
            f"max {values['all_max_s']:.2f} s"
        )
    return {
        "passed": all(check.passed for check in found),
        "seed": seed,
        "rounds": rounds,
        "kills": len(recoveries),
        "wiped": dict(wiper.wiped),
        "purchases": purchases,
        "answers": {str(status): count for status, count in sorted(load.answers.items())},
        "recovery": times,
        "checks": {check.name: [check.looked_at, *check.offenders] for check in found},
    }


async def _kill_all(
    system: System,
    sender: Sender,
    load: Load,
    wiper: Wiper,
    rounds: int,
    choose: random.Random,
    recoveries: list[Recovery],
    console: Console,
) -> None:
    for number in range(rounds):
        wipe = number % 5 in (1, 3) or rounds == 1
        names = [service.name for service in SERVICES]
        choose.shuffle(names)
        for name in names:
            await asyncio.sleep(QUIET_S + choose.random())
            wiped = wipe and name not in NOT_WIPED
            recovery = await _kill(system, sender, load, wiper, name, wiped)
            recoveries.append(recovery)
            console.print(
                f"round {number + 1}: {name} killed{' and wiped' if wiped else ''}: first decision after "
                f"{recovery.first_s:.2f} s, on every partition after {recovery.all_s:.2f} s"
            )


async def _kill(system: System, sender: Sender, load: Load, wiper: Wiper, name: str, wiped: bool) -> Recovery:
    part = system.part(name)
    assert part.child is not None
    if wiped:
        wiper.next.add(name)
    starts = part.starts
    os.kill(part.child.pid, signal.SIGKILL)
    killed_at = time.monotonic()
    first, everywhere = load.expect()
    if wiped and name == "projection":
        # The gateway reads the file that is gone: it goes too, as it would with the machine.
        gateway = system.part(GATEWAY.name)
        assert gateway.child is not None
        os.kill(gateway.child.pid, signal.SIGKILL)
    async with asyncio.timeout(RECOVERY_S_MAX):
        first_s, all_s = await first, await everywhere
        while part.starts == starts:  # noqa: ASYNC110 - the supervisor has no event for it
            await asyncio.sleep(PAUSE_S)
        await asyncio.gather(*(other.ready.wait() for other in system.parts))
        if name == "projection":
            await _shown(sender, load)
            first_s = all_s = time.monotonic() - killed_at
    return Recovery(name, wiped, first_s, all_s)


async def _shown(sender: Sender, load: Load) -> None:
    """Returns when the newest payment can be looked up."""
    while True:
        assert load.latest is not None
        status, _, _ = await sender.call("GET", f"/payments/{load.latest[0]}")
        if status == 200:
            return
        assert status in (404, 503, 504), status
        await asyncio.sleep(PAUSE_S)


def _times(recoveries: list[Recovery]) -> dict[str, dict[str, float]]:
    by_kind: dict[str, list[Recovery]] = defaultdict(list)
    for recovery in recoveries:
        by_kind[recovery.service + (", wiped" if recovery.wiped else "")].append(recovery)
        by_kind["all"].append(recovery)
    return {
        name: {
            "first_p50_s": statistics.median(one.first_s for one in found),
            "first_max_s": max(one.first_s for one in found),
            "all_p50_s": statistics.median(one.all_s for one in found),
            "all_max_s": max(one.all_s for one in found),
        }
        for name, found in sorted(by_kind.items())
    }


# -- what must hold --------------------------------------------------------------------------------------


async def _account_for(load: Load, sender: Sender, settings: Settings) -> list[Check]:
    lag = await no_lag(settings, GROUPS)
    found = await history(committed_records(settings, ["payment.events"], {}), "kill-")
    topics = await evidence.topic_names(settings)
    return [
        _promises(load),
        _events(load, found),
        _velocity(load),
        *await _balances(load, found, sender),
        await _read_model(load, found, sender),
        await no_dead_letters(settings, topics, {}),
        lag,
    ]


def _promises(load: Load) -> Check:
    """An answer of 504 says that no hold remains; without one there is no reason for a reversal."""
    check = Check("each answer keeps its promise", unit="purchases")
    for card in load.cards:
        for purchase in card.purchases:
            check.looked_at += 1
            allowed = {"68"} if purchase.timeouts else {"00", "65"}
            if purchase.code not in allowed:
                after = "after a 504" if purchase.timeouts else f"in {purchase.attempts} attempts"
                check.wrong(f"{purchase.request_id}: {purchase.code} {after}")
    return check


def _events(load: Load, found: History) -> Check:
    """One outcome a request, the one that the client was told."""
    check = Check("every payment is in the events once, as it was answered", found.events, "events")
    for line in found.wrong:
        check.wrong(line)
    left = dict(found.by_request)
    for card in load.cards:
        for purchase in card.purchases:
            kinds = left.pop((card.account_id, purchase.request_id), [])
            # A second 504 reverses what is reversed already: refused, and recorded as such.
            refused = kinds.count("request_refused")
            outcomes = [kind for kind in kinds if kind in ("payment_authorized", "payment_declined")]
            reversals = [kind for kind in kinds if kind in ("payment_reversed", "request_cancelled")]
            right = {
                "00": outcomes == ["payment_authorized"] and not reversals,
                "65": outcomes == ["payment_declined"] and not reversals,
                "68": len(outcomes) <= 1 and bool(reversals),
            }.get(purchase.code, False)
            right = right and refused <= max(0, purchase.timeouts - 1)
            if not right or len(outcomes) + len(reversals) + refused != len(kinds):
                check.wrong(f"{purchase.request_id}, answered {purchase.code}: events {kinds or 'none'}")
    for (_, request_id), kinds in left.items():
        if kinds != ["account_opened"]:
            check.wrong(f"events {kinds} of {request_id}")
    return check


def _velocity(load: Load) -> Check:
    """Ten of twelve, exactly: a request that risk lost or counted twice would show."""
    check = Check("velocity counted each request once", unit="cards")
    for card in load.cards:
        if card.seconds > BURST_S_MAX:
            continue
        check.looked_at += 1
        for place, purchase in enumerate(card.purchases):
            expected = "00" if place < VELOCITY_COUNT else "65"
            if purchase.code not in (expected, "68"):
                check.wrong(f"{purchase.request_id}: {purchase.code}, expected {expected}")
    return check


async def _balances(load: Load, found: History, sender: Sender) -> list[Check]:
    folded = Check("what is held equals what was approved, by the events", unit="accounts")
    shown = Check("what is held equals what was approved, by the API", unit="accounts")

    async def compare(card: Card) -> None:
        held = sum(purchase.amount for purchase in card.purchases if purchase.code == "00")
        account = found.accounts.get(card.account_id, Folded())
        folded.looked_at += 1
        if (account.held, account.posted) != (held, 0):
            folded.wrong(f"{card.account_id}: {account.held}, expected {held}")
        status, _, body = await sender.call("GET", f"/accounts/{card.account_id}")
        document = orjson.loads(body)
        shown.looked_at += 1
        expected = {"held": text_of(held, "USD"), "available": text_of(LIMIT - held, "USD")}
        if status != 200 or any(document.get(name) != value for name, value in expected.items()):
            shown.wrong(f"{card.account_id}: {status} {document.get('held')}, expected {expected}")

    await asyncio.gather(*(compare(card) for card in load.cards))
    return [folded, shown]


async def _read_model(load: Load, found: History, sender: Sender) -> Check:
    check = Check("the read model has every payment once, as it was answered", unit="payments")

    async def compare(card: Card) -> None:
        status, _, body = await sender.call("GET", f"/payments?account={card.account_id}&limit=1000")
        rows: dict[str, dict[str, Any]] = {}
        if status == 200:
            rows = {row["payment_id"]: row for row in orjson.loads(body)["items"]}
        for purchase in card.purchases:
            check.looked_at += 1
            row = rows.pop(purchase.payment_id, None)
            if row is None or row["response_code"] != purchase.code:
                code = row["response_code"] if row else f"missing ({status})"
                check.wrong(f"{purchase.request_id}: {code}, answered {purchase.code}")
        for payment_id in rows:
            check.wrong(f"{card.account_id}: {payment_id} was never answered")

    await asyncio.gather(*(compare(card) for card in load.cards))
    return check


def _nobody_was_killed_at_the_end(system: System) -> Check:
    check = Check("every service stopped by itself", len(system.parts), "services")
    for name in system.killed:
        check.wrong(name)
    return check


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="times that each service is killed")
    parser.add_argument("--seed", type=int, default=None, help="of cards, amounts and pauses")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    arguments = parser.parse_args()
    seed = random.randrange(2**31) if arguments.seed is None else arguments.seed
    console = Console(stderr=arguments.json, highlight=False, width=120)
    console.print(f"seed {seed}")
    home = Path(tempfile.mkdtemp(prefix="mini-visa-kill-"))
    report = asyncio.run(run(arguments.rounds, seed, home, Settings().home / "broker", console))
    if arguments.json:
        print(json.dumps(report))
    if report["passed"]:
        shutil.rmtree(home)
        return 0
    console.print(
        f"Something does not add up. Everything is kept in {home}", style="bold red", soft_wrap=True
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
