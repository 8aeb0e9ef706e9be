"""One account or payment, as the log alone makes it, at any offset or time; and whether all others agree.

payment.events is read from the beginning of the account's partition. What its events show of themselves is
held against what they do: sequence numbers without a gap, holds and postings that add up in double entry,
and open payments that add up to the account's hold. The result is then compared with the read model and
with authorization's own table.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, Final

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition

from mini_visa import topics
from mini_visa.domain import events
from mini_visa.domain.ids import InvalidId, account_of, check_account_id
from mini_visa.domain.ledger import holds_of, postings_of, receivable_of
from mini_visa.domain.payment import Account, Payment, held_of
from mini_visa.errors import UserError
from mini_visa.kafka import client_options, end_offsets
from mini_visa.readmodel import ReadModel
from mini_visa.settings import Settings
from mini_visa.streams.topic import partition_of
from tables.accounts import ACCOUNTS, PAYMENTS

READ_MODEL_WAIT_S: Final = 5.0
PAYMENTS_COMPARED_MAX: Final = 1_000
"""Of an account, with the read model: its latest."""
POLL_MS: Final = 200
ALL: Final = 2**63 - 1

Show = Callable[[int, int], None]
"""Takes records read and records in all."""


class CannotReplay(UserError):
    """What was asked for is not in the log, or is no id at all."""


class Replayed(msgspec.Struct, frozen=True, kw_only=True):
    """What the log says."""

    account: Account | None
    """None: the card had no account; its requests were declined."""
    payment: Payment | None
    """The one that was asked for; None when an account was."""
    events: int
    """That are about it, up to the end asked for."""
    partition: int
    offset: int
    """Of the last of them."""
    at: int
    """Its time, ms."""
    checked: list[str]
    """What it was compared with."""
    skipped: list[str]
    """What it was not compared with, and why."""
    differences: list[str]
    """A sentence each. There should be none."""


async def replay(
    settings: Settings,
    subject: str,
    *,
    offset: int | None = None,
    at: int | None = None,
    show: Show | None = None,
) -> Replayed:
    """`subject` (an account's or a payment's id) after the record at `offset`, or at the time `at` (ms);
    by default now. Raises `CannotReplay`."""
    try:
        if subject.startswith("pay_"):
            account_id = account_of(subject)
        else:
            account_id = subject
            check_account_id(account_id)
    except InvalidId:
        raise CannotReplay("that is neither an account (tok_...) nor a payment (pay_...)") from None
    ends = await end_offsets(settings, [topics.PAYMENT_EVENTS.name])
    place = TopicPartition(topics.PAYMENT_EVENTS.name, partition_of(account_id.encode(), len(ends)))
    fold = Fold(account_id, subject if subject != account_id else "")
    last = ALL if offset is None else offset
    async with aclosing(_records(settings, place, min(ends[place], last + 1), show)) as records:
        async for record in records:
            if record.key == account_id.encode():
                fact = topics.PAYMENT_EVENTS.decode(record.value)
                if at is None or fact.at <= at:
                    fold.add(record.offset, fact)
    if fold.subject_events == 0:
        raise CannotReplay(
            f"{subject} is not in the log{'' if offset is None and at is None else ' by then'}"
        )
    fold.check_holds()
    now = offset is None and at is None
    await _compare_read_model(settings, place.partition, fold)
    if now:
        await _compare_tables(settings, place.partition, fold)
    else:
        fold.skipped.append("authorization's table: it holds the present only")
    return Replayed(
        account=fold.account,
        payment=fold.payments.get(fold.payment_id) if fold.payment_id else None,
        events=fold.subject_events,
        partition=place.partition,
        offset=fold.offset,
        at=fold.at,
        checked=fold.checked,
        skipped=fold.skipped,
        differences=fold.differences,
    )


class Fold:
    """An account's events, one after the other, and what does not add up."""

    def __init__(self, account_id: str, payment_id: str = "") -> None:
        self.account_id = account_id
        self.payment_id = payment_id
        self.account: Account | None = None
        self.payments: dict[str, Payment] = {}
        self.account_events = 0
        """That changed the account: entries of its statement."""
        self.subject_events = 0
        self.offset = -1
        self.at = 0
        """Of the subject's last event."""
        self.account_offset = -1
        """Of the account's last event: another payment of it may have moved on."""
        self.checked = ["its own events"]
        self.skipped: list[str] = []
        self.differences: list[str] = []
        self._held = self._posted = 0

    def add(self, offset: int, fact: events.PaymentFact) -> None:
        payment = getattr(fact, "payment", None)
        about = payment.payment_id if payment is not None else getattr(fact, "payment_id", "")
        if not self.payment_id or about == self.payment_id:
            self.subject_events += 1
            self.offset, self.at = offset, fact.at
        self.account_offset = offset
        if payment is not None:
            self.payments[payment.payment_id] = payment
        if not isinstance(fact, events.AccountEvent):
            return
        self.account_events += 1
        if fact.seq != self.account_events:
            self._differs(f"the event at offset {offset} is number {fact.seq}, not {self.account_events}")
            self.account_events = fact.seq
        for posting in postings_of(fact):
            self._held += posting.amount * (posting.account == holds_of(self.account_id))
            self._posted += posting.amount * (posting.account == receivable_of(self.account_id))
        account = self.account = fact.account
        if (account.held, account.posted) != (self._held, self._posted):
            self._differs(
                f"after offset {offset} the account shows held {account.held} and posted {account.posted}; "
                f"its postings add up to {self._held} and {self._posted}"
            )
            self._held, self._posted = account.held, account.posted

    def check_holds(self) -> None:
        if self.account is not None:
            held = sum(held_of(payment) for payment in self.payments.values())
            if held != self.account.held:
                self._differs(f"open holds add up to {held}; the account shows {self.account.held}")

    def compare(self, where: str, account: Account | None, payments: dict[str, Payment | None]) -> None:
        """With another's view of the account and of some of its payments."""
        self.checked.append(where)
        if account != self.account:
            self._differs(f"{where}: the account is {_fields_that_differ(account, self.account)}")
        for payment_id, payment in payments.items():
            if payment != self.payments.get(payment_id):
                difference = _fields_that_differ(payment, self.payments.get(payment_id))
                self._differs(f"{where}: {payment_id} is {difference}")

    def _differs(self, sentence: str) -> None:
        self.differences.append(sentence)


def _fields_that_differ(found: Any, expected: Any) -> str:
    if found is None or expected is None:
        return "missing" if found is None else "there, and not in the log"
    return ", ".join(
        f"{name} {getattr(found, name)!r} instead of {getattr(expected, name)!r}"
        for name in found.__struct_fields__
        if getattr(found, name) != getattr(expected, name)
    )


# -- the others --------------------------------------------------------------------------------------


async def _compare_read_model(settings: Settings, partition: int, fold: Fold) -> None:
    """At the same event: the read model is asked for the account as it was after `fold`'s last one."""
    async with await ReadModel.open(settings.model_copy(update={"database_migrate": False})) as read_model:
        give_up_at = time.monotonic() + READ_MODEL_WAIT_S
        while not await _has(read_model, partition, fold.account_offset):
            if time.monotonic() > give_up_at:
                fold.skipped.append("the read model: it has not got that far; is the projection running?")
                return
            await asyncio.sleep(0.05)
        account = await read_model.account_after(fold.account_id, partition, fold.account_offset)
        wanted = [fold.payment_id] if fold.payment_id else list(fold.payments)[-PAYMENTS_COMPARED_MAX:]
        found = {
            payment_id: await read_model.payment_after(payment_id, partition, fold.account_offset)
            for payment_id in wanted
        }
    fold.compare("the read model", account, found)


async def _has(read_model: ReadModel, partition: int, offset: int) -> bool:
    return any(
        position.topic == topics.PAYMENT_EVENTS.name
        and position.partition == partition
        and position.next_offset > offset
        for position in await read_model.positions()
    )


async def _compare_tables(settings: Settings, partition: int, fold: Fold) -> None:
    """Authorization's rows, as its changelog has them: RocksDB itself belongs to the running worker."""
    name = f"{settings.environment}.authorization.decide.changelog"
    account_key = ACCOUNTS.name.encode() + b"\0" + fold.account_id.encode()
    payment_keys = {
        PAYMENTS.name.encode() + b"\0" + payment_id.encode(): payment_id for payment_id in fold.payments
    }
    account: Account | None = None
    payments: dict[str, Payment | None] = {}
    place = TopicPartition(name, partition)
    try:
        ends = await end_offsets(settings, [name])
    except UserError:
        fold.skipped.append(f"authorization's table: there is no topic {name}")
        return
    async with aclosing(_records(settings, place, ends[place], None)) as records:
        async for record in records:
            if record.key == account_key:
                account = None if record.value is None else ACCOUNTS.decode(record.value)
            elif record.key in payment_keys:
                value = None if record.value is None else PAYMENTS.decode(record.value)
                payments[payment_keys[record.key]] = value
    if account is not None and account.version != (fold.account.version if fold.account else 0):
        fold.skipped.append("authorization's table: the account has moved on meanwhile; ask again")
        return
    if fold.payment_id:
        payments = {fold.payment_id: payments.get(fold.payment_id)}
    kept = {payment_id: payment for payment_id, payment in payments.items() if payment is not None}
    fold.compare("authorization's table", account, dict(kept))


async def _records(
    settings: Settings, place: TopicPartition, end: int, show: Show | None
) -> AsyncGenerator[Any, None]:
    """Committed records of one partition from its beginning, up to the offset `end`."""
    consumer = AIOKafkaConsumer(
        **client_options(settings),
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        isolation_level="read_committed",
        max_partition_fetch_bytes=settings.batch_bytes_max,
    )
    await consumer.start()
    try:
        consumer.assign([place])
        await consumer.seek_to_beginning(place)
        while (position := await consumer.position(place)) < end:
            for record in (await consumer.getmany(timeout_ms=POLL_MS)).get(place, ()):
                if record.offset < end:
                    yield record
            if show is not None:
                show(min(position, end), end)
    finally:
        await asyncio.shield(consumer.stop())
