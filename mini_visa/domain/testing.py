"""Test accounts with no service around them: commands in, decisions, balances and postings back."""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

from mini_visa.domain.account import Decision, decide, expire_holds
from mini_visa.domain.commands import (
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
    ReversePayment,
    TimeOutReversal,
)
from mini_visa.domain.events import PaymentFact
from mini_visa.domain.ledger import postings_of
from mini_visa.domain.money import exponent_of, parse_amount
from mini_visa.domain.payment import Account, Card, Payment
from mini_visa.domain.records import StoredRequest
from mini_visa.domain.terms import DEFAULT_TERMS, Terms

NOON: Final = 1_767_268_800_000
"""2026-01-01T12:00:00Z, ms: when a host's life begins."""

ACCOUNT: Final = "tok_1testcard"


class MemoryRecords:
    """`Records` in dicts."""

    def __init__(self) -> None:
        self.accounts: dict[str, Account] = {}
        self.payments: dict[str, Payment] = {}
        self.requests: dict[tuple[str, str, str], StoredRequest] = {}
        self.holds: set[tuple[str, int, str]] = set()
        self.wakes: set[tuple[int, str]] = set()

    def account(self, account: str) -> Account | None:
        return self.accounts.get(account)

    def put_account(self, account: Account) -> None:
        self.accounts[account.account_id] = account

    def payment(self, payment_id: str) -> Payment | None:
        return self.payments.get(payment_id)

    def put_payment(self, payment: Payment) -> None:
        self.payments[payment.payment_id] = payment

    def request(
        self, account: str, client: str, request_id: str, at: int, window_ms: int
    ) -> StoredRequest | None:
        row = self.requests.get((account, client, request_id))
        return row if row is not None and at < row.at + window_ms else None

    def put_request(self, account: str, client: str, request_id: str, row: StoredRequest) -> None:
        self.requests[account, client, request_id] = row

    def open_hold(self, account: str, expires_at: int, payment_id: str) -> None:
        self.holds.add((account, expires_at, payment_id))

    def close_hold(self, account: str, expires_at: int, payment_id: str) -> None:
        self.holds.remove((account, expires_at, payment_id))

    def due_holds(self, account: str, at: int, limit: int | None) -> tuple[list[str], int]:
        open_holds = sorted(hold for hold in self.holds if hold[0] == account)
        due = [hold for hold in open_holds if hold[1] <= at][:limit]
        rest = open_holds[len(due) :]
        return [payment_id for _, _, payment_id in due], rest[0][1] if rest else 0

    def wake(self, account: str, former: int, next_expiry: int) -> None:
        self.wakes.discard((former, account))
        if next_expiry:
            self.wakes.add((next_expiry, account))


class Host:
    """An issuer's host with (unless told otherwise) one open account. Amounts are decimal strings, as
    clients write them; every request gets an id of its own unless one is given.

    host = Host(limit="100.00")
    payment = host.authorize("60.00").outcome.payment
    assert host.authorize("50.00").outcome.response_code == "51"
    """

    def __init__(
        self,
        *,
        limit: str = "1000.00",
        currency: str = "USD",
        account: str = ACCOUNT,
        opened: bool = True,
        terms: Terms = DEFAULT_TERMS,
        **fields: Any,
    ) -> None:
        self.records = MemoryRecords()
        self.terms = terms
        self.account_id = account
        self.currency = currency
        self.at = NOON
        self.position = 0
        self.events: list[PaymentFact] = []
        self.ledger: Counter[tuple[str, str]] = Counter()
        """(ledger account, currency) -> balance, debit > 0; zero balances are not there."""
        if opened:
            self.send(
                OpenAccount(
                    account=account, request_id="open", bin="411111", last4="1111", currency=currency,
                    limit=self.minor(limit), **fields,
                )
            )  # fmt: skip

    # -- what there is ---------------------------------------------------------------------------

    @property
    def account(self) -> Account:
        return self.records.accounts[self.account_id]

    def payment(self, payment: Payment | str) -> Payment:
        """The payment as it is now."""
        return self.records.payments[payment if isinstance(payment, str) else payment.payment_id]

    def minor(self, amount: str) -> int:
        return parse_amount(amount, exponent_of(self.currency))

    # -- what can be done ------------------------------------------------------------------------

    def pass_time(self, seconds: float) -> None:
        """The clock goes on; nothing is told of it."""
        self.at += round(seconds * 1000)

    def send(self, command: Command) -> Decision:
        decision = decide(self.records, command, self.at, self.position, self.terms)
        self.position += 1
        self._note(decision.events)
        return decision

    def tick(self, limit: int = 1_000) -> list[PaymentFact]:
        """What a tick does, for every account that is due."""
        noted: list[PaymentFact] = []
        for next_expiry, account in sorted(self.records.wakes):
            if next_expiry <= self.at:
                noted.extend(
                    expire_holds(
                        self.records, account, self.at, self.position, limit - len(noted), self.terms
                    )
                )
        self.position += 1
        self._note(noted)
        return noted

    def authorize(self, amount: str, **fields: Any) -> Decision:
        currency = fields.get("currency", self.currency)
        return self.send(
            Authorize(
                **self._who(fields),
                amount=parse_amount(amount, exponent_of(currency)),
                currency=currency,
                currency_given="currency" in fields,
                card=Card(token=self.account_id, bin="411111", last4="1111"),
                **_without(fields, "currency"),
            )
        )

    def time_out(self, request_id: str, attempt: str, **fields: Any) -> Decision:
        return self.send(
            TimeOutReversal(account=self.account_id, request_id=request_id, attempt=attempt, **fields)
        )

    def increment(self, payment: Payment, amount: str, **fields: Any) -> Decision:
        return self.send(
            Increment(**self._who(fields), **self._sum(amount), payment_id=payment.payment_id, **fields)
        )

    def capture(self, payment: Payment, amount: str | None = None, **fields: Any) -> Decision:
        return self.send(
            CapturePayment(**self._who(fields), **self._sum(amount), payment_id=payment.payment_id, **fields)
        )

    def reverse(self, payment: Payment, amount: str | None = None, **fields: Any) -> Decision:
        return self.send(
            ReversePayment(**self._who(fields), **self._sum(amount), payment_id=payment.payment_id, **fields)
        )

    def reverse_request(self, original_request_id: str, **fields: Any) -> Decision:
        return self.send(
            ReversePayment(**self._who(fields), original_request_id=original_request_id, **fields)
        )

    def clear(self, payment: Payment, n: int = 1, *, accepted: bool = True, **fields: Any) -> Decision:
        return self.send(
            RecordClearing(
                **self._who(fields), payment_id=payment.payment_id, n=n, accepted=accepted, **fields
            )
        )

    def refund(self, payment: Payment, amount: str | None = None, **fields: Any) -> Decision:
        return self.send(
            RefundPayment(**self._who(fields), **self._sum(amount), payment_id=payment.payment_id, **fields)
        )

    def charge_back(self, payment: Payment, amount: str | None = None, **fields: Any) -> Decision:
        return self.send(
            OpenChargeback(
                **self._who(fields),
                **self._sum(amount),
                payment_id=payment.payment_id,
                reason_code=fields.pop("reason_code", "10.4"),
                **fields,
            )
        )

    def change(self, *, limit: str | None = None, **fields: Any) -> Decision:
        return self.send(
            ChangeAccount(**self._who(fields), limit=None if limit is None else self.minor(limit), **fields)
        )

    def pay(self, amount: str, **fields: Any) -> Decision:
        return self.send(
            PayAccount(**self._who(fields), amount=self.minor(amount), currency=self.currency, **fields)
        )

    # -- inside ----------------------------------------------------------------------------------

    def _who(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Takes the request's identity out of `fields`."""
        return {
            "account": fields.pop("account", self.account_id),
            "request_id": fields.pop("request_id", f"request-{self.position}"),
        }

    def _sum(self, amount: str | None) -> dict[str, Any]:
        if amount is None:
            return {}
        return {"amount": self.minor(amount), "exponent": exponent_of(self.currency)}

    def _note(self, events: Any) -> None:
        for event in events:
            self.events.append(event)
            for posting in postings_of(event):
                key = (posting.account, posting.currency)
                self.ledger[key] += posting.amount
                if not self.ledger[key]:
                    del self.ledger[key]


def _without(fields: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if key != name}
