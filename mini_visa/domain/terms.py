"""Terms: the numbers that decisions depend on, as data. The defaults are those of the design; a
deployment sets its own by settings.
"""

from __future__ import annotations

from typing import Final

import msgspec

from mini_visa.domain.money import share
from mini_visa.domain.payment import Data, Merchant

DAY_MS: Final = 86_400_000
HOUR_MS: Final = 3_600_000


def mccs(*codes: str) -> frozenset[str]:
    """Merchant category codes (ISO 18245), one by one ("4411") or as ranges ("3351-3500", both included)."""
    every: set[str] = set()
    for code in codes:
        first, _, last = code.partition("-")
        every.update(f"{number:04d}" for number in range(int(first), int(last or first) + 1))
    return frozenset(every)


TRAVEL: Final = mccs(
    "3351-3500",  # vehicle rental agencies by name
    "3501-3999",  # lodging by name
    "4411",  # cruise lines
    "7011",  # other lodging
    "7512-7513",  # vehicle and truck rental
    "7519",  # motor homes
)

FUEL: Final = mccs("5542")
"""Automated fuel pumps."""

TIPPED: Final = mccs(
    "4121",  # taxis
    "5812-5814",  # restaurants, bars
    "7230",  # barbers, beauty shops
)


class FeeRate(Data, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a cleared capture costs its merchant: a share and a fixed part, for a range of MCCs in a
    country ("" for all). The first that fits applies."""

    interchange_basis_points: int
    interchange_fixed: int
    """Minor units of the payment's currency."""
    scheme_basis_points: int
    scheme_fixed: int = 0
    first_mcc: str = ""
    last_mcc: str = "9999"
    country: str = ""

    def applies_to(self, merchant: Merchant) -> bool:
        return self.first_mcc <= merchant.mcc <= self.last_mcc and self.country in ("", merchant.country)


class Terms(Data, frozen=True, kw_only=True):
    hold_ms: int = 7 * DAY_MS
    hold_travel_ms: int = 31 * DAY_MS
    travel: frozenset[str] = TRAVEL
    """MCCs whose holds are valid for `hold_travel_ms`."""
    hold_fuel_ms: int = 2 * HOUR_MS
    """Of holds at `FUEL`: the amount is known when the tank is full."""
    request_window_ms: int = 24 * HOUR_MS
    """A request id is remembered this long in event time."""
    tolerances: tuple[tuple[frozenset[str], int], ...] = ((TRAVEL, 1_500), (TIPPED, 2_000))
    """MCCs, and the basis points by which their captures may exceed what was authorized, because the final
    amount is not known when the card is read."""
    fees: tuple[FeeRate, ...] = (
        FeeRate(interchange_basis_points=150, interchange_fixed=10, scheme_basis_points=13),
    )

    mirror_refund_fees: bool = False
    """The merchant gets the fees back with a refund, in proportion; False: they are kept."""

    def hold_ms_of(self, merchant: Merchant) -> int:
        """How long a hold of this merchant is valid."""
        if merchant.mcc in self.travel:
            return self.hold_travel_ms
        return self.hold_fuel_ms if merchant.mcc in FUEL else self.hold_ms

    def tolerance_of(self, merchant: Merchant, authorized: int) -> int:
        """Minor units that captures may exceed `authorized` by."""
        for codes, basis_points in self.tolerances:
            if merchant.mcc in codes:
                return share(authorized, basis_points)
        return 0

    def fees_of(self, merchant: Merchant, amount: int) -> tuple[int, int]:
        """(interchange, scheme fee) of a cleared capture of `amount`, each rounded half up. They may
        exceed a small amount: the merchant then owes."""
        for rate in self.fees:
            if rate.applies_to(merchant):
                return (
                    share(amount, rate.interchange_basis_points) + rate.interchange_fixed,
                    share(amount, rate.scheme_basis_points) + rate.scheme_fixed,
                )
        return 0, 0


DEFAULT_TERMS: Final = Terms()


class InvalidFees(ValueError):
    """A fee schedule that cannot be used. The text says where."""


def fees_of(data: bytes) -> tuple[FeeRate, ...]:
    """A fee schedule as JSON: a list of rates, the first that fits applies, so the last should fit all.
    Raises `InvalidFees`."""
    try:
        rates = msgspec.json.decode(data, type=tuple[FeeRate, ...])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidFees(str(error)) from None
    for number, rate in enumerate(rates):
        shares = rate.interchange_basis_points, rate.scheme_basis_points
        if min(*shares, rate.interchange_fixed, rate.scheme_fixed) < 0 or max(shares) > 10_000:
            raise InvalidFees(f"rate {number}: shares are 0 to 10000 basis points, fixed parts 0 or more")
    if not rates:
        raise InvalidFees("there is no rate: one with nothing but 0 would charge nothing")
    return rates
