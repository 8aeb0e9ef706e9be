"""What decisions depend on, from docs/domain.md: what may follow what, what each command may do, why an
authorization is declined, how long a hold lasts, by how much a capture may exceed it, what a currency is."""

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

INTERNAL: Final = {"clearing": "record_clearing", "reversal": "reverse"}
"""Clients that are services -> the one command that each may send. Their requests are in the log, not in the
history of a client."""

REFUSED: Final = frozenset({"400", "404", "409"})
DOES: Final[dict[str, frozenset[str]]] = {
    command: REFUSED.union(kinds.split())
    for command, kinds in {
        "authorize": "payment_authorized payment_captured payment_declined payment_unknown_card",
        "increment": "payment_incremented",
        "capture": "payment_captured",
        "reverse": "payment_reversed request_cancelled",
        "refund": "payment_refunded",
        "record_clearing": "capture_cleared capture_rejected",
        "open_chargeback": "chargeback_opened",
        "represent_chargeback": "chargeback_represented",
        "accept_chargeback": "chargeback_accepted",
        "open_account": "account_opened",
        "change_account": "account_changed",
        "pay_account": "account_paid",
    }.items()
}
"""Command -> outcomes of the first one of its request: a kind of event, or the status of a refusal."""
LATE: Final = frozenset({"payment_reversed 68", "payment_unknown_card 68"})
"""What an authorization does that was cancelled before it came."""
UNDONE: Final = LATE | {"payment_refunded 68", "409"}
"""What a time-out does when no other attempt stands by the answer; 409: there was nothing to undo."""

_KINDS: Final = {
    command: {outcome.removesuffix(" 68") for outcome in outcomes}
    for command, outcomes in {
        **DOES, "authorize": DOES["authorize"] | LATE, "time_out_reversal": UNDONE,
    }.items()
}  # fmt: skip
MADE_BY: Final = {
    kind: {command for command, kinds in _KINDS.items() if kind in kinds}
    for kind in set[str]().union(*_KINDS.values())
}
"""Event -> the commands that may make it. Holds expire by time, whatever command tells it."""

DECIMALS: Final = {
    code: decimals
    for decimals, codes in {
        0: "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF",
        3: "BHD IQD JOD KWD LYD OMR TND",
        4: "CLF UYW",
    }.items()
    for code in codes.split()
}
"""ISO 4217's currencies that have not two."""


def decimals_of(currency: str) -> int:
    return DECIMALS.get(currency, 2)


TRAVEL: Final = {*range(3351, 4000), 4411, 7011, 7512, 7513, 7519}
TIPPED: Final = {4121, 5812, 5813, 5814, 7230}
FUEL: Final = {5542}

HOUR_MS: Final = 3_600_000
DAY_MS: Final = 24 * HOUR_MS
CYCLE_MS: Final = DAY_MS
"""Of settlement, where nothing else is said."""
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

    @classmethod
    def lasting(cls, days: float, travel_days: float, fuel_s: float) -> Holds:
        return cls(round(days * DAY_MS), round(travel_days * DAY_MS), round(fuel_s * 1_000))

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
