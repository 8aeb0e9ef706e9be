"""Cards: what a PAN must look like, and the keyed token that stands for it everywhere else.

Only the gateway holds a PAN, in memory. No error, repr or return value here contains one, except the
first six and last four digits (PCI DSS 3.4.1).
"""

from __future__ import annotations

import hmac
import re
from base64 import b32encode
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final

from mini_visa.domain.payment import Card

PAN_DIGITS_MIN: Final = 12
PAN_DIGITS_MAX: Final = 19
"""ISO/IEC 7812-1: a PAN has up to 19 digits."""

TOKEN_BYTES: Final = 15
"""120 bits of the HMAC: 24 characters, and no two of 10^12 cards share one (odds below 10^-12)."""

SECRET_BYTES_MIN: Final = 16

_KEY_ID: Final = re.compile(r"[a-z0-9]{1,8}")
_DOUBLED: Final = (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)


class InvalidPan(ValueError):
    """Not a card number. The text never contains its digits."""


class InvalidTokenKey(ValueError):
    """A tokenization key that cannot be used. The text never contains the secret."""


def luhn_valid(digits: str) -> bool:
    """Whether the last of `digits` (ASCII) is their check digit (ISO/IEC 7812-1, annex B)."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = ord(digit) - 48
        total += _DOUBLED[value] if place % 2 else value
    return total % 10 == 0


def check_pan(pan: str) -> None:
    """Raises `InvalidPan` unless `pan` is 12-19 ASCII digits with a right check digit."""
    if not isinstance(pan, str):
        raise InvalidPan("must be a string of digits")
    if not (pan.isascii() and pan.isdigit()):
        raise InvalidPan("must be digits only: no spaces, dashes or letters")
    if not PAN_DIGITS_MIN <= len(pan) <= PAN_DIGITS_MAX:
        raise InvalidPan(f"must have {PAN_DIGITS_MIN} to {PAN_DIGITS_MAX} digits, has {len(pan)}")
    if not luhn_valid(pan):
        raise InvalidPan("has a wrong check digit: compare it with the card")


def bin_of(pan: str) -> str:
    """The first six digits: who issued it."""
    return pan[:6]


def last4_of(pan: str) -> str:
    return pan[-4:]


def mask(pan: str) -> str:
    """For people: 411111******1111."""
    return f"{bin_of(pan)}{'*' * (len(pan) - 10)}{last4_of(pan)}"


def card_of(pan: str, token: str) -> Card:
    """What the rest of the system may know of `pan`."""
    return Card(token=token, bin=bin_of(pan), last4=last4_of(pan))


@dataclass(frozen=True, slots=True)
class TokenKey:
    """A tokenization key. `key_id` (1-8 of a-z 0-9) is part of every token made with it."""

    key_id: str
    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if not _KEY_ID.fullmatch(self.key_id):
            raise InvalidTokenKey("a key id must be 1 to 8 characters of a-z and 0-9")
        if len(self.secret) < SECRET_BYTES_MIN:
            raise InvalidTokenKey(
                f"key {self.key_id}: the secret must have {SECRET_BYTES_MIN} bytes or more, "
                f"has {len(self.secret)}"
            )


def parse_token_keys(text: str) -> tuple[TokenKey, ...]:
    """Keys as the key file has them, newest first, a line each: ``KEY_ID:HEX``. Empty lines and lines
    that begin with # do not count. Raises `InvalidTokenKey` with the line's number."""
    keys = []
    for number, line in enumerate(text.splitlines(), start=1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        key_id, colon, digits = line.partition(":")
        try:
            secret = bytes.fromhex(digits)
        except ValueError:
            raise InvalidTokenKey(f"line {number}: the part after the colon must be hexadecimal") from None
        if not colon:
            raise InvalidTokenKey(f"line {number}: must be KEY_ID:HEX")
        try:
            keys.append(TokenKey(key_id, secret))
        except InvalidTokenKey as error:
            raise InvalidTokenKey(f"line {number}: {error}") from None
    return tuple(keys)


class Tokenizer:
    """PAN -> token: "tok_", the key's id, and 120 bits of HMAC-SHA256(secret, PAN) in base 32.

    The same PAN and key give the same token always, everywhere; nobody without the secret can compute
    one or try PANs against it. To rotate, put a new key in front: new cards are then named by it, and
    `tokens` still finds the accounts of the old ones.
    """

    __slots__ = ("_keys",)

    def __init__(self, keys: Sequence[TokenKey]) -> None:
        """`keys`: newest first. Raises `InvalidTokenKey` when there is none, or an id twice."""
        if not keys:
            raise InvalidTokenKey("there must be at least one tokenization key")
        ids = [key.key_id for key in keys]
        if len(set(ids)) != len(ids):
            raise InvalidTokenKey("two tokenization keys have the same id")
        self._keys = tuple(keys)

    def __repr__(self) -> str:
        return f"Tokenizer({', '.join(key.key_id for key in self._keys)})"

    def token(self, pan: str) -> str:
        """Under the newest key. `pan` has passed `check_pan`."""
        return _token(self._keys[0], pan)

    def tokens(self, pan: str) -> tuple[str, ...]:
        """Under every key, newest first: the account may have been opened under an older one."""
        return tuple(_token(key, pan) for key in self._keys)


def _token(key: TokenKey, pan: str) -> str:
    digest = hmac.digest(key.secret, pan.encode("ascii"), sha256)[:TOKEN_BYTES]
    return f"tok_{key.key_id}{b32encode(digest).decode('ascii').lower()}"
