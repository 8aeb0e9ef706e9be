"""What merchants are owed: an item for each event that changes it, positions that add items up, and what
pays them. From docs/ledger.md."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from audit.accounts import PAYABLE, Postings, name_of
from audit.findings import Findings

BANK: Final = "settlement:bank"
SUMS: Final = (
    ("sales", "sale"), ("returns", "returned"), ("interchange", "interchange"), ("scheme_fees", "scheme_fee"),
)  # fmt: skip
"""Of a position -> of its items."""

POSITIONS_PER_TICK: Final = 5_000

Owner = tuple[str, str]
"""(merchant, currency)"""


class Passed(NamedTuple):
    """A tick of clearing.items."""

    offset: int
    at: int


class Due:
    """What events post on what is owed to merchants, each until its item comes."""

    def __init__(self, findings: Findings, running: bool) -> None:
        """`running`: an item's event may be newer than what was read of the events."""
        self._check = findings["merchant-items"]
        self._running = running
        self._waiting: dict[int, list[str]] = defaultdict(list)
        """Hash of an item -> events that have to make it."""

    def add(self, event: dict[str, Any], postings: Postings, where: str) -> None:
        kind = name_of(event)
        for (account, currency), amount in postings.items():
            if account.startswith(PAYABLE):
                n = event["n"] if kind == "capture_cleared" else 0
                merchant = account.removeprefix(PAYABLE)
                payment_id = event["payment"]["payment_id"]
                item = hash((payment_id, kind, n, event["at"], merchant, currency, -amount))
                self._waiting[item].append(where)

    def take(self, item: dict[str, Any], where: str) -> None:
        """One item for one event: its net amount is what the event posts on that merchant."""
        what = (
            item["payment_id"], item["kind"], item.get("n", 0), item["at"], item["merchant_id"],
            item["currency"], net_of_item(item),
        )  # fmt: skip
        events = self._waiting.get(hash(what), [])
        if self._running and not events:
            return
        self._check.expect(
            bool(events), f"{where}: no event makes this item, or another item has come of it: {what}"
        )
        if events:
            events.pop()

    def end(self) -> None:
        for events in self._waiting.values():
            for where in events:
                self._check.fails(f"{where} changes what a merchant is owed, and has made no item")


class Cycles:
    """One partition of clearing.items and of settlement.positions."""

    def __init__(
        self, findings: Findings, items: Sequence[tuple[int, dict[str, Any]]], times: Sequence[int] = ()
    ) -> None:
        """`items`: with their offsets, in order; `times`: how far time had come with each."""
        self._times = times
        self._check = findings["settlement"]
        self._offsets = [offset for offset, _ in items]
        self._items = [item for _, item in items]
        self._told: list[dict[str, Any]] = []
        """Positions of the cycle that closes."""
        self._end = 0
        """Of the last closed cycle: its number of items and of all before it."""

    def tell(self, position: dict[str, Any]) -> Postings:
        """Returns what pays it."""
        self._told.append(position)
        net, currency = net_of_position(position), position["currency"]
        if not net:
            return {}
        return {(PAYABLE + position["merchant_id"], currency): net, (BANK, currency): -net}

    def close(self, closed: dict[str, Any], where: str) -> None:
        """A cycle's positions are its items added up, and each item is in one cycle."""
        first = bisect_left(self._offsets, closed["first_item"])
        end = bisect_left(self._offsets, closed["end_item"])
        if first != self._end:
            self._check.fails(
                f"{where}: {closed['cycle']} begins with item {first} of its partition, the one before it "
                f"ended with {self._end}"
            )
        self._end = end
        counted: dict[Owner, Counter[str]] = defaultdict(Counter)
        for item in self._items[first:end]:
            sums = counted[item["merchant_id"], item["currency"]]
            sums["items"] += 1
            for ours, theirs in SUMS:
                sums[ours] += item.get(theirs, 0)
        names = ("items", *(name for name, _ in SUMS))
        told = {
            (one["merchant_id"], one["currency"]): Counter({name: one.get(name, 0) for name in names})
            for one in self._told
        }
        self._check.expect(
            told == counted and len(self._told) == len(told) == closed["positions"],
            f"{where}: {closed['cycle']} tells {len(self._told)} positions, not what its items add up to",
        )
        self._told = []

    def late(self, passed: Sequence[Passed], cycle_ms: int) -> None:
        """The first tick after a cycle's end closes it; the next one goes on, where it has many positions.
        `passed`: ticks that netting has done, the last two."""
        if self._end == len(self._items) or len(passed) < 2 or len(self.open) >= POSITIONS_PER_TICK:
            return
        since, tick = self._times[self._end], passed[0]
        if self._offsets[self._end] < tick.offset and tick.at // cycle_ms > since // cycle_ms:
            self._check.fails(
                f"the cycle of item {self._offsets[self._end]} is open after the tick of {tick.at}"
            )

    @property
    def open(self) -> Counter[Owner]:
        """What is owed for items of no closed cycle, less the positions of it that have been told already."""
        owed: Counter[Owner] = Counter()
        for item in self._items[self._end :]:
            owed[item["merchant_id"], item["currency"]] += net_of_item(item)
        for position in self._told:
            owed[position["merchant_id"], position["currency"]] -= net_of_position(position)
        return owed


def net_of_item(item: dict[str, Any]) -> int:
    """Owed to the merchant from then on; negative: that it owes."""
    return int(
        item.get("sale", 0) - item.get("returned", 0) - item.get("interchange", 0)
        - item.get("scheme_fee", 0)
    )  # fmt: skip


def net_of_position(position: dict[str, Any]) -> int:
    return int(
        position.get("sales", 0) - position.get("returns", 0) - position.get("interchange", 0)
        - position.get("scheme_fees", 0)
    )  # fmt: skip
