"""Statements of ledger accounts, what is settled, which captures wait for an outcome, and rules.

Journals and settlement are read again from the beginning of their topics, which are kept for ever.
"""

from __future__ import annotations

import json

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

READ_AGAIN = {
    "ledger.journal": ("journal_entries", "ledger_balances"),
    "ledger.settlement-journal": (),
    "settlement.positions": ("settlement_cycles", "settlement_positions"),
}


def upgrade() -> None:
    for topic, tables in READ_AGAIN.items():
        op.execute(sa.text("DELETE FROM positions WHERE topic = :topic").bindparams(topic=topic))
        for table in tables:
            op.execute(sa.text(f'DELETE FROM "{table}"'))  # noqa: S608 - a name from above
    op.add_column("payments", sa.Column("clearing", sa.Text, nullable=False, server_default=""))
    _mark_payments_in_clearing()
    op.create_index(
        "payments_in_clearing",
        "payments",
        ["created_at", "payment_key"],
        sqlite_where=sa.text("clearing = 'submitted'"),
        postgresql_where=sa.text("clearing = 'submitted'"),
    )
    op.create_table(
        "journal_postings",
        sa.Column("account", sa.Text, primary_key=True),
        sa.Column("at", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("entry_key", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("currency", sa.Text, primary_key=True),
        sa.Column("amount", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    op.add_column(
        "settlement_cycles", sa.Column("end_item", sa.BigInteger, nullable=False, server_default="0")
    )
    op.create_index("settlement_cycles_by_item", "settlement_cycles", ["partition", "end_item"])
    op.create_table(
        "clearing_items",
        sa.Column("payment_id", sa.Text, primary_key=True),
        sa.Column("n", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("partition", sa.Integer, nullable=False),
        sa.Column("offset", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "rules",
        sa.Column("rule", sa.Text, primary_key=True),
        sa.Column("version", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("partition", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
    )


def _mark_payments_in_clearing() -> None:
    """What stands of a payment is in its last event; a capture without a state there is submitted."""
    connection = op.get_bind()
    rows = connection.execute(
        sa.text(
            "SELECT p.payment_key, e.event FROM payments p JOIN payment_events e ON e.place = p.place"
            " WHERE p.status IN ('captured', 'partially_captured')"
        )
    ).all()
    waiting = [
        {"key": key}
        for key, event in rows
        if any("state" not in capture for capture in json.loads(event)["payment"]["captures"])
    ]
    if waiting:
        connection.execute(
            sa.text("UPDATE payments SET clearing = 'submitted' WHERE payment_key = :key"), waiting
        )
