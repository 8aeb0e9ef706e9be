"""The account against a naive model of it, over random lives: requests sent again, with other bodies, by
other attempts, timed out before and after they came; reversals of requests that never come; time that
jumps over expiries and over the window of request ids; every operation on every payment at any moment.
"""

from collections import Counter
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from msgspec.structs import replace
from naive_model import DAY, Answer, Naive

from mini_visa import topics
from mini_visa.domain.commands import (
    AcceptChargeback,
    Authorize,
    CapturePayment,
    ChangeAccount,
    Command,
    Increment,
    OpenAccount,
    OpenChargeback,
    PayAccount,
    RecordClearing,
    RefundPayment,
    RepresentChargeback,
    ReversePayment,
    Tick,
    TimeOutReversal,
)
from mini_visa.domain.events import PaymentFact, RequestRefused, TimePassed
from mini_visa.domain.ids import payment_id
from mini_visa.domain.ledger import CLEARING_SUSPENSE, HOLDS_CONTRA, holds_of, receivable_of
from mini_visa.domain.lifecycle import TRANSITIONS
from mini_visa.domain.payment import AccountStatus, Card, Merchant, Payment, Verdict, held_of
from mini_visa.domain.testing import NOON, Host
from mini_visa.streams.testing import Driver

LIMIT = 100_000
REQUESTS = st.sampled_from([f"r{number}" for number in range(3)])
ATTEMPTS = st.sampled_from(["a1", "a2", "a3"])
AMOUNTS = st.one_of(
    st.integers(0, 60),
    st.integers(0, 3_000),
    st.integers(0, LIMIT + 1),
    st.sampled_from([0, 1, 100, 10_000, LIMIT, LIMIT + 1]),
)
OPTIONAL_AMOUNTS = st.one_of(st.none(), AMOUNTS)
SELDOM = st.sampled_from([False, False, False, True])
MOSTLY = SELDOM.map(lambda seldom: not seldom)
BODIES = st.fixed_dictionaries(
    {
        "amount": AMOUNTS,
        "partial": st.booleans(),
        "sale": SELDOM,
        "mcc": st.sampled_from(["", "", "5812", "7011"]),
        "risk": st.sampled_from(["", "", "", "", "65", "59"]),
    }
)
JUMPS_MS = st.sampled_from([0, 1, 1000, DAY - 1, DAY, 7 * DAY - 1, 7 * DAY, 31 * DAY])


class AccountAgainstModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.host = Host(limit="1000.00")
        self.card = Card(token=self.host.account_id, bin="411111", last4="1111")
        self.model = Naive(LIMIT)
        self.log: list[tuple[int, Command | Tick]] = [
            (NOON, OpenAccount(account=self.host.account_id, request_id="open", bin="411111", last4="1111",
                               currency="USD", limit=LIMIT)),
        ]  # fmt: skip
        self.bodies: dict[str, dict[str, Any]] = {}
        self.count = 0
        self.sound = True
        """No step has failed: the whole life is worth looking at."""

    # -- sending -----------------------------------------------------------------------------------

    def send(self, command: Command, expected: Answer) -> None:
        self.log.append((self.host.at, command))
        self.sound = False
        decision = self.host.send(command)
        outcome = decision.outcome
        status, code, left = expected
        assert outcome.status == status, (command, outcome)
        if code is not None:
            assert outcome.response_code == code, (command, outcome)
        if left is not None:
            assert outcome.refusal is not None and outcome.refusal.left == left, (command, outcome)
        assert bool(decision.events) != decision.replayed, "one outcome, and an event unless it is a replay"
        if status != 200 and not decision.replayed:
            assert type(decision.events[-1]) is RequestRefused
        self.sound = True

    def who(self, request_id: str | None = None) -> dict[str, str]:
        self.count += 1
        return {"account": self.host.account_id, "request_id": request_id or f"once-{self.count}"}

    def ask(self, kind: str, what: dict[str, Any]) -> Answer:
        """The model's answer to a request whose id is used once."""
        return self.model.request(kind, f"once-{self.count}", what, "", self.host.position)

    def chosen(self, data: st.DataObject) -> tuple[Payment, int]:
        key = data.draw(st.sampled_from([payment.key for payment in self.model.payments]), "payment")
        return self.host.records.payments[payment_id(self.host.account_id, key)], key

    # -- rules -------------------------------------------------------------------------------------

    @rule(request_id=REQUESTS, body=BODIES, attempt=ATTEMPTS, as_before=MOSTLY, new=SELDOM)
    def authorize(
        self, request_id: str, body: dict[str, Any], attempt: str, as_before: bool, new: bool
    ) -> None:
        if as_before:
            body = self.bodies.get(request_id, body)
        who = self.who(None if new else request_id)
        self.bodies[who["request_id"]] = body
        command = Authorize(
            **who,
            fingerprint=repr(sorted(body.items())),
            attempt=attempt,
            amount=body["amount"],
            currency="USD",
            card=self.card,
            merchant=Merchant(id="m1", mcc=body["mcc"]),
            capture=body["sale"],
            partial_approval=body["partial"],
            verdict=Verdict(response_code=body["risk"]),
        )
        number = self.host.position
        self.send(command, self.model.request("authorize", who["request_id"], body, attempt, number))

    @rule(parts=st.lists(st.integers(1, 40), min_size=1, max_size=3), final=st.booleans())
    def buy(self, parts: list[int], final: bool) -> None:
        """A payment with captures under way, so that there is something to clear, refund and dispute."""
        body = {"amount": 100, "partial": False, "sale": False, "mcc": "5812", "risk": ""}
        key = self.host.position
        self.authorize(request_id="", body=body, attempt="", as_before=False, new=True)
        payment = self.host.records.payments[payment_id(self.host.account_id, key)]
        for number, part in enumerate(parts, start=1):
            ends = final and number == len(parts)
            command = CapturePayment(**self.who(), payment_id=payment.payment_id, amount=part, final=ends)
            self.send(command, self.ask("capture", {"key": key, "amount": part, "final": ends}))

    @rule(request_id=REQUESTS, body=BODIES, attempt=ATTEMPTS, as_before=MOSTLY)
    def time_out(self, request_id: str, body: dict[str, Any], attempt: str, as_before: bool) -> None:
        if as_before:
            body = self.bodies.get(request_id, body)
        self.bodies.setdefault(request_id, body)
        command = TimeOutReversal(
            **self.who(request_id), fingerprint=repr(sorted(body.items())), attempt=attempt
        )
        self.send(command, self.model.time_out(request_id, body, attempt))

    @rule(original=REQUESTS)
    def reverse_by_request(self, original: str) -> None:
        command = ReversePayment(**self.who(), original_request_id=original)
        self.send(command, self.ask("reverse_request", {"original": original}))

    @precondition(lambda self: self.model.payments)
    @rule(data=st.data(), amount=OPTIONAL_AMOUNTS)
    def reverse(self, data: st.DataObject, amount: int | None) -> None:
        payment, key = self.chosen(data)
        command = ReversePayment(**self.who(), payment_id=payment.payment_id, amount=amount)
        self.send(command, self.ask("reverse", {"key": key, "amount": amount}))

    @precondition(lambda self: self.model.payments)
    @rule(data=st.data(), amount=AMOUNTS)
    def increment(self, data: st.DataObject, amount: int) -> None:
        payment, key = self.chosen(data)
        command = Increment(**self.who(), payment_id=payment.payment_id, amount=amount, exponent=2)
        self.send(command, self.ask("increment", {"key": key, "amount": amount}))

    @precondition(lambda self: self.model.payments)
    @rule(data=st.data(), amount=OPTIONAL_AMOUNTS, final=st.booleans())
    def capture(self, data: st.DataObject, amount: int | None, final: bool) -> None:
        payment, key = self.chosen(data)
        command = CapturePayment(**self.who(), payment_id=payment.payment_id, amount=amount, final=final)
        self.send(command, self.ask("capture", {"key": key, "amount": amount, "final": final}))

    @precondition(lambda self: self.model.payments)
    @rule(data=st.data(), n=st.integers(0, 3), accepted=st.booleans())
    def clear(self, data: st.DataObject, n: int, accepted: bool) -> None:
        payment, key = self.chosen(data)
        command = RecordClearing(**self.who(), payment_id=payment.payment_id, n=n, accepted=accepted)
        self.send(command, self.ask("clear", {"key": key, "n": n, "accepted": accepted}))

    @precondition(lambda self: self.model.payments)
    @rule(data=st.data(), amount=OPTIONAL_AMOUNTS)
    def refund(self, data: st.DataObject, amount: int | None) -> None:
        payment, key = self.chosen(data)
        command = RefundPayment(**self.who(), payment_id=payment.payment_id, amount=amount)
        self.send(command, self.ask("refund", {"key": key, "amount": amount}))

    @precondition(lambda self: self.model.payments)
    @rule(data=st.data(), amount=OPTIONAL_AMOUNTS)
    def charge_back(self, data: st.DataObject, amount: int | None) -> None:
        payment, key = self.chosen(data)
        command = OpenChargeback(
            **self.who(), payment_id=payment.payment_id, amount=amount, reason_code="10.4"
        )
        self.send(command, self.ask("charge_back", {"key": key, "amount": amount}))

    @precondition(lambda self: any(payment.chargebacks for payment in self.model.payments))
    @rule(data=st.data(), n=st.integers(0, 3), represented=st.booleans())
    def dispute(self, data: st.DataObject, n: int, represented: bool) -> None:
        payment, key = self.chosen(data)
        kind = RepresentChargeback if represented else AcceptChargeback
        state = "represented" if represented else "accepted"
        self.send(
            kind(**self.who(), payment_id=payment.payment_id, n=n),
            self.ask("dispute", {"key": key, "n": n, "state": state}),
        )

    @rule(request_id=st.one_of(st.none(), REQUESTS), amount=AMOUNTS)
    def pay(self, request_id: str | None, amount: int) -> None:
        who = self.who(request_id)
        number, what = self.host.position, {"amount": amount}
        self.send(
            PayAccount(**who, fingerprint=repr(what), amount=amount, currency="USD"),
            self.model.request("pay", who["request_id"], what, "", number),
        )

    @rule(
        limit=st.one_of(st.none(), st.integers(0, 2 * LIMIT)),
        status=st.sampled_from([None, "active", "active", "active", "blocked", "lost", "stolen", "closed"]),
    )
    def change(self, limit: int | None, status: str | None) -> None:
        self.send(
            ChangeAccount(**self.who(), limit=limit, status=status and AccountStatus(status)),
            self.ask("change", {"limit": limit, "status": status}),
        )

    @rule(jump_ms=JUMPS_MS)
    def pass_time(self, jump_ms: int) -> None:
        self.host.at += jump_ms
        self.model.now += jump_ms

    @rule()
    def tick(self) -> None:
        self.log.append((self.host.at, Tick()))
        self.host.tick()
        self.model.expire()

    # -- what must hold after every step -------------------------------------------------------------

    @invariant()
    def sums_are_those_of_the_model(self) -> None:
        account = self.host.account
        assert (account.held, account.posted, account.limit) == (
            self.model.held, self.model.posted, self.model.limit,
        )  # fmt: skip
        assert account.available == account.limit - account.posted - account.held

    @invariant()
    def payments_are_those_of_the_model(self) -> None:
        assert len(self.host.records.payments) == len(self.model.payments)
        for naive in self.model.payments:
            payment = self.host.records.payments[payment_id(self.host.account_id, naive.key)]
            assert (
                payment.status, payment.authorized, payment.captured, payment.cleared, payment.reversed,
                payment.refunded, payment.refund_reserved, payment.charged_back, held_of(payment),
            ) == (
                naive.status, naive.authorized, naive.captured, naive.cleared, naive.reversed,
                naive.refunded, naive.reserved, naive.charged_back, naive.held,
            )  # fmt: skip

    @invariant()
    def never_more_is_given_back_than_was_captured(self) -> None:
        for payment in self.host.records.payments.values():
            returned = payment.refunded + payment.refund_reserved + payment.charged_back
            assert 0 <= returned <= payment.captured
            assert payment.refunded + payment.charged_back <= payment.cleared <= payment.captured
            for sums in (payment.authorized, payment.released, payment.reversed, payment.refund_reserved):
                assert sums >= 0
            assert payment.refund_reserved == sum(
                refund.amount - refund.posted - refund.cancelled for refund in payment.refunds
            )

    @invariant()
    def a_refund_waits_only_for_a_capture_that_is_under_way(self) -> None:
        for payment in self.host.records.payments.values():
            submitted = sum(one.amount for one in payment.captures if one.state == "submitted")
            assert payment.refund_reserved <= submitted
            assert not payment.refund_reserved or payment.cleared == payment.refunded + payment.charged_back

    @invariant()
    def the_ledger_balances_and_says_the_same(self) -> None:
        host, account = self.host, self.host.account
        ledger = Counter({name: balance for (name, _), balance in host.ledger.items()})
        assert sum(ledger.values()) == 0
        assert ledger[holds_of(account.account_id)] == account.held == -ledger[HOLDS_CONTRA]
        assert ledger[receivable_of(account.account_id)] == account.posted
        assert ledger[CLEARING_SUSPENSE] == -sum(naive.submitted for naive in self.model.payments)

    @invariant()
    def indexes_are_those_of_the_open_holds(self) -> None:
        records, account = self.host.records, self.host.account
        open_holds = {
            (payment.account, payment.expires_at, payment.payment_id)
            for payment in records.payments.values()
            if held_of(payment)
        }
        assert records.holds == open_holds
        if open_holds:
            assert 0 < account.next_expiry <= min(expires_at for _, expires_at, _ in open_holds)
        assert records.wakes == (
            {(account.next_expiry, account.account_id)} if account.next_expiry else set()
        )

    # -- what must hold of the whole life ------------------------------------------------------------

    def teardown(self) -> None:
        host = self.host
        if not self.sound:
            return
        numbered = [event for event in host.events if hasattr(event, "seq")]
        assert [event.seq for event in numbered] == list(range(1, len(numbered) + 1))
        last, now = (replace(account, next_expiry=0) for account in (numbered[-1].account, host.account))
        assert last == now, "the last event is the account as it is (but for the bookmark of its holds)"
        assert fold(host.events) == host.records.payments, "the events alone make the payments"
        statuses: dict[str, str | None] = {}
        for event in host.events:
            payment = getattr(event, "payment", None)
            if payment is not None:
                before = statuses.get(payment.payment_id)
                assert any(payment.status in after for after in TRANSITIONS[before].values())
                statuses[payment.payment_id] = payment.status
        assert self.through_the_service() == host.events, "tables and topics change nothing"

    def through_the_service(self) -> list[PaymentFact]:
        """The events of the same log, decided by the real service on its tables."""
        from agents.authorization import authorization

        driver, key = Driver(authorization), self.host.account_id.encode()
        for at, command in self.log:
            driver.send(command, key=key, at=at)
        assert not driver.dead_letters()
        return [event for event in driver.sent(topics.PAYMENT_EVENTS) if type(event) is not TimePassed]


def fold(events: list[PaymentFact]) -> dict[str, Payment]:
    payments = {}
    for event in events:
        payment = getattr(event, "payment", None)
        if payment is not None:
            payments[payment.payment_id] = payment
    return payments


TestAccountAgainstModel = AccountAgainstModel.TestCase
TestAccountAgainstModel.settings = settings(
    max_examples=100, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
