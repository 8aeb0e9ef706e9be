"""Random lives of payments through authorization, ledger, clearing and reversal: what must always hold."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from msgspec.structs import replace

from agents import authorization
from agents.testing import ACCOUNT, Pipeline
from mini_visa.domain.clearing import CancelPresentment
from mini_visa.domain.journal import verify
from mini_visa.domain.ledger import BANK
from mini_visa.domain.payment import CaptureState, Merchant, held_of
from mini_visa.domain.saga import is_over
from tables.clearing import PRESENTMENTS
from tables.sagas import SAGAS

MERCHANTS = [Merchant(id="m1", mcc="5411"), Merchant(id="m2", mcc="5812"), Merchant()]
amounts = st.sampled_from(["0.01", "1.00", "9.99", "50.00", "200.00"])
some_amount = st.one_of(st.none(), amounts)
seconds = st.sampled_from([0, 1, 59, 60, 3_600, 86_399, 86_400, 8 * 86_400])


class MoneyFlow(RuleBasedStateMachine):
    """One account. The connector answers when this test says so, and may answer twice."""

    @initialize(limit=st.sampled_from(["100.00", "100000.00"]), fees_go_back=st.booleans())
    def start(self, limit: str, fees_go_back: bool) -> None:
        self.terms = authorization.TERMS
        authorization.TERMS = replace(self.terms, mirror_refund_fees=fees_go_back)
        self.flow = Pipeline(limit=limit)

    def pick(self, data: st.DataObject) -> str | None:
        return data.draw(st.sampled_from(sorted(self.flow.payments))) if self.flow.payments else None

    @rule(amount=amounts, merchant=st.sampled_from(MERCHANTS), capture=st.booleans(), partial=st.booleans())
    def authorize(self, amount: str, merchant: Merchant, capture: bool, partial: bool) -> None:
        self.flow.authorize(amount, merchant=merchant, capture=capture, partial_approval=partial)

    @rule(data=st.data(), amount=some_amount, final=st.booleans())
    def capture(self, data: st.DataObject, amount: str | None, final: bool) -> None:
        if payment := self.pick(data):
            self.flow.capture(payment, amount, final=final)

    @rule(data=st.data(), amount=some_amount)
    def reverse(self, data: st.DataObject, amount: str | None) -> None:
        if payment := self.pick(data):
            self.flow.reverse(payment, amount)

    @rule(data=st.data(), amount=amounts)
    def increment(self, data: st.DataObject, amount: str) -> None:
        if payment := self.pick(data):
            self.flow.increment(payment, amount)

    @rule(data=st.data(), amount=some_amount)
    def refund(self, data: st.DataObject, amount: str | None) -> None:
        if payment := self.pick(data):
            self.flow.refund(payment, amount)

    @rule(data=st.data(), amount=some_amount)
    def charge_back(self, data: st.DataObject, amount: str | None) -> None:
        if payment := self.pick(data):
            self.flow.charge_back(payment, amount)

    @rule(data=st.data(), n=st.integers(1, 2), stands=st.booleans())
    def end_dispute(self, data: st.DataObject, n: int, stands: bool) -> None:
        if payment := self.pick(data):
            (self.flow.represent if stands else self.flow.accept)(payment, n)

    @rule(data=st.data(), accepted=st.booleans(), twice=st.booleans())
    def clearing_house_decides(self, data: st.DataObject, accepted: bool, twice: bool) -> None:
        if not self.flow.submissions:
            return
        submission = data.draw(st.sampled_from(self.flow.submissions))
        for _ in range(1 + twice):
            self.flow.clear(submission.payment_id, submission.n, accepted=accepted)

    @rule(amount=amounts)
    def pay(self, amount: str) -> None:
        self.flow.pay(amount)

    @rule(seconds=seconds)
    def time_passes(self, seconds: int) -> None:
        self.flow.tick(seconds)

    # -- what must hold --------------------------------------------------------------------------

    @invariant()
    def journals_balance_and_are_whole(self) -> None:
        verify(self.flow.journal)
        verify(self.flow.settlement_journal)
        assert sum(self.flow.ledger.values()) == 0

    @invariant()
    def the_ledger_agrees_with_the_account(self) -> None:
        ledger, account = self.flow.ledger, self.flow.account
        assert ledger.get(f"holds:cardholder:{ACCOUNT}", 0) == account.held
        assert ledger.get(f"receivable:cardholder:{ACCOUNT}", 0) == account.posted

    @invariant()
    def fees_are_kept_or_go_back_in_full_with_all_of_the_money(self) -> None:
        for payment_id, payment in self.flow.payments.items():
            income = sum(
                amount
                for account, amount in self.flow.postings_of(payment_id).items()
                if account.startswith("income:")
            )
            fees = sum(one.interchange + one.scheme_fee for one in payment.captures)
            back = payment.interchange_returned + payment.scheme_fee_returned
            assert income == back - fees and 0 <= back <= fees
            if authorization.TERMS.mirror_refund_fees and payment.refunded == payment.cleared > 0:
                assert back == fees
            if not authorization.TERMS.mirror_refund_fees:
                assert back == 0

    @invariant()
    def what_is_over_sums_to_zero_on_each_ledger_account(self) -> None:
        for payment_id, payment in self.flow.payments.items():
            if is_over(payment):
                assert self.flow.postings_of(payment_id) == {}

    @invariant()
    def suspense_is_what_waits_for_the_clearing_house(self) -> None:
        waiting = {
            f"{payment_id}-{capture.n}": capture.amount
            for payment_id, payment in self.flow.payments.items()
            for capture in payment.captures
            if capture.state is CaptureState.SUBMITTED
        }
        assert self.flow.ledger.get("clearing:suspense", 0) == -sum(waiting.values())
        assert self.flow.drivers["present"].rows(PRESENTMENTS).keys() == waiting.keys()
        assert waiting.keys() <= set(self.flow.presented)

    @invariant()
    def every_waiting_payment_has_a_saga_and_no_other_but_those_being_released(self) -> None:
        sagas = self.flow.drivers["compensate"].rows(SAGAS)
        for payment_id, payment in self.flow.payments.items():
            waiting = tuple(one.n for one in payment.captures if one.state is CaptureState.SUBMITTED)
            if waiting:
                assert sagas[payment_id].waiting == waiting
        for payment_id in sagas:
            payment = self.flow.payments[payment_id]
            assert held_of(payment) or sagas[payment_id].waiting

    @invariant()
    def the_bank_paid_what_the_positions_say(self) -> None:
        settled = sum(position.net for position in self.flow.positions)
        paid = sum(
            amount
            for entry in self.flow.settlement_journal
            for account, _, amount in entry.postings
            if account == BANK
        )
        assert paid == -settled

    def teardown(self) -> None:
        """Answer all that is open, close the cycle: no saga is left, and the merchants are paid off."""
        if not hasattr(self, "flow"):
            return
        authorization.TERMS = self.terms
        for submission in list(self.flow.submissions):
            if not isinstance(submission, CancelPresentment):
                self.flow.clear(submission.payment_id, submission.n, accepted=submission.n % 2 == 1)
        self.flow.tick(86_400)
        self.flow.tick(9 * 86_400)
        assert self.flow.drivers["compensate"].rows(SAGAS) == {}
        assert not any(account.startswith("payable:") for account in self.flow.ledger)
        assert "clearing:suspense" not in self.flow.ledger and "holds:contra" not in self.flow.ledger


MoneyFlow.TestCase.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)
TestMoneyIsNeverLostOnItsWay = MoneyFlow.TestCase
