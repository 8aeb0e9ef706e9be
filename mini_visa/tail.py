"""payment.events as they happen, for people: who, what, how much, and the outcome."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from datetime import UTC, datetime

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.structs import ConsumerRecord

from mini_visa import topics
from mini_visa.domain import events
from mini_visa.domain.messages import Undecodable
from mini_visa.domain.money import exponent_of, format_amount
from mini_visa.domain.response_codes import TEXTS
from mini_visa.kafka import client_options, end_offsets
from mini_visa.settings import Settings

POLL_MS = 200


@dataclass(frozen=True)
class Seen:
    """A fact and where it is in the log. `fact` of None: the record is not one (`raw` is never shown)."""

    partition: int
    offset: int
    fact: events.PaymentFact | None
    raw: bytes


async def follow(
    settings: Settings, *, from_beginning: bool = False, until_end: bool = False, account: str = ""
) -> AsyncGenerator[Seen, None]:
    """Committed facts in the order of each partition: from now on, or all; `account`: of one only.

    `until_end` ends at what is in the log when it begins. Ticks (`TimePassed`) are left out: one
    comes every second. Reads without a consumer group, so it disturbs nobody."""
    ends = await end_offsets(settings, [topics.PAYMENT_EVENTS.name])
    consumer = AIOKafkaConsumer(
        **client_options(settings),
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        isolation_level="read_committed",
    )
    await consumer.start()
    try:
        consumer.assign(list(ends))
        for partition, end in ends.items():
            if from_beginning:
                await consumer.seek_to_beginning(partition)
            else:
                consumer.seek(partition, end)
        while not (until_end and await _is_at(consumer, ends)):
            for records in (await consumer.getmany(timeout_ms=POLL_MS)).values():
                for record in records:
                    seen = _decoded(record)
                    if not isinstance(seen.fact, events.TimePassed) and (
                        not account or (seen.fact is not None and account_of(seen.fact) == account)
                    ):
                        yield seen
    finally:
        await asyncio.shield(consumer.stop())


async def _is_at(consumer: AIOKafkaConsumer, ends: dict[TopicPartition, int]) -> bool:
    for partition, end in ends.items():
        if await consumer.position(partition) < end:
            return False
    return True


def _decoded(record: ConsumerRecord) -> Seen:
    try:
        fact = topics.PAYMENT_EVENTS.decode(record.value)
    except Undecodable:
        fact = None
    return Seen(record.partition, record.offset, fact, record.value or b"")


def account_of(fact: events.PaymentFact) -> str:
    """The account's id; "" of a fact without one."""
    if isinstance(fact, events.AccountEvent):
        return fact.account.account_id
    if isinstance(fact, events.PaymentUnknownCard):
        return fact.payment.account
    return getattr(fact, "account_id", "")


def line(seen: Seen) -> str:
    """Time, card's last four, what happened, amount, code, payment: columns that line up."""
    fact = seen.fact
    place = f"{seen.partition}:{seen.offset}"
    if fact is None:
        return f"{'':12}  ????  {'not a payment event':22} {'':>16}  at {place}"
    time = datetime.fromtimestamp(fact.at / 1000, UTC).strftime("%H:%M:%S.%f")[:-3]
    return f"{time}  {_last4(fact):4}  {_what(fact):22} {_amount(fact):>16}  {_outcome(fact)}".rstrip()


def _last4(fact: events.PaymentFact) -> str:
    if isinstance(fact, events.AccountEvent):
        return fact.account.last4
    return fact.payment.card.last4 if isinstance(fact, events.PaymentUnknownCard) else ""


def _what(fact: events.PaymentFact) -> str:
    """The message's name without its subject: "payment_authorized/1" is authorized."""
    name = str(type(fact).__struct_config__.tag).partition("/")[0]
    return name.removeprefix("payment_").replace("_", " ")


def _amount(fact: events.PaymentFact) -> str:
    if isinstance(fact, events.PaymentDeclined | events.PaymentUnknownCard):
        return _money(fact.payment.amount, fact.payment.currency)
    if isinstance(fact, events.PaymentEvent):
        return _money(fact.amount, fact.payment.currency)
    if isinstance(fact, events.AccountPaid):
        return _money(fact.amount, fact.account.currency)
    if isinstance(fact, events.AccountOpened | events.AccountChanged):
        return _money(fact.account.limit, fact.account.currency)
    return ""


def _money(minor: int, currency: str) -> str:
    return f"{format_amount(minor, exponent_of(currency))} {currency}" if currency else ""


def _outcome(fact: events.PaymentFact) -> str:
    if isinstance(fact, events.PaymentUnknownCard):
        code = fact.payment.response_code
        return f"{code} {TEXTS.get(code, '')}  {fact.payment.payment_id}"
    if isinstance(fact, events.PaymentEvent):
        return f"{fact.response_code} {TEXTS.get(fact.response_code, '')}  {fact.payment.payment_id}"
    if isinstance(fact, events.RequestRefused):
        return f"{fact.http_status} {fact.reason}"
    if isinstance(fact, events.AccountEvent):
        return f"limit, {fact.account.status}" if not isinstance(fact, events.AccountPaid) else "received"
    return ""
