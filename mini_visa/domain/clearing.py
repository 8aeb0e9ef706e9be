"""Clearing: captures become presentments to the clearing house, and what moves a merchant's money becomes
an item of its settlement.
"""

from __future__ import annotations

from functools import cache
from typing import Final

from mini_visa.domain.events import (
    CaptureCleared,
    CaptureRejected,
    ChargebackOpened,
    ChargebackRepresented,
    FeesReturned,
    PaymentCaptured,
    PaymentEvent,
    PaymentFact,
    PaymentRefunded,
)
from mini_visa.domain.ids import account_of
from mini_visa.domain.ledger import NO_MERCHANT, payable_of, postings_of
from mini_visa.domain.messages import Message
from mini_visa.domain.payment import Card, Merchant

ACCEPTED: Final = "accepted"
REJECTED: Final = "rejected"
CANCELLED: Final = "cancelled"
"""The presentment was called back before the clearing house had decided: for good, as a rejection."""


class Presentment(Message, frozen=True, kw_only=True, omit_defaults=True, tag="presentment/1"):
    """One capture, as it is presented to the clearing house."""

    key: str
    """The idempotency key: the clearing house decides once per key, however often it is asked."""
    payment_id: str
    n: int
    amount: int
    """Minor units of `currency`."""
    currency: str
    captured_at: int
    card: Card
    merchant: Merchant = Merchant()
    authorization_code: str = ""
    forced: bool = False

    @property
    def account(self) -> str:
        return account_of(self.payment_id)


class CancelPresentment(Message, frozen=True, kw_only=True, omit_defaults=True, tag="cancel_presentment/1"):
    """No outcome came in time: call the presentment back. The answer is the final outcome, whichever it
    is, and a presentment that never arrived is cancelled before it can."""

    key: str
    payment_id: str
    n: int

    @property
    def account(self) -> str:
        return account_of(self.payment_id)


Submission = Presentment | CancelPresentment


class ClearingItem(Message, frozen=True, kw_only=True, omit_defaults=True, tag="clearing_item/1"):
    """One movement of what is owed to a merchant."""

    merchant_id: str
    currency: str
    kind: str
    """The event's name: capture_cleared, payment_refunded, chargeback_opened ..."""
    payment_id: str
    at: int
    sale: int = 0
    """Minor units for the merchant, before fees: a cleared capture, a won dispute."""
    returned: int = 0
    """Minor units against it: a refund, a chargeback."""
    interchange: int = 0
    scheme_fee: int = 0
    n: int = 0
    """The capture that cleared; 0: this is about no capture."""

    @property
    def net(self) -> int:
        """Minor units that are owed to the merchant from now on; negative: that it owes."""
        return self.sale - self.returned - self.interchange - self.scheme_fee


def key_of(payment_id: str, n: int) -> str:
    """The presentment of capture `n`."""
    return f"{payment_id}-{n}"


def presentment_of(event: PaymentCaptured) -> Presentment:
    payment = event.payment
    return Presentment(
        key=key_of(payment.payment_id, event.n),
        payment_id=payment.payment_id,
        n=event.n,
        amount=event.amount,
        currency=payment.currency,
        captured_at=event.at,
        card=payment.card,
        merchant=payment.merchant,
        authorization_code=payment.authorization_code,
        forced=event.forced,
    )


def item_of(event: PaymentFact) -> ClearingItem | None:
    """What `event` changes in what is owed to its merchant, by the very posting that the ledger makes of
    it: so settlement and ledger cannot differ."""
    if type(event) not in ON_MERCHANTS or not isinstance(event, PaymentEvent):
        return None
    payable = payable_of(event.payment.merchant.id)
    posting = next((posting for posting in postings_of(event) if posting.account == payable), None)
    if posting is None:
        return None
    sale, returned, interchange, scheme_fee, n = max(0, -posting.amount), max(0, posting.amount), 0, 0, 0
    if isinstance(event, CaptureCleared):
        sale, returned = event.amount, event.refund_posted
        interchange, scheme_fee, n = event.interchange, event.scheme_fee, event.n
    elif isinstance(event, FeesReturned):
        amount = event.posted if isinstance(event, PaymentRefunded) else event.refund_posted - event.amount
        sale, returned = max(0, -amount), max(0, amount)
    if isinstance(event, FeesReturned):
        interchange -= event.interchange_returned
        scheme_fee -= event.scheme_fee_returned
    item = ClearingItem(
        merchant_id=event.payment.merchant.id or NO_MERCHANT,
        currency=posting.currency,
        kind=name_of(event),
        payment_id=event.payment.payment_id,
        at=event.at,
        sale=sale,
        returned=returned,
        interchange=interchange,
        scheme_fee=scheme_fee,
        n=n,
    )
    assert item.net == -posting.amount, "an item that the ledger does not know"
    return item


ON_MERCHANTS: Final = frozenset(
    {CaptureCleared, CaptureRejected, PaymentRefunded, ChargebackOpened, ChargebackRepresented}
)
"""Events that may post on what is owed to a merchant; the others need not be looked at."""


def name_of(message: Message) -> str:
    """A message's type without its version."""
    return _name(type(message))


@cache
def _name(kind: type[Message]) -> str:
    return str(kind.__struct_config__.tag).partition("/")[0]
