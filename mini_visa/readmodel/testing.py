"""A log of payment events for tests and measurements, made without a broker or the services.

log = EventLog()
account = log.open("tok_1", limit=100_000)
payment = log.authorize(account, 1_000, merchant_id="m1")
log.capture(payment)
log.records[0]  # what payment.events' partition 0 holds
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from mini_visa import topics
from mini_visa.domain import events
from mini_visa.domain.commands import FraudAlert
from mini_visa.domain.ids import payment_id as made_id
from mini_visa.domain.payment import (
    Account,
    Capture,
    Card,
    Merchant,
    Payment,
    PaymentStatus,
    RuleHit,
)
from mini_visa.readmodel.apply import Applier, Batch
from mini_visa.readmodel.views import View
from mini_visa.streams.processor import Record
from mini_visa.streams.topic import partition_of

START_MS: Final = 1_767_225_600_000
"""2026-01-01T00:00:00Z."""
STEP_MS: Final = 10
COMMANDS_APART: Final = 3


class EventLog:
    """Appends facts to the partitions of payment.events, as authorization would: each is one command's."""

    def __init__(self, partitions: int = 4) -> None:
        self.partitions = partitions
        self.records: dict[int, list[Record]] = defaultdict(list)
        self.alerts: dict[int, list[Record]] = defaultdict(list)
        self.accounts: dict[str, Account] = {}
        self.payments: dict[str, Payment] = {}
        self.now = START_MS
        self.gaps = True
        """Leave a hole after each tenth record, as transaction markers do."""
        self._offsets: dict[int, int] = defaultdict(int)
        self._commands: dict[int, int] = defaultdict(int)

    def partition(self, account_id: str) -> int:
        return partition_of(account_id.encode(), self.partitions)

    def last_position(self, account_id: str) -> int:
        """Of the last command on the account's partition."""
        return self._commands[self.partition(account_id)]

    # -- facts -------------------------------------------------------------------------------------

    def open(self, account_id: str, *, limit: int = 100_000, currency: str = "USD") -> str:
        account = Account(
            account_id=account_id,
            bin="411111",
            last4="1111",
            currency=currency,
            limit=limit,
            opened_at=self.now,
        )
        self._account_event(events.AccountOpened, account)
        return account_id

    def authorize(
        self,
        account_id: str,
        amount: int,
        *,
        merchant_id: str = "m1",
        metadata: dict[str, str] | None = None,
        client: str = "local",
    ) -> str:
        """Approved when the account has that much, otherwise declined with 51; returns the payment's id."""
        account = self.accounts[account_id]
        approved = account.available >= amount
        payment = Payment(
            payment_id=self._new_id(account_id),
            account=account_id,
            client=client,
            request_id=f"r{len(self.payments)}",
            card=Card(token=account_id, bin=account.bin, last4=account.last4),
            currency=account.currency,
            amount=amount,
            status=PaymentStatus.AUTHORIZED if approved else PaymentStatus.DECLINED,
            response_code="00" if approved else "51",
            created_at=self.now,
            authorized=amount if approved else 0,
            authorization_code="A1B2C3" if approved else "",
            expires_at=self.now + 7 * 86_400_000 if approved else 0,
            merchant=Merchant(id=merchant_id, mcc="5411", country="US"),
            metadata=metadata or {},
        )
        if approved:
            account = msgspec.structs.replace(account, held=account.held + amount)
            self._payment_event(events.PaymentAuthorized, account, payment, amount=amount)
        else:
            self._payment_event(events.PaymentDeclined, account, payment, response_code="51")
        return payment.payment_id

    def unknown_card(self, account_id: str, amount: int = 1_000) -> str:
        payment = Payment(
            payment_id=self._new_id(account_id),
            account=account_id,
            client="local",
            request_id=f"r{len(self.payments)}",
            card=Card(token=account_id, bin="411111", last4="1111"),
            currency="USD",
            amount=amount,
            status=PaymentStatus.DECLINED,
            response_code="14",
            created_at=self.now,
        )
        self.payments[payment.payment_id] = payment
        self.append(
            account_id,
            lambda position: events.PaymentUnknownCard(at=self.now, position=position, payment=payment),
        )
        return payment.payment_id

    def capture(self, payment_id: str, amount: int | None = None) -> None:
        """All that is held by default."""
        payment = self.payments[payment_id]
        account = self.accounts[payment.account]
        held = payment.authorized - payment.captured - payment.released
        amount = held if amount is None else amount
        n = len(payment.captures) + 1
        captured = payment.captured + amount
        payment = msgspec.structs.replace(
            payment,
            captured=captured,
            hold_ended=captured >= payment.authorized,
            status=PaymentStatus.CAPTURED
            if captured >= payment.authorized
            else PaymentStatus.PARTIALLY_CAPTURED,
            captures=(*payment.captures, Capture(n=n, amount=amount, at=self.now)),
        )
        account = msgspec.structs.replace(account, held=account.held - amount, posted=account.posted + amount)
        self._payment_event(events.PaymentCaptured, account, payment, amount=amount, n=n, hold_used=amount)

    def reverse(self, payment_id: str) -> None:
        payment = self.payments[payment_id]
        account = self.accounts[payment.account]
        held = payment.authorized - payment.captured - payment.released
        payment = msgspec.structs.replace(
            payment,
            released=payment.released + held,
            reversed=payment.reversed + held,
            hold_ended=True,
            status=PaymentStatus.REVERSED,
        )
        account = msgspec.structs.replace(account, held=account.held - held)
        self._payment_event(events.PaymentReversed, account, payment, amount=held)

    def refuse(self, payment_id: str, reason: str = "it is reversed", http_status: int = 409) -> None:
        payment = self.payments[payment_id]
        self.append(
            payment.account,
            lambda position: events.RequestRefused(
                at=self.now,
                position=position,
                account_id=payment.account,
                client=payment.client,
                request_id="late",
                http_status=http_status,
                reason=reason,
                payment_id=payment_id,
            ),
        )

    def tick(self) -> None:
        """Into every partition."""
        self.now += STEP_MS
        for partition in range(self.partitions):
            self._append(partition, b"tick", lambda p: events.TimePassed(at=self.now, position=p))

    def alert(self, account_id: str, rule: str = "velocity") -> str:
        self.now += STEP_MS
        partition = self.partition(account_id)
        log = self.alerts[partition]
        alert = FraudAlert(
            alert_id=f"alert_{partition}_{len(log)}",
            account=account_id,
            request_id="r",
            at=self.now,
            score=50,
            amount=1_000,
            currency="USD",
            hit=RuleHit(rule=rule, version=1, outcome="alert", metric="count", value=9, threshold=8),
        )
        value = topics.FRAUD_ALERTS.encode(alert)
        log.append(Record(len(log), self.now, account_id.encode(), value))
        return alert.alert_id

    def garbage(self, partition: int, value: bytes | None = b"\xff not json") -> None:
        self._put(partition, b"k", value)

    # -- bytes -------------------------------------------------------------------------------------

    def _account_event(self, event: type, account: Account, **more: Any) -> None:
        account = msgspec.structs.replace(account, version=account.version + 1)
        self.accounts[account.account_id] = account
        self.append(
            account.account_id,
            lambda position: event(
                at=self.now, seq=account.version, position=position, account=account, **more
            ),
        )

    def _payment_event(self, event: type, account: Account, payment: Payment, **more: Any) -> None:
        self.payments[payment.payment_id] = payment
        self._account_event(event, account, payment=payment, **more)

    def append(self, account_id: str, fact: Any) -> None:
        """`fact` makes the event from its command's position."""
        self._append(self.partition(account_id), account_id.encode(), fact)
        self.now += STEP_MS

    def _new_id(self, account_id: str) -> str:
        """Of a payment that the next command begins."""
        return made_id(account_id, self._commands[self.partition(account_id)] + COMMANDS_APART)

    def _append(self, partition: int, key: bytes, fact: Any) -> None:
        self._commands[partition] += COMMANDS_APART  # commands have other offsets than their events
        self._put(partition, key, topics.PAYMENT_EVENTS.encode(fact(self._commands[partition])))

    def _put(self, partition: int, key: bytes, value: bytes | None) -> None:
        offset = self._offsets[partition]
        self.records[partition].append(Record(offset, self.now, key, value))
        self._offsets[partition] = offset + (2 if self.gaps and offset % 10 == 9 else 1)


async def apply_new(applier: Applier, view: View, partition: int, records: Sequence[Any]) -> None:
    """What of `records` is not in the read model yet. One that is no message of its topic is an error."""
    place = (view.topic.name, partition)
    position = (await applier.positions({place: 0}))[place].next_offset
    new = [record for record in records if record.offset >= position]
    if new:
        await applier.apply([Batch(view, partition, position, new, new[-1].timestamp)], refuse)


def refuse(record: Any, reason: str) -> None:
    raise AssertionError(f"offset {record.offset}: {reason}")


def random_log(payments: int, *, accounts: int = 100, partitions: int = 4, seed: int = 1) -> EventLog:
    """Accounts, then `payments` of them: most are captured, some reversed, some declined, some refused."""
    draw = random.Random(seed)  # noqa: S311 - not a secret
    log = EventLog(partitions)
    names = [log.open(f"tok_{number:06d}", limit=10**9) for number in range(accounts)]
    poor = log.open("tok_poor", limit=0)
    started: list[str] = []
    for number in range(payments):
        account = poor if number % 50 == 49 else draw.choice(names)
        merchant = f"m{draw.randrange(200)}"
        metadata = {"order": str(draw.randrange(payments))} if number % 10 == 0 else None
        payment = log.authorize(account, draw.randrange(100, 50_000), merchant_id=merchant, metadata=metadata)
        if account != poor:
            started.append(payment)
        if len(started) > 50:
            payment = started.pop(draw.randrange(len(started)))
            if draw.random() < 0.9:
                log.capture(payment)
            else:
                log.reverse(payment)
                log.refuse(payment)
        if number % 100 == 0:
            log.tick()
        if number % 200 == 0:
            log.alert(account)
    for payment in started:
        log.capture(payment)
    return log
