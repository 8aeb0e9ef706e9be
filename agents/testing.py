"""Authorization, ledger, clearing and reversal on one partition in memory, joined by their topics."""

from __future__ import annotations

from collections import Counter, deque
from typing import Any

from agents.authorization import authorization
from agents.clearing import net, present
from agents.ledger import balances, journal, settlement
from agents.reversal import compensate
from mini_visa import topics
from mini_visa.domain.clearing import CancelPresentment, Presentment, key_of
from mini_visa.domain.commands import (
    CLEARING_CLIENT,
    AcceptChargeback,
    Authorize,
    CapturePayment,
    ChangeAccount,
    Increment,
    OpenAccount,
    OpenChargeback,
    PayAccount,
    RecordClearing,
    RefundPayment,
    RepresentChargeback,
    ReversePayment,
    Tick,
)
from mini_visa.domain.journal import TrialBalance
from mini_visa.domain.money import exponent_of, parse_amount
from mini_visa.domain.payment import Card, Merchant, Payment
from mini_visa.domain.saga import SagaEvent
from mini_visa.domain.settlement import CycleClosed, SettlementPosition
from mini_visa.streams.testing import Driver
from tables.accounts import ACCOUNTS, PAYMENTS
from tables.ledger import BALANCES

MIDNIGHT = 1_767_225_600_000
"""2026-01-01T00:00:00Z: a daily cycle begins."""
SECOND, HOUR, DAY = 1_000, 3_600_000, 86_400_000
ACCOUNT = "tok_1testcard"
M1 = Merchant(id="m1", mcc="5411")

PROCESSORS = (authorization, journal, settlement, balances, present, net, compensate)


class Pipeline:
    """What is sent goes through all services before the next thing happens. Amounts are decimal strings."""

    def __init__(self, limit: str = "1000.00", currency: str = "USD", account: str = ACCOUNT) -> None:
        self.drivers = {processor.name: Driver(processor, partitions=1) for processor in PROCESSORS}
        self.at = MIDNIGHT
        self.requests = 0
        self.currency = currency
        self.account_id = account
        self.submissions: list[Presentment | CancelPresentment] = []
        """What the connector has to do."""
        self.command(OpenAccount, bin="411111", last4="1111", currency=currency, limit=self.minor(limit))

    # -- plumbing --------------------------------------------------------------------------------

    def put(self, topic: Any, message: Any, key: bytes) -> None:
        """Write to a topic, and let everything happen that follows from it."""
        waiting: deque[tuple[str, bytes | None, bytes | None]] = deque()
        waiting.append((topic.name, topic.encode(message), key))
        while waiting:
            name, value, record_key = waiting.popleft()
            for driver in self.drivers.values():
                if driver.processor.source.name == name:
                    for output in driver.send_raw(value, key=record_key, at=self.at):
                        assert output.topic != "dead-letters", dict(output.headers)
                        waiting.append((output.topic, output.value, output.key))
            if name == topics.CLEARING_SUBMISSIONS.name:
                self.submissions.append(topics.CLEARING_SUBMISSIONS.decode(value))

    def command(self, kind: type, **fields: Any) -> None:
        self.requests += 1
        identity = {"account": self.account_id, "request_id": f"r{self.requests}"}
        self.put(topics.ACCOUNT_COMMANDS, kind(**(identity | fields)), self.account_id.encode())

    def tick(self, seconds: float = 0) -> None:
        """Time passes, and everyone is told."""
        self.at += round(seconds * SECOND)
        self.put(topics.ACCOUNT_COMMANDS, Tick(), b"")
        self.put(topics.CLEARING_ITEMS, Tick(), b"")

    def minor(self, amount: str) -> int:
        return parse_amount(amount, exponent_of(self.currency))

    def _sum(self, amount: str | None) -> dict[str, Any]:
        return (
            {} if amount is None else {"amount": self.minor(amount), "exponent": exponent_of(self.currency)}
        )

    # -- what clients do -------------------------------------------------------------------------

    def authorize(self, amount: str, merchant: Merchant = M1, **fields: Any) -> str:
        """The payment's id."""
        before = set(self.payments)
        self.command(
            Authorize,
            amount=self.minor(amount),
            currency=self.currency,
            card=Card(token=self.account_id, bin="411111", last4="1111"),
            merchant=merchant,
            **fields,
        )
        (payment_id,) = set(self.payments) - before
        return payment_id

    def increment(self, payment: str, amount: str) -> None:
        self.command(Increment, payment_id=payment, **self._sum(amount))

    def capture(self, payment: str, amount: str | None = None, *, final: bool = True) -> None:
        self.command(CapturePayment, payment_id=payment, final=final, **self._sum(amount))

    def reverse(self, payment: str, amount: str | None = None) -> None:
        self.command(ReversePayment, payment_id=payment, **self._sum(amount))

    def refund(self, payment: str, amount: str | None = None) -> None:
        self.command(RefundPayment, payment_id=payment, **self._sum(amount))

    def charge_back(self, payment: str, amount: str | None = None) -> None:
        self.command(OpenChargeback, payment_id=payment, reason_code="10.4", **self._sum(amount))

    def represent(self, payment: str, n: int = 1) -> None:
        self.command(RepresentChargeback, payment_id=payment, n=n)

    def accept(self, payment: str, n: int = 1) -> None:
        self.command(AcceptChargeback, payment_id=payment, n=n)

    def change(self, **fields: Any) -> None:
        self.command(ChangeAccount, **fields)

    def pay(self, amount: str) -> None:
        self.command(PayAccount, amount=self.minor(amount), currency=self.currency)

    def clear(self, payment: str, n: int = 1, *, accepted: bool = True) -> None:
        """What the connector writes when the clearing house has decided."""
        self.command(
            RecordClearing,
            payment_id=payment,
            n=n,
            accepted=accepted,
            reason="" if accepted else "rejected",
            client=CLEARING_CLIENT,
            request_id=f"clear-{key_of(payment, n)}",
        )

    # -- what there is ---------------------------------------------------------------------------

    @property
    def payments(self) -> dict[str, Payment]:
        return self.drivers["decide"].rows(PAYMENTS)

    @property
    def account(self) -> Any:
        return self.drivers["decide"].row(ACCOUNTS, self.account_id)

    @property
    def journal(self) -> list[Any]:
        return self.drivers["journal"].sent(topics.LEDGER_JOURNAL)

    @property
    def settlement_journal(self) -> list[Any]:
        return self.drivers["settle"].sent(topics.LEDGER_SETTLEMENT_JOURNAL)

    @property
    def trial_balance(self) -> TrialBalance:
        """Folded from both journals, chains checked."""
        trial = TrialBalance()
        for entry in [*self.journal, *self.settlement_journal]:
            trial.add(entry)
        return trial

    @property
    def ledger(self) -> dict[str, int]:
        """Ledger account -> balance, from the balances table, without those that are zero. The same as the
        fold of the journals, or the test ends here."""
        rows = {
            tuple(key.rsplit("/", 1)): row.amount
            for key, row in self.drivers["balances"].rows(BALANCES).items()
        }
        trial = self.trial_balance
        assert rows == trial.balances
        assert trial.difference(self.currency) == 0
        return {account: balance for (account, _), balance in rows.items() if balance}

    def postings_of(self, payment: str) -> dict[str, int]:
        """Ledger account -> what the payment's entries add up to, without zeros."""
        sums: Counter[str] = Counter()
        for entry in self.journal:
            if entry.payment_id == payment:
                for account, _, amount in entry.postings:
                    sums[account] += amount
        return {account: amount for account, amount in sums.items() if amount}

    @property
    def presented(self) -> list[str]:
        return [one.key for one in self.submissions if isinstance(one, Presentment)]

    @property
    def cancelled(self) -> list[str]:
        return [one.key for one in self.submissions if isinstance(one, CancelPresentment)]

    @property
    def saga_events(self) -> list[SagaEvent]:
        return self.drivers["compensate"].sent(topics.PAYMENT_SAGAS)

    @property
    def positions(self) -> list[SettlementPosition]:
        told = self.drivers["net"].sent(topics.SETTLEMENT_POSITIONS)
        return [one for one in told if isinstance(one, SettlementPosition)]

    @property
    def closed_cycles(self) -> list[CycleClosed]:
        told = self.drivers["net"].sent(topics.SETTLEMENT_POSITIONS)
        return [one for one in told if isinstance(one, CycleClosed)]
