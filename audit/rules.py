"""What decisions depend on, from docs/domain.md: what may follow what, why an authorization is declined,
how long a hold lasts, by how much a capture may exceed it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

STATUS_CODES: Final = {"closed": "14", "lost": "41", "stolen": "43", "blocked": "62"}

AFTER_CAPTURE: Final = (
    "capture_cleared", "capture_rejected", "payment_refunded", "chargeback_opened",
    "chargeback_represented", "chargeback_accepted",
)  # fmt: skip
NEXT: Final[dict[tuple[str, str], set[str]]] = {
    ("", "payment_authorized"): {"authorized", "partially_authorized"},
    ("", "payment_captured"): {"captured"},
    ("", "payment_declined"): {"declined"},
    ("", "payment_unknown_card"): {"declined", "reversed"},
    ("", "payment_reversed"): {"reversed"},
    ("authorized", "payment_incremented"): {"authorized"},
    ("authorized", "payment_captured"): {"partially_captured", "captured"},
    ("authorized", "payment_reversed"): {"authorized", "reversed"},
    ("authorized", "hold_expired"): {"expired"},
    ("partially_authorized", "payment_incremented"): {"partially_authorized"},
    ("partially_authorized", "payment_captured"): {"partially_captured", "captured"},
    ("partially_authorized", "payment_reversed"): {"partially_authorized", "reversed"},
    ("partially_authorized", "hold_expired"): {"expired"},
    ("declined", "payment_reversed"): {"reversed"},
    ("declined", "payment_unknown_card"): {"reversed"},
    ("reversed", "payment_reversed"): {"reversed"},
    ("expired", "payment_captured"): {"partially_captured", "captured"},
    ("expired", "payment_reversed"): {"reversed"},
    ("partially_captured", "payment_incremented"): {"partially_captured"},
    ("partially_captured", "payment_captured"): {"partially_captured", "captured"},
    ("partially_captured", "payment_reversed"): {"partially_captured", "captured", "reversed"},
    ("partially_captured", "hold_expired"): {"partially_captured"},
    ("captured", "payment_reversed"): {"captured"},
    **{(status, kind): {status} for status in ("partially_captured", "captured") for kind in AFTER_CAPTURE},
}
"""(status before, event) -> statuses after; "": there was no payment."""

MADE_BY: Final = {
    "account_opened": {"open_account"},
    "account_changed": {"change_account"},
    "account_paid": {"pay_account"},
    "payment_authorized": {"authorize"},
    "payment_declined": {"authorize"},
    "payment_unknown_card": {"authorize", "time_out_reversal"},
    "payment_incremented": {"increment"},
    "payment_captured": {"authorize", "capture"},
    "payment_reversed": {"authorize", "reverse", "time_out_reversal"},
    "payment_refunded": {"refund", "time_out_reversal"},
    "capture_cleared": {"record_clearing"},
    "capture_rejected": {"record_clearing"},
    "chargeback_opened": {"open_chargeback"},
    "chargeback_represented": {"represent_chargeback"},
    "chargeback_accepted": {"accept_chargeback"},
}
"""Event -> the commands that may make it. Holds expire by time, whatever command tells it."""

TRAVEL: Final = {*range(3351, 4000), 4411, 7011, 7512, 7513, 7519}
TIPPED: Final = {4121, 5812, 5813, 5814, 7230}
FUEL: Final = {5542}

HOUR_MS: Final = 3_600_000
DAY_MS: Final = 24 * HOUR_MS
PARTS_MAX: Final = 100
"""Captures, refunds and chargebacks of a payment, each."""


def share(amount: int, basis_points: int) -> int:
    """Rounded half up."""
    return (2 * amount * basis_points + 10_000) // 20_000


def tolerance(mcc: str, whole: int) -> int:
    """What captures may exceed `whole` by."""
    code = _number(mcc)
    return share(whole, 1_500) if code in TRAVEL else share(whole, 2_000) if code in TIPPED else 0


class Holds(NamedTuple):
    """How long holds last, ms."""

    usual: int = 7 * DAY_MS
    travel: int = 31 * DAY_MS
    fuel: int = 2 * HOUR_MS

    def of(self, mcc: str) -> int:
        code = _number(mcc)
        return self.travel if code in TRAVEL else self.fuel if code in FUEL else self.usual


def _number(mcc: str) -> int:
    return int(mcc) if mcc.isdigit() else 0


DEFAULT_HOLDS: Final = Holds()


def reason_to_decline(status: str, expiry: str, currency: str, command: dict[str, Any], at: int) -> str:
    """The code of the first reason that declines before money is looked at, for an account with this status,
    card expiry ("YYYY-MM", "": not recorded) and currency; "": none does. Increments have the same order."""
    if status != "active":
        return STATUS_CODES[status]
    month, given = f"{datetime.fromtimestamp(at // 1_000, UTC):%Y-%m}", command.get("expiry", "")
    if any(known and known < month for known in (expiry, given)) or (expiry and given and expiry != given):
        return "54"
    if command.get("currency_given") and command["currency"] != currency:
        return "57"
    if command.get("cvv_match") is False:
        return "05"
    return str(command.get("verdict", {}).get("response_code", ""))
