"""Events: facts of an account, the source of truth. They travel on payment.events, keyed by account.

One event tells everything one command did: `what` it was, by how much, and the payment and the
account as they are after it. So a reader needs no other event to understand one.
"""

from __future__ import annotations

from mini_visa.domain.messages import Message
from mini_visa.domain.payment import Account, Payment


class AccountEvent(Message, frozen=True, kw_only=True, omit_defaults=True):
    """`account` and the payment are the state AFTER the event."""

    at: int
    """Event time, ms."""
    seq: int
    """1, 2, 3 ... per account, without a gap."""
    position: int
    """Offset of the command in account.commands; the partition is the event's own."""
    account: Account
    client: str = ""
    request_id: str = ""


class AccountOpened(AccountEvent, frozen=True, kw_only=True, omit_defaults=True, tag="account_opened/1"):
    pass


class AccountChanged(AccountEvent, frozen=True, kw_only=True, omit_defaults=True, tag="account_changed/1"):
    """Limit or status changed."""


class AccountPaid(AccountEvent, frozen=True, kw_only=True, omit_defaults=True, tag="account_paid/1"):
    amount: int


class PaymentEvent(AccountEvent, frozen=True, kw_only=True, omit_defaults=True):
    payment: Payment
    amount: int = 0
    """Minor units that this event is about (held, captured, released, refunded ...)."""
    response_code: str = "00"
    """Of this operation: an increment may be declined while the payment stays authorized."""
    available_before: int = 0


class PaymentAuthorized(
    PaymentEvent, frozen=True, kw_only=True, omit_defaults=True, tag="payment_authorized/1"
):
    """`amount` is the hold placed (0 for an account check)."""


class PaymentUnknownCard(
    Message, frozen=True, kw_only=True, omit_defaults=True, tag="payment_unknown_card/1"
):
    """A request on a card that has no account: declined with 14. There is no account state."""

    at: int
    position: int
    payment: Payment
    client: str = ""
    request_id: str = ""


class PaymentDeclined(PaymentEvent, frozen=True, kw_only=True, omit_defaults=True, tag="payment_declined/1"):
    pass


class PaymentIncremented(
    PaymentEvent, frozen=True, kw_only=True, omit_defaults=True, tag="payment_incremented/1"
):
    """Approved or declined (`response_code`); `amount` is what the hold grew by."""


class PaymentCaptured(PaymentEvent, frozen=True, kw_only=True, omit_defaults=True, tag="payment_captured/1"):
    """The first event of a payment that was authorized and captured in one: it never was on hold."""

    n: int
    hold_used: int = 0
    hold_freed: int = 0
    """Rest of the hold that a final capture lets go, beyond `hold_used`."""
    forced: bool = False


class PaymentReversed(PaymentEvent, frozen=True, kw_only=True, omit_defaults=True, tag="payment_reversed/1"):
    """All or part of a hold released. By time-out: `response_code` 68."""


class RequestCancelled(Message, frozen=True, kw_only=True, omit_defaults=True, tag="request_cancelled/1"):
    """A reversal arrived before its request: the request, if it comes, is answered `reversed`."""

    at: int
    position: int
    account_id: str
    client: str
    original_request_id: str
    request_id: str = ""


class HoldExpired(PaymentEvent, frozen=True, kw_only=True, omit_defaults=True, tag="hold_expired/1"):
    pass


class FeesReturned(PaymentEvent, frozen=True, kw_only=True, omit_defaults=True):
    """An event with which refunds may post, and fees go back where the terms say so."""

    interchange_returned: int = 0
    scheme_fee_returned: int = 0


class CaptureCleared(FeesReturned, frozen=True, kw_only=True, omit_defaults=True, tag="capture_cleared/1"):
    n: int
    interchange: int
    scheme_fee: int
    refund_posted: int = 0
    """Reserved refunds that post with this clearing."""


class CaptureRejected(PaymentEvent, frozen=True, kw_only=True, omit_defaults=True, tag="capture_rejected/1"):
    n: int
    refund_cancelled: int = 0
    reason: str = ""


class PaymentRefunded(FeesReturned, frozen=True, kw_only=True, omit_defaults=True, tag="payment_refunded/1"):
    """`posted` of `amount` posts now; the rest is reserved until its capture clears."""

    n: int
    posted: int = 0


class ChargebackOpened(
    PaymentEvent, frozen=True, kw_only=True, omit_defaults=True, tag="chargeback_opened/1"
):
    n: int
    reason_code: str = ""


class ChargebackRepresented(
    FeesReturned, frozen=True, kw_only=True, omit_defaults=True, tag="chargeback_represented/1"
):
    n: int
    refund_posted: int = 0
    """Reserved refunds that post now, against what was given back."""


class ChargebackAccepted(
    PaymentEvent, frozen=True, kw_only=True, omit_defaults=True, tag="chargeback_accepted/1"
):
    n: int


class RequestRefused(Message, frozen=True, kw_only=True, omit_defaults=True, tag="request_refused/1"):
    """A command that its state forbids (404, 409, 422): recorded, nothing changed."""

    at: int
    position: int
    account_id: str
    client: str
    request_id: str
    http_status: int
    reason: str
    payment_id: str = ""


class TimePassed(Message, frozen=True, kw_only=True, omit_defaults=True, tag="time_passed/1"):
    """A tick, passed on so that readers of payment.events have deadlines of their own."""

    at: int
    position: int


PaymentFact = (
    AccountOpened | AccountChanged | AccountPaid | PaymentAuthorized | PaymentUnknownCard | PaymentDeclined
    | PaymentIncremented | PaymentCaptured | PaymentReversed | RequestCancelled | HoldExpired | CaptureCleared
    | CaptureRejected | PaymentRefunded | ChargebackOpened | ChargebackRepresented | ChargebackAccepted
    | RequestRefused | TimePassed
)  # fmt: skip
