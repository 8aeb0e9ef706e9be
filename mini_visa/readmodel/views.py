"""What each topic becomes in SQL: pure functions from a partition's records to rows.

To add a topic: its tables in `schema.py`, a migration, a `Write` for each, a function here, and a line
in `ALL`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from mini_visa import topics
from mini_visa.domain import events
from mini_visa.domain.commands import FraudAlert
from mini_visa.domain.money import EXPONENTS
from mini_visa.readmodel import schema
from mini_visa.readmodel.schema import PLACE_SHIFT
from mini_visa.readmodel.writes import Changes, Write
from mini_visa.streams.topic import AnyTopic

NO_POSITION: Final = -1
NUL_STAND_IN: Final = "\ufffd"

ACCOUNTS = Write(schema.accounts, "replace")
PAYMENTS = Write(schema.payments, "replace")
METADATA = Write(schema.payment_metadata, "ignore")
EVENTS = Write(schema.payment_events, "never")
ALERTS = Write(schema.alerts, "ignore")

SCALE_E4: Final = {currency: 10 ** (4 - exponent) for currency, exponent in EXPONENTS.items()}


class SourceRecord(Protocol):
    """What is read of a record: aiokafka's ConsumerRecord has it, and so has `streams.Record`."""

    @property
    def offset(self) -> int: ...
    @property
    def timestamp(self) -> int: ...
    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...


def storable(text: str) -> str:
    """`text` as every database takes it: PostgreSQL has no NUL character. Clients choose these texts."""
    return text.replace("\0", NUL_STAND_IN) if "\0" in text else text


Refuse = Callable[[Any, str], None]
"""Takes a record that is not a message of its topic, and why."""


@dataclass(frozen=True)
class View:
    """One topic's way into SQL."""

    topic: AnyTopic
    rows: Callable[[int, Sequence[Any], Changes, Refuse], int]
    """(partition, records, changes, refuse): fills `changes`; returns the last command's position, or
    NO_POSITION when none of the records tells one."""


def payment_rows(partition: int, records: Sequence[Any], changes: Changes, refuse: Refuse) -> int:
    """payment.events: each event as it is, and the payment and the account as it left them."""
    accounts, payments = changes.rows(ACCOUNTS), changes.rows(PAYMENTS)
    metadata, log = changes.rows(METADATA), changes.rows(EVENTS)
    decode = topics.PAYMENT_EVENTS.decode
    base = partition << PLACE_SHIFT
    position = NO_POSITION
    for record in records:
        try:
            event = decode(record.value)
        except ValueError as error:
            refuse(record, str(error))
            continue
        position = event.position
        if isinstance(event, events.TimePassed):
            continue
        place = base | record.offset
        seq = payment = None
        if isinstance(event, events.AccountEvent):
            account, seq = event.account, event.seq
            account_id = account.account_id
            accounts[account_id] = (
                account_id,
                account.status.value,
                account.currency,
                account.limit,
                account.held,
                account.posted,
                account.version,
                place,
            )
            if isinstance(event, events.PaymentEvent):
                payment = event.payment
        elif isinstance(event, events.PaymentUnknownCard):
            payment, account_id = event.payment, event.payment.account
        else:
            account_id = event.account_id
        payment_id = None
        if payment is not None:
            payment_id = payment.payment_id
            payments[payment_id] = (
                payment_id,
                payment.account,
                storable(payment.client),
                storable(payment.merchant.id),
                payment.status.value,
                payment.currency,
                payment.amount * SCALE_E4.get(payment.currency, 100),
                payment.created_at,
                place,
            )
            for key, value in payment.metadata.items():
                row = (storable(key), storable(value), payment.created_at, payment_id)
                metadata[row] = row
        elif isinstance(event, events.RequestRefused):
            payment_id = event.payment_id or None
        log[place] = (
            place,
            account_id,
            seq,
            payment_id,
            event.at,
            type(event).__struct_config__.tag,
            record.value.decode(),
        )
    return position


def alert_rows(partition: int, records: Sequence[Any], changes: Changes, refuse: Refuse) -> int:
    """fraud.alerts: each alert as it is."""
    rows = changes.rows(ALERTS)
    decode = topics.FRAUD_ALERTS.decode
    for record in records:
        try:
            alert: FraudAlert = decode(record.value)
        except ValueError as error:
            refuse(record, str(error))
            continue
        rows[alert.alert_id] = (
            alert.alert_id,
            alert.account,
            alert.at,
            alert.hit.rule,
            record.value.decode(),
        )
    return NO_POSITION


PAYMENTS_VIEW = View(topics.PAYMENT_EVENTS, payment_rows)
ALERTS_VIEW = View(topics.FRAUD_ALERTS, alert_rows)

ALL: Final[tuple[View, ...]] = (PAYMENTS_VIEW, ALERTS_VIEW)
