"""Accounts, payments, their events, alerts, and how far each topic has been applied."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "positions",
        sa.Column("topic", sa.Text, primary_key=True),
        sa.Column("partition", sa.Integer, primary_key=True),
        sa.Column("next_offset", sa.BigInteger, nullable=False),
        sa.Column("last_offset", sa.BigInteger, nullable=False),
        sa.Column("last_checksum", sa.Text, nullable=False),
        sa.Column("command_position", sa.BigInteger, nullable=False),
        sa.Column("event_time", sa.BigInteger, nullable=False),
        sa.Column("as_of", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "accounts",
        sa.Column("account_id", sa.Text, primary_key=True),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("currency", sa.Text, nullable=False),
        sa.Column("credit_limit", sa.BigInteger, nullable=False),
        sa.Column("held", sa.BigInteger, nullable=False),
        sa.Column("posted", sa.BigInteger, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("place", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "payments",
        _key("payment_key"),
        sa.Column("payment_id", sa.Text, nullable=False),
        sa.Column("account_id", sa.Text, nullable=False),
        sa.Column("client", sa.Text, nullable=False),
        sa.Column("merchant_id", sa.Text, nullable=False),
        sa.Column("currency", sa.Text, nullable=False),
        sa.Column("amount_e4", sa.BigInteger, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("place", sa.BigInteger, nullable=False),
    )
    op.create_index("payments_by_time", "payments", ["created_at", "payment_key"])
    op.create_index("payments_by_account", "payments", ["account_id", "created_at", "payment_key"])
    op.create_index("payments_by_merchant", "payments", ["merchant_id", "created_at", "payment_key"])
    op.create_index("payments_by_status", "payments", ["status", "created_at", "payment_key"])
    op.create_index("payments_by_amount", "payments", ["amount_e4", "created_at", "payment_key"])
    op.create_table(
        "payment_metadata",
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("value", sa.Text, primary_key=True),
        sa.Column("created_at", sa.BigInteger, primary_key=True),
        sa.Column("payment_key", sa.BigInteger, primary_key=True, autoincrement=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "payment_events",
        _key("place"),
        sa.Column("account_id", sa.Text, nullable=False),
        sa.Column("seq", sa.BigInteger),
        sa.Column("payment_key", sa.BigInteger),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("type", sa.Text, nullable=False),
        sa.Column("event", sa.Text, nullable=False),
    )
    op.create_index("payment_events_by_payment", "payment_events", ["payment_key", "place"])
    op.create_index("payment_events_by_account", "payment_events", ["account_id", "at", "place"])
    op.create_table(
        "alerts",
        sa.Column("alert_id", sa.Text, primary_key=True),
        sa.Column("account_id", sa.Text, nullable=False),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("rule", sa.Text, nullable=False),
        sa.Column("alert", sa.Text, nullable=False),
    )
    op.create_index("alerts_by_time", "alerts", ["at", "alert_id"])


def _key(name: str) -> sa.Column[int]:
    kind = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    return sa.Column(name, kind, primary_key=True, autoincrement=False)
