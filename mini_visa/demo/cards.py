"""Card numbers for tests: from the ranges that the networks reserve for them, with a valid check digit."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Final

TEST_CARDS: Final = (
    "4111111111111111",
    "4012888888881881",
    "4242424242424242",
    "5555555555554444",
    "5105105105105100",
    "2223003122003222",
    "378282246310005",
    "6011111111111117",
    "3530111333300000",
)
"""The usual ones of every payment guide: opened for the user to try, left alone by the generator."""
TEST_CARD_LIMIT: Final = "1000.00"

RANGES: Final = (
    ("411111", 16),
    ("424242", 16),
    ("401288", 16),
    ("555555", 16),
    ("510510", 16),
    ("222300", 16),
    ("378282", 15),
    ("601111", 16),
    ("353011", 16),
)
"""(BIN, length) of the networks' test cards: no issuer gives them to a cardholder."""


def check_digit(digits: str) -> str:
    """Luhn's digit for `digits` (ISO/IEC 7812-1, annex B)."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit)
        if place % 2 == 0:
            value = value * 2 - 9 if value > 4 else value * 2
        total += value
    return str(-total % 10)


def card_numbers(choose: random.Random) -> Iterator[str]:
    """Test card numbers without end, none twice and none of `TEST_CARDS`."""
    used = set(TEST_CARDS)
    while True:
        bin_, length = choose.choice(RANGES)
        digits = bin_ + "".join(choose.choices("0123456789", k=length - len(bin_) - 1))
        pan = digits + check_digit(digits)
        if pan not in used:
            used.add(pan)
            yield pan
