"""What each topic becomes in SQL: pure functions from a partition's records to rows.

To add a topic: its tables in `schema.py`, a migration, a `Write` for each, a function here, and a line
in `ALL`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, get_args

import msgspec

from mini_visa import topics
from mini_visa.domain import events
from mini_visa.domain.clearing import ClearingItem
from mini_visa.domain.ids import InvalidId, account_of
from mini_visa.domain.lifecycle import clearing_status
from mini_visa.domain.money import EXPONENTS
from mini_visa.domain.payment import Account, Payment
from mini_visa.domain.settlement import CycleClosed
from mini_visa.readmodel import schema
from mini_visa.readmodel.schema import PARTITION_BITS, entry_key
from mini_visa.readmodel.writes import Changes, Row, Write
from mini_visa.streams.topic import AnyTopic

NO_POSITION: Final = -1
NUL_STAND_IN: Final = "\ufffd"

ACCOUNTS = Write(
    schema.accounts, ["status", "currency", "credit_limit", "held", "posted", "version", "place"]
)
PAYMENTS = Write(schema.payments, ["status", "place", "clearing"])
METADATA = Write(schema.payment_metadata, "ignore")
EVENTS = Write(schema.payment_events, "never")
ALERTS = Write(schema.alerts, "ignore")
ENTRIES = Write(schema.journal_entries, "never")
BALANCES = Write(schema.ledger_balances, ["debits", "credits"], adds=["debits", "credits"])
POSITIONS = Write(schema.settlement_positions, ["position"])
CYCLES = Write(schema.settlement_cycles, ["positions", "closed_at", "end_item"])
POSTINGS = Write(schema.journal_postings, "never")
ITEMS = Write(schema.clearing_items, ["partition", "offset"])
RULES = Write(schema.rules, ["at", "body"])
SAGAS = Write(schema.sagas, ["state", "since", "saga"])

OF_NO_PAYMENT: Final = frozenset({404, 422})
"""Refused before the payment was looked at, whoever sent it: such a request is no part of the record of the
payment that it names, which may be another client's."""

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
    writes: tuple[Write, ...]
    """What it fills."""


def is_payment_id(text: str) -> bool:
    """Clients say which payment they mean, and it need not be one."""
    try:
        account_of(text)
    except InvalidId:
        return False
    return True


def payment_key(payment_id: str, partition: int) -> int:
    """Where the payment began: its id ends with the position of its first command, in hexadecimal."""
    return int(payment_id[payment_id.rindex("_") + 1 :], 16) << PARTITION_BITS | partition


def payment_rows(partition: int, records: Sequence[Any], changes: Changes, refuse: Refuse) -> int:
    """payment.events: each event as it is, and the payment and the account as the last of them left them."""
    decode = topics.PAYMENT_EVENTS.decode
    accounts: dict[str, tuple[Account, int]] = {}
    payments: dict[int, tuple[Payment, int]] = {}
    log = changes.rows(EVENTS)
    position = NO_POSITION
    for record, event in _decoded(records, decode, refuse):
        position = event.position
        kind = type(event)
        if kind is events.TimePassed:
            continue
        place = record.offset << PARTITION_BITS | partition
        seq = key = None
        if kind in _ON_AN_ACCOUNT:
            account_id, seq = event.account.account_id, event.seq
            accounts[account_id] = event.account, place
            if kind in _ON_A_PAYMENT:
                key = payment_key(event.payment.payment_id, partition)
                payments[key] = event.payment, place
        elif kind is events.PaymentUnknownCard:
            account_id = event.payment.account
            key = payment_key(event.payment.payment_id, partition)
            payments[key] = event.payment, place
        else:
            account_id = event.account_id
            if (
                kind is events.RequestRefused
                and event.http_status not in OF_NO_PAYMENT
                and is_payment_id(event.payment_id)
            ):
                key = payment_key(event.payment_id, partition)
        log[place] = place, account_id, seq, key, event.at, _TYPES[kind], record.value.decode()
    _account_rows(accounts, changes.rows(ACCOUNTS))
    _state_rows(payments, changes.rows(PAYMENTS), changes.rows(METADATA))
    return position


def _account_rows(accounts: dict[str, tuple[Account, int]], rows: dict[Any, Row]) -> None:
    for account_id, (account, place) in accounts.items():
        rows[account_id] = (
            account_id,
            account.status.value,
            account.currency,
            account.limit,
            account.held,
            account.posted,
            account.version,
            place,
        )


def _state_rows(
    payments: dict[int, tuple[Payment, int]], rows: dict[Any, Row], metadata: dict[Any, Row]
) -> None:
    for key, (payment, place) in payments.items():
        rows[key] = (
            key,
            payment.payment_id,
            payment.account,
            storable(payment.client),
            storable(payment.merchant.id),
            payment.currency,
            payment.amount * SCALE_E4.get(payment.currency, 100),
            payment.created_at,
            payment.status.value,
            place,
            clearing_status(payment) or "",
        )
        for name, value in payment.metadata.items():
            row = (storable(name), storable(value), payment.created_at, key)
            metadata[row] = row


_TYPES: Final = {kind: kind.__struct_config__.tag for kind in get_args(events.PaymentFact)}
_ON_AN_ACCOUNT: Final = frozenset(kind for kind in _TYPES if issubclass(kind, events.AccountEvent))
_ON_A_PAYMENT: Final = frozenset(kind for kind in _TYPES if issubclass(kind, events.PaymentEvent))


def alert_rows(partition: int, records: Sequence[Any], changes: Changes, refuse: Refuse) -> int:
    """fraud.alerts: each alert as it is."""
    rows = changes.rows(ALERTS)
    decode = topics.FRAUD_ALERTS.decode
    for record, alert in _decoded(records, decode, refuse):
        rows[alert.alert_id] = (
            alert.alert_id,
            alert.account,
            alert.at,
            alert.hit.rule,
            record.value.decode(),
        )
    return NO_POSITION


def journal_rows(partition: int, records: Sequence[Any], changes: Changes, refuse: Refuse) -> int:
    """ledger.journal and ledger.settlement-journal: each entry as it is, its postings on their accounts, and
    what they add to balances."""
    rows, lines = changes.rows(ENTRIES), changes.rows(POSTINGS)
    sums: dict[tuple[str, str, str, int], list[int]] = {}
    decode = topics.LEDGER_JOURNAL.decode
    for record, entry in _decoded(records, decode, refuse):
        key = entry_key(entry.journal, partition, entry.number)
        payment = payment_key(entry.payment_id, partition) if entry.payment_id else None
        rows[key] = key, entry.journal, payment, entry.at, entry.kind, record.value.decode()
        for posting in entry.postings:
            account = storable(posting.account)
            line = account, entry.at, key, posting.currency
            lines[line] = (*line, posting.amount)
            of = account, posting.currency, str(entry.journal), partition
            both = sums.setdefault(of, [0, 0])
            if posting.amount > 0:
                both[0] += posting.amount
            else:
                both[1] -= posting.amount
    balances = changes.rows(BALANCES)
    for of, (debits, credits) in sums.items():
        balances[of] = (*of, debits, credits)
    return NO_POSITION


def settlement_rows(partition: int, records: Sequence[Any], changes: Changes, refuse: Refuse) -> int:
    """settlement.positions: net positions of merchants, and which cycles are closed."""
    positions, cycles = changes.rows(POSITIONS), changes.rows(CYCLES)
    decode = topics.SETTLEMENT_POSITIONS.decode
    for record, fact in _decoded(records, decode, refuse):
        if isinstance(fact, CycleClosed):
            cycle = fact.cycle, fact.partition
            cycles[cycle] = (*cycle, fact.positions, fact.closed_at, fact.end_item)
        else:
            of = fact.cycle, storable(fact.merchant_id), fact.currency
            positions[of] = (*of, record.value.decode())
    return NO_POSITION


def saga_rows(partition: int, records: Sequence[Any], changes: Changes, refuse: Refuse) -> int:
    """payment.sagas: the latest that was said about each."""
    rows = changes.rows(SAGAS)
    decode = topics.PAYMENT_SAGAS.decode
    for record, saga in _decoded(records, decode, refuse):
        key = payment_key(saga.payment_id, partition)
        rows[key] = key, saga.state, saga.since, record.value.decode()
    return NO_POSITION


def item_rows(partition: int, records: Sequence[Any], changes: Changes, refuse: Refuse) -> int:
    """clearing.items: where each cleared capture is among them."""
    rows = changes.rows(ITEMS)
    decode = topics.CLEARING_ITEMS.decode
    for record, item in _decoded(records, decode, refuse):
        if isinstance(item, ClearingItem) and item.n:
            of = item.payment_id, item.n
            rows[of] = (*of, partition, record.offset)
    return NO_POSITION


def rule_rows(partition: int, records: Sequence[Any], changes: Changes, refuse: Refuse) -> int:
    """risk.rules: each version of a rule that a partition has put in force."""
    rows = changes.rows(RULES)
    decode = topics.RISK_RULES.decode
    for _, put in _decoded(records, decode, refuse):
        of = put.rule.id, put.rule.version, partition
        rows[of] = (*of, put.at, msgspec.json.encode(put.rule).decode())
    return NO_POSITION


PAYMENTS_VIEW = View(topics.PAYMENT_EVENTS, payment_rows, (ACCOUNTS, PAYMENTS, METADATA, EVENTS))
ALERTS_VIEW = View(topics.FRAUD_ALERTS, alert_rows, (ALERTS,))

ALL: Final[tuple[View, ...]] = (
    PAYMENTS_VIEW,
    ALERTS_VIEW,
    View(topics.LEDGER_JOURNAL, journal_rows, (ENTRIES, POSTINGS, BALANCES)),
    View(topics.LEDGER_SETTLEMENT_JOURNAL, journal_rows, (ENTRIES, POSTINGS, BALANCES)),
    View(topics.CLEARING_ITEMS, item_rows, (ITEMS,)),
    View(topics.SETTLEMENT_POSITIONS, settlement_rows, (POSITIONS, CYCLES)),
    View(topics.PAYMENT_SAGAS, saga_rows, (SAGAS,)),
    View(topics.RISK_RULES, rule_rows, (RULES,)),
)


def _decoded(
    records: Sequence[Any], decode: Callable[[bytes | None], Any], refuse: Refuse
) -> Iterator[tuple[Any, Any]]:
    """Each record with its message; `refuse` is told of those that cannot be decoded."""
    for record in records:
        try:
            message = decode(record.value)
        except ValueError as error:
            refuse(record, str(error))
        else:
            yield record, message
