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
class ModelCapture:
    amount: int
    state: str = "submitted"


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
    cleared: int = 0
    refunded: int = 0
    refund_reserved: int = 0
    charged_back: int = 0
    captures: list[ModelCapture] = field(default_factory=list)
    disputes: list[int] = field(default_factory=list)
    """Amounts of its chargebacks, in order."""
    expired: bool = False
    called_off: bool = False
    """Its captures were rejected while something was still held: that is released then."""

    @property
    def compensated(self) -> bool:
        """It was captured, and nothing of that stands."""
        return bool(self.captures) and all(capture.state == "rejected" for capture in self.captures)

    @property
    def left_to_refund(self) -> int:
        return self.captured - self.refunded - self.refund_reserved - self.charged_back

    @property
    def left_to_dispute(self) -> int:
        return self.cleared - self.refunded - self.charged_back


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

    def asked_for(self, amount: int) -> None:
        """What the velocity rules count."""
        self.count += 1
        self.asked += amount

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
        self.asked_for(amount)
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
        self.asked_for(amount)
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
        """Whether it was possible. When the hold has expired it still posts what was authorized."""
        due = payment.authorized - payment.captured if payment.expired else payment.held
        if amount > due or due == 0:
            return False
        used = 0 if payment.expired else amount
        payment.captures.append(ModelCapture(amount))
        payment.captured += amount
        payment.held -= used
        self.held -= used
        self.posted += amount
        if final or amount == due:
            self.held -= payment.held
            payment.held = 0
            payment.status = "captured"
        else:
            payment.status = "partially_captured"
        return True

    def expire(self, payment: ModelPayment) -> None:
        self.held -= payment.held
        payment.held = 0
        payment.expired = True
        payment.status = "expired"

    def clear(self, payment: ModelPayment, n: int, *, accepted: bool) -> None:
        """The clearing house's outcome for capture `n`, once."""
        capture = payment.captures[n - 1]
        if accepted:
            capture.state = "cleared"
            payment.cleared += capture.amount
            self._post_refunds(payment)
            return
        capture.state = "rejected"
        payment.captured -= capture.amount
        self.posted -= capture.amount
        if payment.compensated and payment.held:
            payment.called_off = self.reverse(payment, payment.held)

    def refund(self, payment: ModelPayment, amount: int) -> bool:
        """Whether it was possible."""
        if amount > payment.left_to_refund or amount == 0:
            return False
        payment.refund_reserved += amount
        self._post_refunds(payment)
        return True

    def _post_refunds(self, payment: ModelPayment) -> None:
        posts = max(0, min(payment.refund_reserved, payment.left_to_dispute))
        payment.refund_reserved -= posts
        payment.refunded += posts
        self.posted -= posts

    def charge_back(self, payment: ModelPayment, amount: int) -> bool:
        """Whether it was possible."""
        if amount > payment.left_to_dispute or amount == 0:
            return False
        payment.disputes.append(amount)
        payment.charged_back += amount
        self.posted -= amount
        return True

    def represent(self, payment: ModelPayment, n: int) -> None:
        payment.charged_back -= payment.disputes[n - 1]
        self.posted += payment.disputes[n - 1]

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
