"""What became of the money: the ledger's journals, net positions and sagas, read back and added up.

Everything here is reckoned from the records alone, by their amounts.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp
import orjson
from aiokafka import TopicPartition

from mini_visa.demo.evidence import Positions, positions, remaining_lag
from mini_visa.kafka import committed_records
from mini_visa.settings import Settings

REST_TIMEOUT_S: Final = 240.0
"""After the last request, until everything has an outcome and is settled. On a machine that is slow."""
REST_INTERVAL_S: Final = 0.25
REQUESTS_AT_ONCE: Final = 32

JOURNAL: Final = "ledger.journal"
SETTLEMENT_JOURNAL: Final = "ledger.settlement-journal"
POSITIONS: Final = "settlement.positions"
SAGAS: Final = "payment.sagas"
TOPICS: Final = (JOURNAL, SETTLEMENT_JOURNAL, POSITIONS, SAGAS)

PAYABLE: Final = "payable:merchant:"
BANK: Final = "settlement:bank"
OVER: Final = ("completed", "compensated")

Sums = Counter[tuple[str, str]]
"""(ledger account, currency) -> minor units, debit > 0."""


@dataclass
class Books:
    """Of all that was ever in the topics, as far as they were read."""

    entries: int = 0
    balances: Sums = field(default_factory=Counter)
    payments: dict[str, Sums] = field(default_factory=lambda: defaultdict(Counter))
    """Payment id -> what its entries add up to."""
    lives: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    """Payment id -> how often what happened to it."""
    kinds: Counter[str] = field(default_factory=Counter)
    """Entries by what happened."""
    settled: Sums = field(default_factory=Counter)
    """What the settlement journal alone adds up to."""
    net: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(merchant, currency) -> sum of its net positions."""
    nets: int = 0
    closed: dict[str, int] = field(default_factory=Counter)
    """Cycle -> positions that its closings count."""
    told: Counter[str] = field(default_factory=Counter)
    """Cycle -> positions that are there."""
    sagas: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Payment id -> the last that was said of its saga."""
    compensations: Counter[str] = field(default_factory=Counter)
    """Saga events by state."""
    wrong: list[str] = field(default_factory=list)
    """Entries that do not balance, or that do not follow the one before them."""
    _heads: dict[tuple[str, int], tuple[int, str]] = field(default_factory=dict)
    _read: Positions = field(default_factory=dict)

    async def read(self, settings: Settings) -> None:
        """Go on to where the topics end now."""
        ends = await positions(settings, TOPICS)
        async for record in committed_records(settings, TOPICS, self._read):
            if record.offset < ends[TopicPartition(record.topic, record.partition)]:
                self._add(record.topic, record.partition, orjson.loads(record.value))
        self._read = ends

    def _add(self, topic: str, partition: int, document: dict[str, Any]) -> None:
        if topic == SAGAS:
            self.sagas[document["payment_id"]] = document
            self.compensations[document["state"]] += 1
        elif topic == POSITIONS:
            self._add_position(document)
        else:
            self._add_entry(topic, partition, document)

    def _add_position(self, document: dict[str, Any]) -> None:
        if document["type"].startswith("cycle_closed/"):
            self.closed[document["cycle"]] += document["positions"]
            return
        fees = document["interchange"] + document["scheme_fees"]
        key = document["merchant_id"], document["currency"]
        self.net[key] += document["sales"] - document["returns"] - fees
        self.nets += 1
        self.told[document["cycle"]] += 1

    def _add_entry(self, topic: str, partition: int, entry: dict[str, Any]) -> None:
        self.entries += 1
        where = f"{topic}/{partition}, entry {entry['number']}"
        number, last = self._heads.get((topic, partition), (0, ""))
        if (entry["number"], entry["previous"]) != (number + 1, last):
            self.wrong.append(f"{where} does not follow entry {number}")
        self._heads[topic, partition] = entry["number"], entry["hash"]
        sums: Counter[str] = Counter()
        about = self.payments[entry["payment_id"]] if entry.get("payment_id") else Counter()
        for account, currency, amount in entry["postings"]:
            sums[currency] += amount
            self.balances[account, currency] += amount
            about[account, currency] += amount
            if topic == SETTLEMENT_JOURNAL:
                self.settled[account, currency] += amount
        if any(sums.values()):
            self.wrong.append(f"{where} does not balance: {dict(sums)}")
        self.kinds[entry["kind"]] += 1
        if entry.get("payment_id"):
            self.lives[entry["payment_id"]][entry["kind"]] += 1

    # -- at rest ------------------------------------------------------------------------------------

    def uncleared(self) -> list[str]:
        """Payments with a capture that has no outcome, or whose rejected captures left a hold behind."""
        return [
            payment_id
            for payment_id, life in self.lives.items()
            if life["payment_captured"] > life["capture_cleared"] + life["capture_rejected"]
            or (self.was_compensated(payment_id) and any(self.payments[payment_id].values()))
        ]

    def was_compensated(self, payment_id: str) -> bool:
        """It was captured, and all of that was taken back."""
        life = self.lives[payment_id]
        return 0 < life["payment_captured"] == life["capture_rejected"]

    def owed(self) -> dict[tuple[str, str], int]:
        """What merchants have to get, or to give, by ledger account and currency."""
        return {key: amount for key, amount in self.balances.items() if key[0].startswith(PAYABLE) and amount}

    def open_sagas(self) -> list[str]:
        return [payment for payment, saga in self.sagas.items() if saga["state"] not in OVER]


async def until_cleared(settings: Settings, books: Books, groups: int) -> None:
    """Returns when each capture has its outcome and what had to be undone is, or after `REST_TIMEOUT_S`."""
    await _until_at_rest(settings, books, groups, lambda: not books.uncleared() and not books.open_sagas())


async def until_settled(settings: Settings, books: Books, groups: int) -> None:
    """Returns when no merchant is owed anything either."""
    await _until_at_rest(
        settings,
        books,
        groups,
        lambda: not books.owed() and not books.uncleared() and not books.open_sagas(),
    )


async def _until_at_rest(settings: Settings, books: Books, groups: int, at_rest: Callable[[], bool]) -> None:
    deadline = time.monotonic() + REST_TIMEOUT_S
    while time.monotonic() < deadline:  # everything that was answered is in the journal
        _, behind = await remaining_lag(settings, groups)
        if not behind:
            break
    while True:
        await books.read(settings)
        if at_rest() or time.monotonic() > deadline:
            return
        await asyncio.sleep(REST_INTERVAL_S)


async def decisions(url: str, keys: Sequence[str]) -> dict[str, str]:
    """Presentment's key -> what the clearing house at `url` decided; "" when it never saw it."""
    found: dict[str, str] = {}
    waiting = list(keys)

    async def ask(http: aiohttp.ClientSession) -> None:
        while waiting:
            key = waiting.pop()
            async with http.get(f"{url}/presentments/{key}") as answer:
                found[key] = (await answer.json())["status"] if answer.status == 200 else ""

    async with aiohttp.ClientSession() as http:
        await asyncio.gather(*(ask(http) for _ in range(REQUESTS_AT_ONCE)))
    return found
