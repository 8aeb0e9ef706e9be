"""W1 in plain Python: its requests, its rule written for reading, and so the oracle of every run.

For each request, in order per card: more than ten requests in the last 60 s (this one and declined
ones included) is declined as `velocity`; else more than the balance is declined as `insufficient`;
else it is `ok` and the amount is taken from the balance.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

CARDS = 5_000
WINDOW_MS = 60_000
IN_WINDOW_MAX = 10
START_BALANCE = 1_000_000
FIRST_AT_MS = 1_700_000_000_000

Decision = tuple[str, bool, str, int]
"""card, approved, reason, balance after."""


def requests(count: int, seed: int = 20261122) -> Iterator[dict[str, Any]]:
    """The first `count` requests, one a millisecond of event time."""
    draw = random.Random(seed).randrange
    for i in range(count):
        card, amount, merchant = draw(CARDS), draw(100, 50_001), draw(1_000)
        yield {
            "request_id": f"r{i:07d}",
            "card": f"c{card:05d}",
            "amount": amount,
            "merchant": f"m{merchant:04d}",
            "ts": FIRST_AT_MS + i,
        }


def decide(balance: int, seen_at: list[int], amount: int, at: int) -> tuple[bool, str, int, list[int]]:
    """(approved, reason, balance after, request times in the window) of one request."""
    seen_at = [moment for moment in seen_at if moment > at - WINDOW_MS]
    seen_at.append(at)
    if len(seen_at) > IN_WINDOW_MAX:
        return False, "velocity", balance, seen_at
    if amount > balance:
        return False, "insufficient", balance, seen_at
    return True, "ok", balance - amount, seen_at


def oracle(count: int) -> dict[str, Decision]:
    """request id -> the decision it must get."""
    state: dict[str, tuple[int, list[int]]] = {}
    expected: dict[str, Decision] = {}
    for request in requests(count):
        card = request["card"]
        balance, seen_at = state.get(card, (START_BALANCE, []))
        approved, reason, balance, seen_at = decide(balance, seen_at, request["amount"], request["ts"])
        state[card] = (balance, seen_at)
        expected[request["request_id"]] = (card, approved, reason, balance)
    return expected
