"""Generated card numbers."""

from __future__ import annotations

import random
from itertools import islice

from mini_visa.demo.cards import RANGES, TEST_CARDS, card_numbers, check_digit


def luhn_holds(pan: str) -> bool:
    digits = [int(digit) for digit in pan]
    for place in range(len(digits) - 2, -1, -2):
        digits[place] = sum(divmod(digits[place] * 2, 10))
    return sum(digits) % 10 == 0


def test_the_usual_test_cards_have_valid_check_digits():
    assert all(luhn_holds(pan) and check_digit(pan[:-1]) == pan[-1] for pan in TEST_CARDS)


def test_generated_numbers_are_valid_and_in_the_reserved_test_ranges():
    for pan in islice(card_numbers(random.Random(1)), 2_000):
        assert luhn_holds(pan)
        assert any(pan.startswith(bin_) and len(pan) == length for bin_, length in RANGES)


def test_no_number_comes_twice_and_none_is_a_card_that_the_user_may_try():
    pans = list(islice(card_numbers(random.Random(2)), 5_000))
    assert len(set(pans)) == len(pans)
    assert not set(pans) & set(TEST_CARDS)


def test_a_seed_gives_the_same_numbers_again():
    first, again = (list(islice(card_numbers(random.Random(3)), 50)) for _ in range(2))
    assert first == again
