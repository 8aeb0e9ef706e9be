"""Identifiers made from inputs, never drawn: the same log gives the same ids on every replay."""

from __future__ import annotations

import re
from itertools import product
from typing import Final
from zlib import crc32

ACCOUNT_PREFIX: Final = "tok_"
PAYMENT_PREFIX: Final = "pay_"

_ACCOUNT: Final = re.compile(r"tok_[A-Za-z0-9_-]{1,64}")
_PAYMENT: Final = re.compile(r"pay_([A-Za-z0-9_-]{1,64})_(0|[1-9a-f][0-9a-f]{0,11})")
"""Positions of 48 bits: no log gets as long, and with a partition's number they fit an integer of SQL."""

_ALPHABET: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
_TRIPLES: Final = tuple(map("".join, product(_ALPHABET, repeat=3)))


class InvalidId(ValueError):
    """Not an identifier of this system. The text never quotes it."""


def check_account_id(account: str) -> None:
    """Raises `InvalidId` unless `account` is a card token."""
    if not _ACCOUNT.fullmatch(account):
        raise InvalidId("is not an account id: tok_ and 1 to 64 letters, digits, _ or -")


def payment_id(account: str, position: int) -> str:
    """From the account and the command's offset on its partition, which the account implies: unique,
    URL safe, and enough to find the account again (`account_of`)."""
    return f"{PAYMENT_PREFIX}{account[4:]}_{position:x}"


def account_of(payment_id: str) -> str:
    """The account of a payment, from its id alone. Raises `InvalidId` when it is not a payment id."""
    match = _PAYMENT.fullmatch(payment_id)
    if match is None:
        raise InvalidId("is not a payment id: they begin with pay_")
    return ACCOUNT_PREFIX + match[1]


def authorization_code(payment_id: str) -> str:
    """Six characters A-Z 0-9 (ISO 8583 field 38), derived from the payment id."""
    number = crc32(payment_id.encode())
    return _TRIPLES[number % 46_656] + _TRIPLES[number // 46_656 % 46_656]
