"""What an account must do: a naive model, made from the HTTP contract alone.

It is deliberately plain (dictionaries and ifs) and shares no code with the program that it checks.
Amounts are integers of minor units.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

VELOCITY_COUNT: Final = 10
"""Requests a card may make within 60 s; the next one is declined with 65."""
VELOCITY_AMOUNT: Final = 5_000_00
"""What they may ask for together, in cents; above it 61."""

STATUS_CODES: Final = {"closed": "14", "lost": "41", "stolen": "43", "blocked": "62"}


@dataclass
class ModelPayment:
    """A payment as the client must see it."""

    amount: int
    status: str
    code: str
    authorized: int = 0
    captured: int = 0
    reversed: int = 0
    held: int = 0


@dataclass
class ModelAccount:
    """`known` of False: a card that was never opened."""

    currency: str = "USD"
    limit: int = 0
    status: str = "active"
    expired: bool = False
    known: bool = True
    held: int = 0
    posted: int = 0
    payments: dict[str, ModelPayment] = field(default_factory=dict)
    """By request id."""
    cancelled: set[str] = field(default_factory=set)
    """Request ids whose reversal came before them."""
    count: int = 0
    """Requests that risk has counted. The whole run fits into one window, or nothing here depends on it."""
    asked: int = 0

    @property
    def available(self) -> int:
        return self.limit - self.posted - self.held

    def decline_code(self, currency: str, cvv_match: bool | None) -> str:
        """Of a request as such, whatever its amount; "" when nothing speaks against it."""
        if not self.known:
            return "14"
        if self.status in STATUS_CODES:
            return STATUS_CODES[self.status]
        if self.expired:
            return "54"
        if currency != self.currency:
            return "57"
        if cvv_match is False:
            return "05"
        if self.count > VELOCITY_COUNT:
            return "65"
        if self.asked > VELOCITY_AMOUNT and self.currency == "USD":
            return "61"
        return ""

    def authorize(
        self,
        request_id: str,
        amount: int,
        *,
        currency: str,
        cvv_match: bool | None = None,
        partial: bool = False,
        capture: bool = False,
    ) -> ModelPayment:
        self.count += 1
        self.asked += amount
        if request_id in self.cancelled:
            payment = self.payments[request_id] = ModelPayment(amount, "reversed", "68")
            return payment
        code = self.decline_code(currency, cvv_match)
        granted = amount
        if not code and amount > self.available:
            if partial and self.available > 0:
                code, granted = "10", self.available
            else:
                code = "51"
        if code and code != "10":
            payment = ModelPayment(amount, "declined", code)
        else:
            status = "partially_authorized" if code == "10" else "authorized"
            payment = ModelPayment(amount, status, code or "00", authorized=granted, held=granted)
            self.held += granted
            if capture:
                self.capture(payment, granted, final=True)
        self.payments[request_id] = payment
        return payment

    def increment(self, payment: ModelPayment, amount: int) -> str:
        """Its response code."""
        self.count += 1
        self.asked += amount
        code = self.decline_code(self.currency, None)
        if code:
            return code
        if amount > self.available:
            return "51"
        payment.authorized += amount
        payment.held += amount
        self.held += amount
        return "00"

    def capture(self, payment: ModelPayment, amount: int, *, final: bool) -> bool:
        """Whether it was possible."""
        if amount > payment.held or payment.held == 0:
            return False
        payment.captured += amount
        payment.held -= amount
        self.held -= amount
        self.posted += amount
        if final or payment.held == 0:
            self.held -= payment.held
            payment.held = 0
            payment.status = "captured"
        else:
            payment.status = "partially_captured"
        return True

    def reverse(self, payment: ModelPayment, amount: int) -> bool:
        """Whether it was possible."""
        if amount > payment.held or payment.held == 0:
            return False
        payment.held -= amount
        payment.reversed += amount
        self.held -= amount
        if payment.held == 0:
            payment.status = "captured" if payment.captured else "reversed"
        return True

    def pay(self, amount: int) -> None:
        self.posted -= amount
