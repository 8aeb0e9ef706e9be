"""Money: integers of minor units, and the decimal strings that the outside writes them as."""

from __future__ import annotations

import re
from typing import Final

AMOUNT_MAX: Final = 10**12 - 1
"""Largest amount of one request, minor units: twelve digits, as in ISO 8583 field 4."""

BASIS_POINTS: Final = 10_000
"""Of a whole: 150 basis points are 1.50 %."""

_CODES_BY_DECIMALS: Final[dict[int, str]] = {
    0: "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF",
    2: """
        AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BMD BND BOB BOV BRL BSD BTN BWP BYN BZD CAD CDF
        CHE CHF CHW CNY COP COU CRC CUP CVE CZK DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD
        GTQ GYD HKD HNL HTG HUF IDR ILS INR IRR JMD KES KGS KHR KPW KYD KZT LAK LBP LKR LRD LSL MAD MDL
        MGA MKD MMK MNT MOP MRU MUR MVR MWK MXN MXV MYR MZN NAD NGN NIO NOK NPR NZD PAB PEN PGK PHP PKR
        PLN QAR RON RSD RUB SAR SBD SCR SDG SEK SGD SHP SLE SOS SRD SSP STN SVC SYP SZL THB TJS TMT TOP
        TRY TTD TWD TZS UAH USD USN UYU UZS VED VES WST XCD XCG YER ZAR ZMW ZWG
    """,
    3: "BHD IQD JOD KWD LYD OMR TND",
    4: "CLF UYW",
}

EXPONENTS: Final[dict[str, int]] = {
    code: decimals for decimals, codes in _CODES_BY_DECIMALS.items() for code in codes.split()
}
"""ISO 4217's active codes that have a minor unit -> its decimals. Metals and test codes have none."""

_AMOUNT: Final = re.compile(r"(0|[1-9][0-9]*)(?:\.([0-9]+))?")
_TEXT_MAX: Final = 32


class InvalidAmount(ValueError):
    """An amount that is not written exactly. The text says what is wrong, never the value."""


class UnknownCurrency(ValueError):
    """Not an active ISO 4217 code."""


def exponent_of(currency: str) -> int:
    """Decimals of `currency` (ISO 4217). Raises `UnknownCurrency`."""
    exponent = EXPONENTS.get(currency)
    if exponent is None:
        raise UnknownCurrency("is not an active ISO 4217 currency code (three upper-case letters)")
    return exponent


def parse_amount(text: str, exponent: int) -> int:
    """The minor units that `text` says, with exactly `exponent` decimals: "10.00" for 2, "10" for 0.

    Nothing is rounded, trimmed or guessed. Raises `InvalidAmount`.
    """
    if not isinstance(text, str):
        raise InvalidAmount(f'must be a string such as "{format_amount(1000, exponent)}"')
    match = _AMOUNT.fullmatch(text) if len(text) <= _TEXT_MAX else None
    if match is None:
        raise InvalidAmount(
            f'must be digits such as "{format_amount(1000, exponent)}": no sign, space, exponent, '
            "separator or leading zero"
        )
    whole, fraction = match[1], match[2] or ""
    if len(fraction) != exponent:
        raise InvalidAmount(f"must have exactly {exponent} decimals, has {len(fraction)}")
    minor = int(whole + fraction)
    if minor > AMOUNT_MAX:
        raise InvalidAmount(f"must be at most {format_amount(AMOUNT_MAX, exponent)}")
    return minor


def format_amount(minor: int, exponent: int) -> str:
    """Inverse of `parse_amount`, also for negative amounts: -5 with 2 decimals is "-0.05"."""
    if exponent == 0:
        return str(minor)
    digits = str(abs(minor)).zfill(exponent + 1)
    sign = "-" if minor < 0 else ""
    return f"{sign}{digits[:-exponent]}.{digits[-exponent:]}"


def share(amount: int, basis_points: int) -> int:
    """`basis_points` / 10,000 of `amount` (>= 0), in minor units, rounded half up."""
    assert amount >= 0 and basis_points >= 0, "a share is of an amount, never of a debt"
    return (amount * basis_points + BASIS_POINTS // 2) // BASIS_POINTS
