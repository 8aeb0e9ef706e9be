"""What the demo sends: one lane of requests a card, drawn from a seed, each with the answer it must get.

The script is made before the first request goes out. Requests of one lane are sent in order, one at a
time, so what they must lead to does not depend on how fast anything is. Captures clear meanwhile, and some
are rejected; what depends on that is asked where it cannot matter: before the card's first capture, or at
merchants that the clearing house's sandbox always accepts. The rest is the aftermath: refunds and disputes
that are written when every capture has its outcome.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from mini_visa.demo.cards import card_numbers
from mini_visa.demo.model import VELOCITY_COUNT, ModelAccount, ModelPayment

DECIMALS: Final = {"USD": 2, "EUR": 2, "JPY": 0, "KWD": 3}
PAYMENTS_PER_CARD: Final = 7
COUNTED_PER_CARD_MAX: Final = VELOCITY_COUNT
ASKED_PER_CARD_MAX: Final = {"USD": 4_900_00, "EUR": 4_900_00, "JPY": 700_000, "KWD": 1_400_000}
"""Below what the velocity rule on amounts allows: only `_lavish` goes above it."""
MERCHANTS: Final = 40
FUEL_PUMP: Final = "5542"
"""Merchant category code of automated fuel pumps: their holds are short."""
CLOCK_MARGIN_S: Final = 0.2
SANDBOX: Final = {
    "shipments": "sandbox-accepted",
    "returned": "sandbox-accepted",
    "called off": "sandbox-rejected",
    "unanswered": "sandbox-silent",
}
"""Merchants that the clearing house's sandbox treats always in one way."""
SPECIAL: Final = ("unknown", "blocked", "lost", "stolen", "expired", "hasty", "lavish")
"""Lanes that end in declines: one of each in SPECIAL_EVERY, so that most payments are approved."""
SPECIAL_EVERY: Final = 36


@dataclass
class Step:
    """One request and the answer it must get."""

    kind: str
    request_id: str
    path: str
    """With {payment} in it where the payment id of `about` belongs."""
    body: dict[str, Any]
    status: int = 200
    code: str = ""
    """The operation's response code in a 200."""
    payment_status: str = ""
    about: str = ""
    """Request id of the authorization that this is about."""
    replays: int | None = None
    """Index in its lane of the step whose answer must come again, byte for byte."""
    effect: bool = True
    """It leaves exactly one event; a replay leaves none."""
    method: str = "POST"
    wait_s: float = 0.0
    """At least so long after the answer before it: a hold has expired then."""
    left: str = ""
    """The amount that a refusal must name as still possible."""


@dataclass
class Lane:
    """All that happens to one card."""

    pan: str
    account: ModelAccount
    opening: dict[str, Any] | None
    """Body of the POST /accounts; None: the card stays unknown."""
    steps: list[Step] = field(default_factory=list)
    burst: bool = False
    """Sent without a pause, for rules that count within a window."""
    account_id: str = ""
    uncertain: bool = False
    """A capture of it may be rejected, or a refund post, at any time from now on: more may be available than
    reckoned."""


@dataclass(frozen=True)
class Script:
    seed: int
    lanes: list[Lane]

    @property
    def requests(self) -> int:
        return sum(len(lane.steps) for lane in self.lanes)

    def expected(self) -> Counter[tuple[str, int, str]]:
        """How many answers of each (kind, HTTP status, response code) there must be."""
        return Counter((s.kind, s.status, s.code) for lane in self.lanes for s in lane.steps)


def text_of(amount: int, currency: str) -> str:
    """Minor units as the wire has them: 1000 USD cents are "10.00", 10 yen are "10"."""
    decimals = DECIMALS[currency]
    if not decimals:
        return str(amount)
    whole, part = divmod(abs(amount), 10**decimals)
    return f"{'-' if amount < 0 else ''}{whole}.{part:0{decimals}d}"


def write(seed: int, payments: int, run: str, *, late: float = 0.0, fuel_hold_s: float = 0.0) -> Script:
    """A script of `payments` authorizations. `run` is in every request id, so no two runs share one.

    `late`: share of payments whose hold at a fuel pump, `fuel_hold_s` long, expires before the capture."""
    return Script(seed, list(_Writer(seed, payments, run, late, fuel_hold_s).lanes()))


def write_aftermath(script: Script, run: str) -> int:
    """Go on with the script when every capture has its outcome: refunds, disputes, and what is refused.
    Returns how many requests are added."""
    before = script.requests
    writer = _Writer(script.seed + 1, 0, f"{run}-after")
    for lane in script.lanes:
        writer.aftermath(lane)
    return script.requests - before


class _Writer:
    def __init__(
        self, seed: int, payments: int, run: str, late: float = 0.0, fuel_hold_s: float = 0.0
    ) -> None:
        self.late, self.fuel_hold_s = late, fuel_hold_s
        self.choose = random.Random(seed)  # noqa: S311 - reproducible by its seed, no secret
        self.left = payments
        self.run = run
        self.numbers = itertools.count(1)
        self.pans = card_numbers(self.choose)
        self.reserved: list[str] = []
        """Request ids that something before them speaks of: the next authorization takes the last one."""

    def lanes(self) -> Iterator[Lane]:
        number = 0
        while self.left > 0:
            place = number % SPECIAL_EVERY - (SPECIAL_EVERY - len(SPECIAL))
            lane = getattr(self, f"_{SPECIAL[place]}")() if place >= 0 else self._shopper()
            number += 1
            if lane.steps:
                yield lane

    # -- kinds of cardholders -----------------------------------------------------------------------

    def _shopper(self) -> Lane:
        """Somebody who buys things, and what follows from that."""
        choose = self.choose
        currency = choose.choices(("USD", "EUR", "JPY", "KWD"), (88, 6, 3, 3))[0]
        scale = {"USD": 1, "EUR": 1, "JPY": 1, "KWD": 3}[currency]
        limit = choose.choice((500_00, 1_000_00, 2_000_00)) * scale
        lane = self._open(limit, currency=currency)
        account = lane.account
        for _ in range(choose.randint(PAYMENTS_PER_CARD - 3, PAYMENTS_PER_CARD + 1)):
            if self.left <= 0 or account.count >= COUNTED_PER_CARD_MAX or account.available < limit // 10:
                break
            self._buy(lane, limit)
            if account.posted > 0 and self.choose.random() < 0.1:
                self._pay(lane, self.choose.randint(1, account.posted))
        if self.choose.random() < self.late * PAYMENTS_PER_CARD:
            self._refuel(lane, limit)
        return lane

    def _refuel(self, lane: Lane, limit: int) -> None:
        """A hold at a fuel pump that has expired when the capture comes: it posts all the same, forced."""
        account = lane.account
        room = min(ASKED_PER_CARD_MAX[account.currency] - account.asked, account.available, limit // 12)
        if self.left <= 0 or account.count >= COUNTED_PER_CARD_MAX or room < 1:
            return
        step = self._authorize(lane, self.choose.randint(1, room), mcc=FUEL_PUMP)
        payment = account.payments[step.request_id]
        account.expire(payment)
        self._capture(lane, step, payment, payment.authorized, final=True)
        lane.steps[-1].wait_s = self.fuel_hold_s + CLOCK_MARGIN_S

    def _buy(self, lane: Lane, limit: int) -> None:
        choose, account = self.choose, lane.account
        room = ASKED_PER_CARD_MAX[account.currency] - account.asked
        if room < 1:
            return
        what = choose.choices(
            ("plain", "zero", "beyond", "partial", "captured", "cvv", "currency", "cancelled",
             "shipments", "returned", "called off", "unanswered"),
            (78, 3, 2.5, 2, 6, 1, 1, 1, 2, 2, 0.5, 0.2),
        )[0]  # fmt: skip
        if lane.uncertain and what in ("beyond", "partial"):
            what = "plain"
        amount = min(choose.randint(1, max(1, limit // 12)), room)
        extra: dict[str, Any] = {}
        if what == "zero":
            amount = 0
        elif what == "beyond" and account.available + 1 <= room:
            amount = account.available + 1
        elif what == "partial" and account.available + 100 <= room:
            amount = account.available + choose.randint(1, 100)
            extra["partial_approval"] = True
        elif what == "captured":
            extra["capture"] = True
        elif what == "cvv":
            extra["cvv_match"] = False
        elif what == "currency" and account.currency in ("USD", "EUR"):
            extra["currency"] = "EUR" if account.currency == "USD" else "USD"
        elif what == "cancelled":
            self._cancel_next(lane)
        elif what in SANDBOX:
            extra["merchant_id"] = SANDBOX[what]
        if choose.random() < 0.3:
            extra["metadata"] = {"order": f"{choose.randrange(10**6):06d}"}
        step = self._authorize(lane, amount, **extra)
        payment = account.payments[step.request_id]
        if choose.random() < 0.05:
            self._again(lane, len(lane.steps) - 1)
        most = ASKED_PER_CARD_MAX[account.currency] - amount
        if choose.random() < 0.02 and account.count < COUNTED_PER_CARD_MAX and account.asked <= most:
            self._other_body(lane, step, amount)
        if what == "shipments" and payment.held > 2:
            self._ship(lane, step, payment)
        elif what == "returned" and payment.held > 1:
            self._return(lane, step, payment)
        elif what == "called off" and payment.held > 1:
            self._capture(lane, step, payment, choose.randint(1, payment.held - 1), final=False)
        elif what == "unanswered" and payment.held:
            self._capture(lane, step, payment, None, final=True)
        elif payment.held > 0 and what not in SANDBOX:
            self._follow_up(lane, step, payment)

    def _ship(self, lane: Lane, step: Step, payment: ModelPayment) -> None:
        """Captured in parts, as goods leave the store; then more than is left of the hold."""
        first = self.choose.randint(1, payment.held - 2)
        self._capture(lane, step, payment, first, final=False)
        self._capture(lane, step, payment, self.choose.randint(1, payment.held - 1), final=False)
        self._capture(lane, step, payment, payment.held + 1, final=True)
        self._capture(lane, step, payment, None, final=True)

    def _return(self, lane: Lane, step: Step, payment: ModelPayment) -> None:
        """Captured and partly given back at once, whether that has cleared by then or not."""
        self._capture(lane, step, payment, None, final=True)
        self._refund(lane, step, payment, self.choose.randint(1, payment.captured))
        self._refund(lane, step, payment, payment.left_to_refund + 1)

    def _follow_up(self, lane: Lane, step: Step, payment: ModelPayment) -> None:
        choose, account = self.choose, lane.account
        what = choose.choices(
            (
                "nothing",
                "capture",
                "part",
                "reverse",
                "reverse_part",
                "reverse_by_request",
                "increment",
                "over",
            ),
            (52, 16, 4, 8, 5, 5, 8, 2),
        )[0]
        held = payment.held
        if what == "capture":
            self._capture(lane, step, payment, None, final=True)
        elif what == "part" and held > 1:
            self._capture(lane, step, payment, choose.randint(1, held - 1), final=choose.random() < 0.5)
        elif what == "reverse":
            self._reverse(lane, step, payment, None)
            if choose.random() < 0.3:
                self._again(lane, len(lane.steps) - 1)
        elif what == "reverse_part" and held > 1:
            self._reverse(lane, step, payment, choose.randint(1, held - 1))
        elif what == "reverse_by_request":
            self._reverse_by_request(lane, step, payment)
        elif what == "increment" and account.count < COUNTED_PER_CARD_MAX:
            amount = choose.randint(1, held)
            if lane.uncertain and amount > account.available:
                return
            if account.asked + amount <= ASKED_PER_CARD_MAX[account.currency]:
                self._increment(lane, step, payment, amount)
        elif what == "over":
            self._reverse(lane, step, payment, held + 1)

    def _unknown(self) -> Lane:
        """A card that nobody opened an account for."""
        lane = Lane(next(self.pans), ModelAccount(known=False), None)
        for _ in range(min(2, self.left)):
            self._authorize(lane, self.choose.randint(1_00, 90_00))
        return lane

    def _refused(self, status: str) -> Lane:
        lane = self._open(1_000_00)
        self._authorize(lane, self.choose.randint(1_00, 90_00))
        self._change(lane, status)
        if self.left > 0:
            self._authorize(lane, self.choose.randint(1_00, 90_00))
        self._change(lane, "active")
        if self.left > 0:
            self._authorize(lane, self.choose.randint(1_00, 90_00))
        return lane

    def _blocked(self) -> Lane:
        return self._refused("blocked")

    def _lost(self) -> Lane:
        return self._refused("lost")

    def _stolen(self) -> Lane:
        return self._refused("stolen")

    def _expired(self) -> Lane:
        """A card past its month."""
        lane = self._open(1_000_00, expiry="2020-01")
        lane.account.expired = True
        self._authorize(lane, self.choose.randint(1_00, 90_00))
        return lane

    def _hasty(self) -> Lane:
        """More requests than the velocity rule allows: the last two are declined with 65."""
        lane = self._open(1_000_00)
        lane.burst = True
        for _ in range(min(VELOCITY_COUNT + 2, self.left)):
            self._authorize(lane, self.choose.randint(1_00, 9_00))
        return lane

    def _lavish(self) -> Lane:
        """More money than the velocity rule allows: the last two are declined with 61."""
        lane = self._open(20_000_00)
        lane.burst = True
        for amount in (1_400_00, 1_400_00, 1_400_00, 1_400_00, 5_00)[: self.left]:
            self._authorize(lane, amount)
        return lane

    # -- requests -----------------------------------------------------------------------------------

    def _request_id(self) -> str:
        return f"{self.run}-{next(self.numbers)}"

    def _open(self, limit: int, *, currency: str = "USD", expiry: str | None = None) -> Lane:
        pan = next(self.pans)
        opening = {
            "request_id": self._request_id(),
            "pan": pan,
            "currency": currency,
            "limit": text_of(limit, currency),
        }
        if expiry is not None:
            opening["expiry"] = expiry
        return Lane(pan, ModelAccount(currency=currency, limit=limit), opening)

    def _authorize(self, lane: Lane, amount: int, **extra: Any) -> Step:
        self.left -= 1
        account = lane.account
        request_id = self.reserved.pop() if self.reserved else self._request_id()
        currency = extra.get("currency", account.currency)
        if currency != "USD" or account.currency != "USD":
            extra["currency"] = currency  # left out, it is the account's: the demo shows both
        payment = account.authorize(
            request_id,
            amount,
            currency=currency,
            cvv_match=extra.get("cvv_match"),
            partial=extra.get("partial_approval", False),
            capture=extra.get("capture", False),
        )
        step = Step(
            "authorize",
            request_id,
            "/payments/authorize",
            {
                "request_id": request_id,
                "pan": lane.pan,
                "amount": text_of(amount, currency),
                "merchant_id": f"merchant-{self.choose.randint(1, MERCHANTS)}",
                **extra,
            },
            code=payment.code,
            payment_status=payment.status,
        )
        lane.steps.append(step)
        lane.uncertain |= bool(payment.captures)
        return step

    def _operation(
        self, lane: Lane, kind: str, about: Step, status: int, code: str, body: dict[str, Any],
        *, path: str = "", left: int | None = None,
    ) -> None:  # fmt: skip
        request_id = self._request_id()
        payment = lane.account.payments[about.request_id]
        lane.steps.append(
            Step(
                kind,
                request_id,
                f"/payments/{{payment}}/{path or f'{kind}s'}",
                {"request_id": request_id, **body},
                status=status,
                code=code,
                payment_status=payment.status if status == 200 else "",
                about=about.request_id,
                left="" if left is None else text_of(left, lane.account.currency),
            )
        )

    def _amount(self, lane: Lane, amount: int | None) -> dict[str, str]:
        return {} if amount is None else {"amount": text_of(amount, lane.account.currency)}

    def _capture(
        self, lane: Lane, about: Step, payment: ModelPayment, amount: int | None, *, final: bool
    ) -> None:
        held = payment.held
        done = lane.account.capture(payment, held if amount is None else amount, final=final)
        lane.uncertain |= about.body["merchant_id"] != SANDBOX["shipments"]
        self._operation(
            lane, "capture", about, *_answer(done), {"final": final, **self._amount(lane, amount)},
            left=None if done else held,
        )  # fmt: skip

    def _refund(self, lane: Lane, about: Step, payment: ModelPayment, amount: int | None) -> None:
        left = payment.left_to_refund
        done = lane.account.refund(payment, left if amount is None else amount)
        lane.uncertain = True  # it posts when its capture clears
        self._operation(
            lane, "refund", about, *_answer(done), self._amount(lane, amount), left=None if done else left
        )

    def _charge_back(self, lane: Lane, about: Step, payment: ModelPayment, amount: int | None) -> None:
        left = payment.left_to_dispute
        done = lane.account.charge_back(payment, left if amount is None else amount)
        body = {"reason_code": "13.1", **self._amount(lane, amount)}  # merchandise not received
        self._operation(lane, "chargeback", about, *_answer(done), body, left=None if done else max(0, left))

    # -- when every capture has its outcome ---------------------------------------------------------

    def aftermath(self, lane: Lane) -> None:
        steps = {step.request_id: step for step in lane.steps if step.kind == "authorize"}
        for request_id, payment in list(lane.account.payments.items()):
            if payment.captures and self.choose.random() < 0.5:
                self._afterwards(lane, steps[request_id], payment)

    def _afterwards(self, lane: Lane, step: Step, payment: ModelPayment) -> None:
        choose, cents = self.choose, payment.left_to_dispute
        what = choose.choices(
            ("refund", "refund part", "refund over", "dispute", "dispute part", "dispute over"),
            (30, 20, 8, 16, 16, 10),
        )[0]
        if what == "refund over":
            self._refund(lane, step, payment, payment.left_to_refund + 1)
        elif what == "dispute over":
            self._charge_back(lane, step, payment, cents + 1)
        elif what == "refund":
            self._refund(lane, step, payment, None)  # of a compensated payment nothing is left: refused
        elif what == "refund part":
            self._refund(lane, step, payment, choose.randint(1, max(1, cents)))
        else:
            part = choose.randint(1, cents) if what == "dispute part" and cents else None
            self._charge_back(lane, step, payment, part)
            if payment.disputes:
                self._after_dispute(lane, step, payment)

    def _after_dispute(self, lane: Lane, step: Step, payment: ModelPayment) -> None:
        """The merchant answers, or not; and nobody gets more back than was captured."""
        end = self.choose.choice(("represent", "accept", "nothing"))
        number = len(payment.disputes)
        if end == "nothing":
            self._refund(lane, step, payment, payment.left_to_refund + 1)
            return
        if end == "represent":
            lane.account.represent(payment, number)
        kind = {"represent": "representment", "accept": "acceptance"}[end]
        self._operation(lane, kind, step, 200, "00", {}, path=f"chargebacks/{number}/{end}")

    def _reverse(self, lane: Lane, about: Step, payment: ModelPayment, amount: int | None) -> None:
        held = payment.held
        done = lane.account.reverse(payment, held if amount is None else amount)
        self._operation(
            lane, "reversal", about, *_answer(done), self._amount(lane, amount), left=None if done else held
        )

    def _increment(self, lane: Lane, about: Step, payment: ModelPayment, amount: int) -> None:
        code = lane.account.increment(payment, amount)
        self._operation(lane, "increment", about, 200, code, self._amount(lane, amount))

    def _reverse_by_request(self, lane: Lane, about: Step, payment: ModelPayment) -> None:
        lane.account.reverse(payment, payment.held)
        request_id = self._request_id()
        lane.steps.append(
            Step(
                "reversal",
                request_id,
                "/payments/reversals",
                {"request_id": request_id, "original_request_id": about.request_id, "pan": lane.pan},
                code="00",
                payment_status=payment.status,
                about=about.request_id,
            )
        )

    def _cancel_next(self, lane: Lane) -> None:
        """A reversal that overtakes its request: the request is then answered `reversed`, 68."""
        request_id, original = self._request_id(), self._request_id()
        self.reserved.append(original)
        lane.account.cancelled.add(original)
        lane.steps.append(
            Step(
                "early reversal",
                request_id,
                "/payments/reversals",
                {"request_id": request_id, "original_request_id": original, "pan": lane.pan},
                code="00",
                payment_status="reversed",
            )
        )

    def _pay(self, lane: Lane, amount: int) -> None:
        """The cardholder pays what was captured, or a part of it."""
        request_id = self._request_id()
        lane.account.pay(amount)
        lane.steps.append(
            Step(
                "cardholder payment",
                request_id,
                "/accounts/{account}/payments",
                {"request_id": request_id, **self._amount(lane, amount)},
            )
        )

    def _again(self, lane: Lane, index: int) -> None:
        """The same request once more, as a client does that got no answer."""
        former = lane.steps[index]
        lane.steps.append(
            Step(
                "replay",
                former.request_id,
                former.path,
                former.body,
                status=former.status,
                code=former.code,
                payment_status=former.payment_status,
                about=former.about,
                replays=index,
                effect=False,
            )
        )

    def _other_body(self, lane: Lane, former: Step, amount: int) -> None:
        """The same request id for another request: 422. The rules on velocity count it like any other."""
        lane.account.asked_for(amount)
        body = {**former.body, "terminal_id": "another-terminal"}
        lane.steps.append(Step("reused id", former.request_id, former.path, body, status=422, effect=False))

    def _change(self, lane: Lane, status: str) -> None:
        request_id = self._request_id()
        lane.account.status = status
        lane.steps.append(
            Step(
                "account change",
                request_id,
                "/accounts/{account}",
                {"request_id": request_id, "status": status},
                method="PATCH",
            )
        )


def _answer(done: bool) -> tuple[int, str]:
    return (200, "00") if done else (409, "")
