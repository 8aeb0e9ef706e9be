"""A turn: one command's work on one account. It collects the events and keeps the rows in step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from msgspec.structs import replace

from mini_visa.domain.answers import Outcome, Refusal
from mini_visa.domain.events import HoldExpired, PaymentEvent, PaymentFact, RequestRefused
from mini_visa.domain.lifecycle import TRANSITIONS, Operation, allows
from mini_visa.domain.money import exponent_of
from mini_visa.domain.payment import NO_TIME, Account, Payment, PaymentStatus, held_of
from mini_visa.domain.records import Records
from mini_visa.domain.terms import Terms

_NO_FACTS: Final[Mapping[str, Any]] = {}


class Turn:
    """`account` is None while the card has none. Nothing is stored of it before `finish`."""

    __slots__ = ("_start", "account", "at", "client", "events", "position", "records", "request_id", "terms")

    def __init__(
        self,
        records: Records,
        account: Account | None,
        at: int,
        position: int,
        terms: Terms,
        client: str = "",
        request_id: str = "",
    ) -> None:
        self.records = records
        self.account = account
        self.at = at
        self.position = position
        self.terms = terms
        self.events: list[PaymentFact] = []
        self.client = client
        self.request_id = request_id
        self._start = account

    # -- the account -----------------------------------------------------------------------------

    def expire_due(self, limit: int | None = None) -> int:
        """End the holds whose time has come, earliest first; returns how many. A command must leave
        none (`limit` of None); a tick may do some now and the rest the next time."""
        account = self.account
        if account is None or not account.next_expiry or account.next_expiry > self.at:
            return 0
        client, request_id = self.client, self.request_id
        self.client = self.request_id = ""  # Time does this, not the request.
        due, next_expiry = self.records.due_holds(account.account_id, self.at, limit)
        self.account = replace(account, next_expiry=next_expiry)
        for payment_id in due:
            payment = self.records.payment(payment_id)
            assert payment is not None, f"a hold without its payment: {payment_id}"
            held = held_of(payment)
            partly = payment.status is PaymentStatus.PARTIALLY_CAPTURED
            after = replace(
                payment,
                status=payment.status if partly else PaymentStatus.EXPIRED,
                expired=True,
                released=payment.released + held,
            )
            self.keep(Operation.EXPIRE, payment, after)
            self.tell(HoldExpired, after, held, held_by=-held)
        self.client, self.request_id = client, request_id
        return len(due)

    def finish(self) -> None:
        """Store the account, once, as the turn leaves it."""
        account, start = self.account, self._start
        if account is start or account is None:
            return
        self.records.put_account(account)
        former = NO_TIME if start is None else start.next_expiry
        if account.next_expiry != former:
            self.records.wake(account.account_id, former, account.next_expiry)

    # -- the payment -----------------------------------------------------------------------------

    def tell(
        self,
        event: type[PaymentEvent],
        payment: Payment,
        amount: int,
        *,
        held_by: int = 0,
        posted_by: int = 0,
        response_code: str = "00",
        facts: Mapping[str, Any] = _NO_FACTS,
    ) -> None:
        """Add an event about `payment`, as it is after it. `held_by` and `posted_by` are what the
        account's sums change by, `facts` what only this kind of event has."""
        before = self.account
        assert before is not None
        version = before.version + 1
        if held_by or posted_by:
            account = replace(
                before, held=before.held + held_by, posted=before.posted + posted_by, version=version
            )
        else:
            account = replace(before, version=version)
        self.account = account
        self.events.append(
            event(
                at=self.at,
                seq=version,
                position=self.position,
                account=account,
                client=self.client,
                request_id=self.request_id,
                payment=payment,
                amount=amount,
                response_code=response_code,
                available_before=before.limit - before.posted - before.held,
                **facts,
            )  # type: ignore[arg-type]
        )

    def keep(self, operation: Operation, before: Payment | None, after: Payment) -> None:
        """Store the payment and what is known of its hold. The one place where a payment changes."""
        allowed = TRANSITIONS[None if before is None else before.status].get(operation, ())
        assert after.status in allowed, f"{operation}: {before and before.status} -> {after.status}"
        self.records.put_payment(after)
        if before is None:
            if held_of(after):
                self.hold_opened(after)
        elif held_of(before) and not held_of(after):
            self.records.close_hold(after.account, after.expires_at, after.payment_id)

    def hold_opened(self, payment: Payment) -> None:
        self.records.open_hold(payment.account, payment.expires_at, payment.payment_id)
        account = self.account
        assert account is not None
        if not account.next_expiry or payment.expires_at < account.next_expiry:
            self.account = replace(account, next_expiry=payment.expires_at)

    def answer(self, payment: Payment, response_code: str = "00") -> Outcome:
        return Outcome(status=200, request_id=self.request_id, response_code=response_code, payment=payment)

    # -- refusals --------------------------------------------------------------------------------

    def refuse(
        self,
        status: int,
        reason: str,
        *,
        payment: Payment | None = None,
        payment_id: str = "",
        account_id: str = "",
        response_code: str = "",
        left: int | None = None,
    ) -> Outcome:
        """Record that the request is refused; nothing else changes."""
        if payment is not None:
            account_id, payment_id = payment.account, payment.payment_id
        elif not account_id and self.account is not None:
            account_id = self.account.account_id
        self.events.append(
            RequestRefused(
                at=self.at,
                position=self.position,
                account_id=account_id,
                client=self.client,
                request_id=self.request_id,
                http_status=status,
                reason=reason,
                payment_id=payment_id,
            )
        )
        return Outcome(
            status=status,
            request_id=self.request_id,
            response_code=response_code,
            payment=payment,
            refusal=Refusal(
                reason=reason,
                state="" if payment is None else payment.status.value,
                left=left,
                currency="" if payment is None else payment.currency,
            ),
        )

    def check_decimals(self, account: Account, currency: str | None, field: str = "amount") -> Outcome | None:
        """The refusal of a `field` that was read in another number of decimals than the account's currency
        has, or None. `currency`: what the gateway read it in; None: it did not say."""
        if currency is None or currency == account.currency:
            return None
        decimals = exponent_of(account.currency)
        if exponent_of(currency) == decimals:
            return None
        return self.refuse(
            400,
            f"{field} must have exactly {decimals} decimals: the account is in {account.currency}",
            response_code="13",
        )

    def refuse_amount(self, payment: Payment, reason: str) -> Outcome:
        return self.refuse(400, reason, payment=payment, response_code="13")

    def check(
        self, operation: Operation, payment: Payment, amount: int | None, exponent: int | None
    ) -> Outcome | None:
        """The refusal that every operation on a payment has in common, or None: the amount is in the
        payment's decimals and more than nothing, and its state allows the operation."""
        if amount is not None:
            decimals = exponent_of(payment.currency)
            if exponent is not None and exponent != decimals:
                return self.refuse_amount(
                    payment,
                    f"amount must have exactly {decimals} decimals: the payment is in {payment.currency}",
                )
            if amount == 0:
                return self.refuse_amount(payment, "amount must be more than zero")
        if not allows(payment.status, operation):
            return self.refuse(
                409, _STATE_FORBIDS[operation].format(payment.status.value), payment=payment, left=0
            )
        return None


_STATE_FORBIDS = {
    Operation.INCREMENT: "the hold has ended: the payment is {}, authorize a new one",
    Operation.CAPTURE: "the hold has ended: the payment is {}",
    Operation.REVERSE: "nothing is held: the payment is {}",
    Operation.REFUND: "more than is left to refund: the payment is {}",
    Operation.CHARGE_BACK: "more than is cleared and left: the payment is {}",
    Operation.REPRESENT: "there is no such chargeback: the payment is {}",
    Operation.ACCEPT: "there is no such chargeback: the payment is {}",
    Operation.CLEAR: "there is no such capture: the payment is {}",
    Operation.REJECT: "there is no such capture: the payment is {}",
}
