"""Requests on cards, and a risk service of one partition in memory."""

from __future__ import annotations

from typing import Any

from agents.risk import assess
from mini_visa import topics
from mini_visa.domain.commands import Authorize, FraudAlert, Increment, PaymentOutcome
from mini_visa.domain.payment import Card, Merchant, RuleHit, Verdict
from mini_visa.streams.testing import Driver

NOON = 1_767_268_800_000
"""2026-01-01T12:00:00Z, at the start of a bucket of every width that a test uses."""
SECOND = 1_000
HOUR = 3_600_000
DAY = 24 * HOUR


def an_authorize(request_id: str, amount: int = 10_00, **fields: Any) -> Authorize:
    defaults: dict[str, Any] = {
        "account": "acc-1",
        "currency": "USD",
        "currency_given": True,
        "card": Card(token="acc-1", bin="411111", last4="1111"),
        "merchant": Merchant(id="m1", mcc="5411"),
    }
    return Authorize(request_id=request_id, amount=amount, **(defaults | fields))


def an_increment(request_id: str, amount: int = 10_00, **fields: Any) -> Increment:
    defaults: dict[str, Any] = {"account": "acc-1", "payment_id": "pay-1", "exponent": 2}
    return Increment(request_id=request_id, amount=amount, **(defaults | fields))


def an_outcome(response_code: str, request_id: str = "r", account: str = "acc-1") -> PaymentOutcome:
    return PaymentOutcome(
        account=account,
        payment_id="pay-1",
        request_id=request_id,
        response_code=response_code,
        amount=10_00,
        merchant_id="m1",
    )


class RiskService(Driver):
    """The risk processor with one partition."""

    def __init__(self) -> None:
        super().__init__(assess)

    def ask(self, message: Any, at: int = NOON) -> Verdict | None:
        """Send a message at `at`; the verdict on it, or None when nothing was passed on."""
        sent = len(self.sent(topics.ACCOUNT_COMMANDS))
        account = getattr(message, "account", "any")
        self.send(message, key=account.encode(), at=at)
        passed_on = self.sent(topics.ACCOUNT_COMMANDS)[sent:]
        return passed_on[0].verdict if passed_on else None

    def alerts(self) -> list[FraudAlert]:
        return self.sent(topics.FRAUD_ALERTS)


def hits_of(verdict: Verdict | None) -> list[RuleHit]:
    assert verdict is not None, "the request was not passed on"
    return list(verdict.hits)
