"""A naive model of one card account, written from the rules alone: lists, sums over all of them, no
indexes, no shared code with the domain. Slow and plain, so that it can be checked by reading.

Each method returns (HTTP status, response code, left); None stands for "not told".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

DAY = 86_400_000
TRAVEL = {"7011"}
TOLERANCE = {"7011": 15, "5812": 20}
DECLINE_BY_STATUS = {"closed": "14", "lost": "41", "stolen": "43", "blocked": "62"}

Answer = tuple[int, str | None, int | None]


@dataclass
class NaivePayment:
    key: int
    """Number of the command that made it."""
    status: str
    authorized: int = 0
    reversed: int = 0
    expires_at: int = 0
    open: bool = False
    """The hold is open."""
    expired: bool = False
    used: int = 0
    """Of the hold, by captures."""
    mcc: str = ""
    sale: bool = False
    captures: list[list[Any]] = field(default_factory=list)
    """[amount, "submitted" | "cleared" | "rejected"]"""
    refunds: list[list[int]] = field(default_factory=list)
    """[amount, posted, cancelled]"""
    chargebacks: list[list[Any]] = field(default_factory=list)
    """[amount, "open" | "represented" | "accepted"]"""

    @property
    def held(self) -> int:
        return max(0, self.authorized - self.reversed - self.used) if self.open else 0

    @property
    def captured(self) -> int:
        return sum(amount for amount, state in self.captures if state != "rejected")

    @property
    def cleared(self) -> int:
        return sum(amount for amount, state in self.captures if state == "cleared")

    @property
    def submitted(self) -> int:
        return sum(amount for amount, state in self.captures if state == "submitted")

    @property
    def refunded(self) -> int:
        return sum(posted for _, posted, _ in self.refunds)

    @property
    def reserved(self) -> int:
        return sum(amount - posted - cancelled for amount, posted, cancelled in self.refunds)

    @property
    def charged_back(self) -> int:
        return sum(amount for amount, state in self.chargebacks if state != "represented")

    @property
    def returnable(self) -> int:
        return self.captured - self.refunded - self.reserved - self.charged_back

    def settle_refunds(self) -> None:
        """Cancel what is not covered any more, newest first; post what cleared money covers, oldest first."""
        for refund in reversed(self.refunds):
            while self.returnable < 0 and refund[0] - refund[1] - refund[2] > 0:
                refund[2] += min(-self.returnable, refund[0] - refund[1] - refund[2])
        for refund in self.refunds:
            room = self.cleared - self.refunded - self.charged_back
            refund[1] += max(0, min(room, refund[0] - refund[1] - refund[2]))


@dataclass
class Remembered:
    at: int
    what: Any
    """The request's body; None: cancelled before it came, any body."""
    kind: str
    answer: Answer | None
    payment: NaivePayment | None = None
    told: set[str] = field(default_factory=set)
    gone: set[str] = field(default_factory=set)


class Naive:
    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.status = "active"
        self.paid = 0
        self.now = 0
        self.payments: list[NaivePayment] = []
        self.requests: dict[str, Remembered] = {}

    @property
    def held(self) -> int:
        return sum(payment.held for payment in self.payments)

    @property
    def posted(self) -> int:
        return sum(p.captured - p.refunded - p.charged_back for p in self.payments) - self.paid

    @property
    def available(self) -> int:
        return self.limit - self.posted - self.held

    def expire(self) -> None:
        for payment in self.payments:
            if payment.held and payment.expires_at <= self.now:
                payment.open, payment.expired = False, True
                if payment.status != "partially_captured":
                    payment.status = "expired"

    # -- requests ----------------------------------------------------------------------------------

    def request(self, kind: str, request_id: str, what: Any, attempt: str, number: int) -> Answer:
        """Any command but a time-out: `what` is its body as a dict."""
        known = self.requests.get(request_id)
        if known is not None and self.now >= known.at + DAY:
            known = None
        if known is not None:
            if known.kind != kind or (known.what is not None and known.what != what):
                return 422, None, None
            if known.answer is not None:
                if attempt not in known.gone:
                    known.told.add(attempt)
                return known.answer
        self.expire()
        payment: NaivePayment | None = None
        if known is not None:
            payment = NaivePayment(number, "reversed")
            self.payments.append(payment)
            answer: Answer = (200, "68", None)
        elif kind == "authorize":
            payment, answer = self.authorize(number, **what)
        else:
            answer = getattr(self, kind)(**what)
        gone = known.gone if known else set()
        self.requests[request_id] = Remembered(self.now, what, kind, answer, payment, {attempt} - gone, gone)
        return answer

    def time_out(self, request_id: str, what: Any, attempt: str) -> Answer:
        known = self.requests.get(request_id)
        if known is None or self.now >= known.at + DAY:
            self.expire()
            self.requests[request_id] = Remembered(self.now, what, "authorize", None, gone={attempt})
            return 200, "68", None
        if known.kind != "authorize" or known.what not in (None, what):
            return 422, None, None
        if attempt in known.gone:
            return known.answer or (200, "68", None)
        self.expire()
        known.gone.add(attempt)
        known.told.discard(attempt)
        if known.answer is None:
            return 200, "68", None
        if known.answer[1] == "68":
            return known.answer
        payment = known.payment
        if known.told or payment is None:
            return 409, None, None
        if payment.captures:
            if not payment.sale:
                return 409, None, None
            if payment.returnable:
                payment.refunds.append([payment.returnable, 0, 0])
                payment.settle_refunds()
        else:
            payment.reversed += payment.held
            payment.open = False
            payment.status = "reversed"
        known.answer = (200, "68", None)
        return known.answer

    def reverse_request(self, original: str) -> Answer:
        known = self.requests.get(original)
        if known is None or self.now >= known.at + DAY:
            self.requests[original] = Remembered(self.now, None, "authorize", None)
            return 200, "00", None
        if known.kind != "authorize":
            return 409, None, None
        if known.answer is None:
            return 200, "00", None
        if known.payment is None:
            return 409, None, 0
        return self.reverse(known.payment.key, None)

    # -- operations --------------------------------------------------------------------------------

    def find(self, key: int) -> NaivePayment:
        return next(payment for payment in self.payments if payment.key == key)

    def authorize(
        self, number: int, amount: int, partial: bool, sale: bool, mcc: str, risk: str
    ) -> tuple[NaivePayment, Answer]:
        payment = NaivePayment(number, "declined", mcc=mcc)
        self.payments.append(payment)
        code = DECLINE_BY_STATUS.get(self.status, "") or risk
        if not code:
            if amount == 0 or amount <= self.available:
                code, payment.status = "00", "authorized"
            elif partial and self.available > 0:
                code, payment.status, amount = "10", "partially_authorized", self.available
            else:
                code = "51"
        if code in ("00", "10"):
            payment.authorized = amount
            payment.open = amount > 0
            payment.expires_at = self.now + (31 if mcc in TRAVEL else 7) * DAY
            if sale and amount:
                payment.sale = True
                self.take(payment, amount, True)
        return payment, (200, code, None)

    def increment(self, key: int, amount: int) -> Answer:
        payment = self.find(key)
        if amount == 0:
            return 400, "13", None
        if not payment.held:
            return 409, None, 0
        code = DECLINE_BY_STATUS.get(self.status, "")
        if code:
            return 200, code, None
        if amount > self.available:
            return 200, "51", None
        payment.authorized += amount
        return 200, "00", None

    def reverse(self, key: int, amount: int | None) -> Answer:
        payment = self.find(key)
        if amount == 0:
            return 400, "13", None
        if not payment.held:
            return 409, None, 0
        if amount is not None and amount > payment.held:
            return 409, None, payment.held
        payment.reversed += payment.held if amount is None else amount
        if not payment.held:
            payment.open = False
            payment.status = "captured" if payment.captured else "reversed"
        return 200, "00", None

    def capture(self, key: int, amount: int | None, final: bool) -> Answer:
        payment = self.find(key)
        if amount == 0:
            return 400, "13", None
        if not payment.open and not (payment.expired and payment.status in ("expired", "partially_captured")):
            return 409, None, 0
        allowed = payment.authorized - payment.reversed
        due = payment.held if payment.open else allowed - payment.captured
        left = max(0, due + (allowed * TOLERANCE.get(payment.mcc, 0) + 50) // 100)
        amount = due if amount is None else amount
        if not 0 < amount <= left:
            return 409, None, left
        self.take(payment, amount, final or amount >= due)
        return 200, "00", None

    def take(self, payment: NaivePayment, amount: int, final: bool) -> None:
        payment.captures.append([amount, "submitted"])
        if payment.open:
            payment.used += amount
        if final:
            payment.open = payment.expired = False
        payment.status = "captured" if final else "partially_captured"

    def clear(self, key: int, n: int, accepted: bool) -> Answer:
        payment = self.find(key)
        if not 1 <= n <= len(payment.captures) or payment.captures[n - 1][1] != "submitted":
            return 409, None, None
        payment.captures[n - 1][1] = "cleared" if accepted else "rejected"
        payment.settle_refunds()
        return 200, "00", None

    def refund(self, key: int, amount: int | None) -> Answer:
        payment = self.find(key)
        if amount == 0:
            return 400, "13", None
        left = payment.returnable
        amount = left if amount is None else amount
        if not 0 < amount <= left:
            return 409, None, left
        payment.refunds.append([amount, 0, 0])
        payment.settle_refunds()
        return 200, "00", None

    def charge_back(self, key: int, amount: int | None) -> Answer:
        payment = self.find(key)
        if amount == 0:
            return 400, "13", None
        left = min(payment.cleared - payment.refunded - payment.charged_back, payment.returnable)
        amount = left if amount is None else amount
        if not 0 < amount <= left:
            return 409, None, left
        payment.chargebacks.append([amount, "open"])
        return 200, "00", None

    def dispute(self, key: int, n: int, state: str) -> Answer:
        payment = self.find(key)
        if not 1 <= n <= len(payment.chargebacks) or payment.chargebacks[n - 1][1] != "open":
            return 409, None, None
        payment.chargebacks[n - 1][1] = state
        payment.settle_refunds()
        return 200, "00", None

    def pay(self, amount: int) -> Answer:
        if amount == 0:
            return 400, "13", None
        self.paid += amount
        return 200, "00", None

    def change(self, limit: int | None, status: str | None) -> Answer:
        self.limit = self.limit if limit is None else limit
        self.status = self.status if status is None else status
        return 200, "00", None
