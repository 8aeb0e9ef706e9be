"""The read model's tables. What is written here is what the newest migration makes; a test holds the two
against each other.

Rows are keyed by where they come from: `place` is a record of payment.events, `payment_key` the command
that began a payment (its position is in the payment's id). Both grow with time, so that new rows go to
the end of a table and of its indexes.

A row that shows a state (a payment, an account) keeps what is searched and the `place` of the event that
made it so. The state itself is read from that event: it is stored once.

SQL never sees a card number: a card is its token, its first six and last four digits.
"""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

HEAD: Final = "0003"
"""The migration that makes the tables below. An older or newer database is refused, see `Database`."""

PARTITION_BITS: Final = 14

metadata = sa.MetaData()


def place_of(partition: int, offset: int) -> int:
    """One number for a record of a topic: offset * 2**14 + partition. On one partition it orders records
    as they happened."""
    assert 0 <= partition < 1 << PARTITION_BITS and 0 <= offset < 1 << 49
    return offset << PARTITION_BITS | partition


def partition_and_offset(place: int) -> tuple[int, int]:
    """Inverse of `place_of`."""
    return place & (1 << PARTITION_BITS) - 1, place >> PARTITION_BITS


def entry_key(journal: str, partition: int, number: int) -> int:
    """One number for an entry of either journal; it grows along each chain."""
    settlement = int(journal == "settlement")
    return (number << 1 | settlement) << PARTITION_BITS | partition


def _key(name: str) -> sa.Column[int]:
    """A primary key that is SQLite's own row number, and so costs no index (BIGINT would not be it)."""
    kind = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    return sa.Column(name, kind, primary_key=True, autoincrement=False)


positions = sa.Table(
    "positions",
    metadata,
    sa.Column("topic", sa.Text, primary_key=True),
    sa.Column("partition", sa.Integer, primary_key=True),
    # Where to read on. It changes in the transaction that writes the rows, and only from the value it
    # was read at: whoever comes second changes nothing. That is what makes it exactly once.
    sa.Column("next_offset", sa.BigInteger, nullable=False),
    # The last record applied and its checksum: a topic that was made anew or lost its end has another.
    sa.Column("last_offset", sa.BigInteger, nullable=False),
    sa.Column("last_checksum", sa.Text, nullable=False),
    # payment.events only: offset in account.commands of the last command all of whose events are here.
    sa.Column("command_position", sa.BigInteger, nullable=False),
    # Timestamp of the last record, ms.
    sa.Column("event_time", sa.BigInteger, nullable=False),
    # Everything that was in the topic at this wall-clock time (ms) is in the tables.
    sa.Column("as_of", sa.BigInteger, nullable=False),
    # payment.events only: the last event's command. More events of it may follow.
    sa.Column("last_position", sa.BigInteger, nullable=False, server_default="-1"),
)

accounts = sa.Table(
    "accounts",
    metadata,
    sa.Column("account_id", sa.Text, primary_key=True),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("currency", sa.Text, nullable=False),
    sa.Column("credit_limit", sa.BigInteger, nullable=False),
    sa.Column("held", sa.BigInteger, nullable=False),
    sa.Column("posted", sa.BigInteger, nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("place", sa.BigInteger, nullable=False),
)

payments = sa.Table(
    "payments",
    metadata,
    _key("payment_key"),
    sa.Column("payment_id", sa.Text, nullable=False),
    sa.Column("account_id", sa.Text, nullable=False),
    sa.Column("client", sa.Text, nullable=False),
    sa.Column("merchant_id", sa.Text, nullable=False),
    sa.Column("currency", sa.Text, nullable=False),
    # In ten-thousandths of the currency's unit, so that 10.00 USD, 10 JPY and 10.000 KWD compare.
    sa.Column("amount_e4", sa.BigInteger, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("place", sa.BigInteger, nullable=False),
    # Of its least advanced capture that stands; "" before the first.
    sa.Column("clearing", sa.Text, nullable=False, server_default=""),
    sa.Index(
        "payments_in_clearing",
        "created_at",
        "payment_key",
        sqlite_where=sa.text("clearing = 'submitted'"),
        postgresql_where=sa.text("clearing = 'submitted'"),
    ),
    # Each list is newest first and goes on after (created_at, payment_key).
    sa.Index("payments_by_time", "created_at", "payment_key"),
    sa.Index("payments_by_account", "account_id", "created_at", "payment_key"),
    sa.Index("payments_by_merchant", "merchant_id", "created_at", "payment_key"),
    sa.Index("payments_by_status", "status", "created_at", "payment_key"),
    sa.Index("payments_by_amount", "amount_e4", "created_at", "payment_key"),
)

payment_metadata = sa.Table(
    "payment_metadata",
    metadata,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("value", sa.Text, primary_key=True),
    sa.Column("created_at", sa.BigInteger, primary_key=True),
    sa.Column("payment_key", sa.BigInteger, primary_key=True, autoincrement=False),
    sqlite_with_rowid=False,
)

payment_events = sa.Table(
    "payment_events",
    metadata,
    _key("place"),
    sa.Column("account_id", sa.Text, nullable=False),
    # Null: a fact that changes no account (a refused request, an unknown card).
    sa.Column("seq", sa.BigInteger),
    sa.Column("payment_key", sa.BigInteger),
    sa.Column("at", sa.BigInteger, nullable=False),
    sa.Column("type", sa.Text, nullable=False),
    # The record's value as it is in the topic.
    sa.Column("event", sa.Text, nullable=False),
    sa.Index("payment_events_by_payment", "payment_key", "place"),
    sa.Index("payment_events_by_account", "account_id", "at", "place"),
)

alerts = sa.Table(
    "alerts",
    metadata,
    sa.Column("alert_id", sa.Text, primary_key=True),
    sa.Column("account_id", sa.Text, nullable=False),
    sa.Column("at", sa.BigInteger, nullable=False),
    sa.Column("rule", sa.Text, nullable=False),
    # The record's value as it is in the topic.
    sa.Column("alert", sa.Text, nullable=False),
    sa.Index("alerts_by_time", "at", "alert_id"),
)

journal_entries = sa.Table(
    "journal_entries",
    metadata,
    # See `entry_key`.
    _key("entry_key"),
    sa.Column("journal", sa.Text, nullable=False),
    # Null in settlement.
    sa.Column("payment_key", sa.BigInteger),
    sa.Column("at", sa.BigInteger, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    # The record's value as it is in the topic, hash and all.
    sa.Column("entry", sa.Text, nullable=False),
    sa.Index("journal_entries_by_payment", "payment_key", "entry_key"),
)

ledger_balances = sa.Table(
    "ledger_balances",
    metadata,
    # A row per writer: those of one account and currency are summed on reading.
    sa.Column("account", sa.Text, primary_key=True),
    sa.Column("currency", sa.Text, primary_key=True),
    sa.Column("journal", sa.Text, primary_key=True),
    sa.Column("partition", sa.Integer, primary_key=True, autoincrement=False),
    # Minor units, both positive: what was debited and what was credited, ever.
    sa.Column("debits", sa.BigInteger, nullable=False),
    sa.Column("credits", sa.BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

journal_postings = sa.Table(
    "journal_postings",
    metadata,
    # A ledger account's statement, and its balance at any time.
    sa.Column("account", sa.Text, primary_key=True),
    sa.Column("at", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("entry_key", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("currency", sa.Text, primary_key=True),
    # Minor units, debit > 0.
    sa.Column("amount", sa.BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

clearing_items = sa.Table(
    "clearing_items",
    metadata,
    # A cleared capture: where the item of it is in clearing.items, and so in which cycle.
    sa.Column("payment_id", sa.Text, primary_key=True),
    sa.Column("n", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("partition", sa.Integer, nullable=False),
    sa.Column("offset", sa.BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

rules = sa.Table(
    "rules",
    metadata,
    sa.Column("rule", sa.Text, primary_key=True),
    sa.Column("version", sa.BigInteger, primary_key=True, autoincrement=False),
    # Each partition of card.requests puts a version in force.
    sa.Column("partition", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("at", sa.BigInteger, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
)

settlement_positions = sa.Table(
    "settlement_positions",
    metadata,
    sa.Column("cycle", sa.Text, primary_key=True),
    sa.Column("merchant_id", sa.Text, primary_key=True),
    sa.Column("currency", sa.Text, primary_key=True),
    # The record's value as it is in the topic.
    sa.Column("position", sa.Text, nullable=False),
)

settlement_cycles = sa.Table(
    "settlement_cycles",
    metadata,
    sa.Column("cycle", sa.Text, primary_key=True),
    # Each partition that had items in the cycle closes it.
    sa.Column("partition", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("positions", sa.BigInteger, nullable=False),
    sa.Column("closed_at", sa.BigInteger, nullable=False),
    # Items of this partition before this offset are in this cycle or one before it.
    sa.Column("end_item", sa.BigInteger, nullable=False, server_default="0"),
    sa.Index("settlement_cycles_by_item", "partition", "end_item"),
)

sagas = sa.Table(
    "sagas",
    metadata,
    # The latest that was said about a payment's saga.
    _key("payment_key"),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("since", sa.BigInteger, nullable=False),
    # The record's value as it is in the topic.
    sa.Column("saga", sa.Text, nullable=False),
    sa.Index("sagas_by_state", "state", "since", "payment_key"),
)
