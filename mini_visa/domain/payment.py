"""The payment and the account as plain data: what is remembered, and what an event shows of them.

All amounts are integers of minor units of the record's currency. All times are event time in
milliseconds since the epoch, UTC.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import msgspec

NO_TIME = 0

Text = Annotated[str, msgspec.Meta(max_length=256)]
"""What the outside wrote: bounded, so that no row, event or answer grows beyond what is expected."""


class Data(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Base of value types: frozen, so that a change is always a new value, and none is ever in a cycle."""


class AccountStatus(StrEnum):
    ACTIVE = "active"
    BLOCKED = "blocked"
    LOST = "lost"
    STOLEN = "stolen"
    CLOSED = "closed"


class PaymentStatus(StrEnum):
    __hash__ = str.__hash__  # An enum's own is written in Python: ten times as slow.

    AUTHORIZED = "authorized"
    PARTIALLY_AUTHORIZED = "partially_authorized"
    DECLINED = "declined"
    REVERSED = "reversed"
    EXPIRED = "expired"
    PARTIALLY_CAPTURED = "partially_captured"
    CAPTURED = "captured"


class CaptureState(StrEnum):
    """`clearing_status` of a capture; of a payment, that of its least advanced capture."""

    SUBMITTED = "submitted"
    CLEARED = "cleared"
    SETTLED = "settled"
    REJECTED = "rejected"
    COMPENSATED = "compensated"


class RefundState(StrEnum):
    RESERVED = "reserved"
    POSTED = "posted"
    CANCELLED = "cancelled"


class DisputeState(StrEnum):
    OPEN = "open"
    REPRESENTED = "represented"
    ACCEPTED = "accepted"


class Card(Data, frozen=True, kw_only=True):
    """What may be known of a card outside the gateway (PCI DSS 3.4: first six, last four)."""

    token: Text
    bin: Text
    last4: Text


class Merchant(Data, frozen=True, kw_only=True):
    """Who asks for the money, and where. ISO 8583 fields 42 (id), 18 (mcc), 41 (terminal)."""

    id: Text = ""
    mcc: Text = ""
    terminal_id: Text = ""
    country: Text = ""


class RuleHit(Data, frozen=True, kw_only=True):
    """A risk rule that fired: its version and the numbers it saw, so that it can be explained."""

    rule: str
    version: int
    outcome: str
    """decline, review or alert."""
    metric: str
    value: int
    threshold: int
    window_s: int = 0
    response_code: str = ""


class Verdict(Data, frozen=True, kw_only=True):
    """What risk says of a request. `response_code` is "" when risk does not decline."""

    score: int = 0
    response_code: str = ""
    hits: tuple[RuleHit, ...] = ()
    evaluated: tuple[str, ...] = ()
    """Every rule that was evaluated, as "id/version"."""


class Capture(Data, frozen=True, kw_only=True):
    """One capture (presentment). `id` is stable: the clearing house's idempotency key."""

    n: int
    amount: int
    at: int
    state: CaptureState = CaptureState.SUBMITTED
    forced: bool = False
    interchange: int = 0
    scheme_fee: int = 0
    reason: str = ""


class Refund(Data, frozen=True, kw_only=True):
    n: int
    amount: int
    at: int
    state: RefundState = RefundState.RESERVED
    posted: int = 0
    """Minor units of it that have been posted so far (a refund may wait for several captures)."""
    cancelled: int = 0
    """Minor units of it that never will be: the clearing they waited for was rejected."""


class Chargeback(Data, frozen=True, kw_only=True):
    n: int
    amount: int
    at: int
    reason_code: str = ""
    state: DisputeState = DisputeState.OPEN


class Payment(Data, frozen=True, kw_only=True):
    """A payment as it stands. `held` is derived, see `held_of`."""

    payment_id: str
    account: str
    client: str
    request_id: str
    card: Card
    currency: str
    amount: int
    """What was asked for."""
    status: PaymentStatus
    response_code: str
    created_at: int
    authorized: int = 0
    """Original approval plus approved increments."""
    captured: int = 0
    released: int = 0
    """Of the hold: reversed, expired, or freed by the final capture."""
    reversed: int = 0
    cleared: int = 0
    refunded: int = 0
    refund_reserved: int = 0
    charged_back: int = 0
    interchange_returned: int = 0
    """Fees that went back to the merchant with refunds."""
    scheme_fee_returned: int = 0
    authorization_code: str = ""
    expires_at: int = NO_TIME
    hold_ended: bool = False
    """No further capture against the hold: reversed, finally captured (expired: see status)."""
    expired: bool = False
    merchant: Merchant = Merchant()
    metadata: dict[str, str] = {}
    verdict: Verdict = Verdict()
    captures: tuple[Capture, ...] = ()
    refunds: tuple[Refund, ...] = ()
    chargebacks: tuple[Chargeback, ...] = ()
    forced: bool = False
    """The last capture was forced: posted although the hold was gone."""
    reason: str = ""


def held_of(payment: Payment) -> int:
    """Minor units still on hold: max(0, authorized - captured - released) while the hold lives."""
    if payment.hold_ended or payment.expired:
        return 0
    return max(0, payment.authorized - payment.captured - payment.released)


class Account(Data, frozen=True, kw_only=True):
    """A card account. `available = limit - posted - held`; it may be negative."""

    account_id: str
    bin: str
    last4: str
    currency: str
    limit: int
    status: AccountStatus = AccountStatus.ACTIVE
    expiry: str = ""
    """Card expiry "YYYY-MM", valid to the end of that month; "" when not recorded."""
    held: int = 0
    posted: int = 0
    opened_at: int = NO_TIME
    client: str = ""
    """Whose key opened it."""
    version: int = 0
    """Number of events so far: the next event of this account has `seq = version + 1`."""
    next_expiry: int = NO_TIME
    """No open hold expires before this; NO_TIME when none is open. It may be early (that hold was
    captured meanwhile) and is set right when it passes: so closing a hold needs no search."""

    @property
    def available(self) -> int:
        return self.limit - self.posted - self.held
