"""The ledger: which accounts there are, and what each event posts on them. Always balanced.

A posting's amount is positive for a debit and negative for a credit, in minor units; the postings of one
event sum to zero.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from mini_visa.domain.events import (
    AccountOpened,
    AccountPaid,
    CaptureCleared,
    CaptureRejected,
    ChargebackOpened,
    ChargebackRepresented,
    HoldExpired,
    PaymentAuthorized,
    PaymentCaptured,
    PaymentFact,
    PaymentIncremented,
    PaymentRefunded,
    PaymentReversed,
)

# The chart of accounts. The first two are off-balance: they only say what is promised.
HOLDS_CONTRA: Final = "holds:contra"
CLEARING_SUSPENSE: Final = "clearing:suspense"
INTERCHANGE: Final = "income:interchange"
SCHEME_FEES: Final = "income:scheme"
BANK: Final = "settlement:bank"
OPENING: Final = "opening:balances"
"""The other side of what accounts brought along from another system."""

NO_MERCHANT: Final = "unnamed"
"""Stands for the merchant where a request named none."""


def holds_of(account: str) -> str:
    """What a cardholder's open holds are on."""
    return f"holds:cardholder:{account}"


def receivable_of(account: str) -> str:
    """What a cardholder owes."""
    return f"receivable:cardholder:{account}"


def payable_of(merchant_id: str) -> str:
    """What is owed to a merchant."""
    return f"payable:merchant:{merchant_id or NO_MERCHANT}"


class Posting(NamedTuple):
    account: str
    currency: str
    amount: int
    """Minor units: debit > 0, credit < 0."""


Postings = tuple[Posting, ...]


def postings_of(event: PaymentFact) -> Postings:
    """What `event` posts: each ledger account at most once, no zero amounts, in sum zero. Events
    that move nothing (a decline, a refusal, an accepted chargeback) post nothing."""
    template = _TEMPLATES.get(type(event))
    return () if template is None else template(event)


def _entry(currency: str, *lines: tuple[str, int]) -> Postings:
    sums: dict[str, int] = {}
    for account, amount in lines:
        sums[account] = sums.get(account, 0) + amount
    postings = tuple(Posting(account, currency, amount) for account, amount in sums.items() if amount)
    assert sum(sums.values()) == 0, "an entry that does not balance"
    return postings


def _hold(event: PaymentAuthorized | PaymentIncremented) -> Postings:
    return _move(event.account.currency, event.amount, holds_of(event.payment.account), HOLDS_CONTRA)


def _release(event: PaymentReversed | HoldExpired) -> Postings:
    return _move(event.account.currency, event.amount, HOLDS_CONTRA, holds_of(event.payment.account))


def _move(currency: str, amount: int, debit: str, credit: str) -> Postings:
    """The common entry: one debit, one credit."""
    if not amount:
        return ()
    return Posting(debit, currency, amount), Posting(credit, currency, -amount)


def _capture(event: PaymentCaptured) -> Postings:
    account, released = event.payment.account, event.hold_used + event.hold_freed
    return _entry(
        event.account.currency,
        (HOLDS_CONTRA, released),
        (holds_of(account), -released),
        (receivable_of(account), event.amount),
        (CLEARING_SUSPENSE, -event.amount),
    )


def _clear(event: CaptureCleared) -> Postings:
    payment = event.payment
    interchange = event.interchange - event.interchange_returned
    scheme_fee = event.scheme_fee - event.scheme_fee_returned
    return _entry(
        event.account.currency,
        (CLEARING_SUSPENSE, event.amount),
        (payable_of(payment.merchant.id), interchange + scheme_fee - event.amount + event.refund_posted),
        (INTERCHANGE, -interchange),
        (SCHEME_FEES, -scheme_fee),
        (receivable_of(payment.account), -event.refund_posted),
    )


def _reject(event: CaptureRejected) -> Postings:
    account = event.payment.account
    return _move(event.account.currency, event.amount, CLEARING_SUSPENSE, receivable_of(account))


def _refund(event: PaymentRefunded) -> Postings:
    return _give_back(event, event.posted)


def _give_back(event: PaymentRefunded | ChargebackRepresented, amount: int) -> Postings:
    """From the merchant to the cardholder (negative: the other way), less the fees that go back."""
    payment, interchange, scheme_fee = event.payment, event.interchange_returned, event.scheme_fee_returned
    return _entry(
        event.account.currency,
        (payable_of(payment.merchant.id), amount - interchange - scheme_fee),
        (INTERCHANGE, interchange),
        (SCHEME_FEES, scheme_fee),
        (receivable_of(payment.account), -amount),
    )


def _charge_back(event: ChargebackOpened) -> Postings:
    payment = event.payment
    return _move(
        event.account.currency,
        event.amount,
        payable_of(payment.merchant.id),
        receivable_of(payment.account),
    )


def _represent(event: ChargebackRepresented) -> Postings:
    return _give_back(event, event.refund_posted - event.amount)


def _open(event: AccountOpened) -> Postings:
    account = event.account
    return _move(account.currency, account.posted, receivable_of(account.account_id), OPENING)


def _pay(event: AccountPaid) -> Postings:
    return _move(event.account.currency, event.amount, BANK, receivable_of(event.account.account_id))


_TEMPLATES: Final[dict[type, Callable[[Any], Postings]]] = {
    PaymentAuthorized: _hold,
    PaymentIncremented: _hold,
    PaymentReversed: _release,
    HoldExpired: _release,
    PaymentCaptured: _capture,
    CaptureCleared: _clear,
    CaptureRejected: _reject,
    PaymentRefunded: _refund,
    ChargebackOpened: _charge_back,
    ChargebackRepresented: _represent,
    AccountOpened: _open,
    AccountPaid: _pay,
}
