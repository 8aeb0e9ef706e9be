"""Every query finds its rows by an index, in the order it shows them: none grows with the tables."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from mini_visa.domain.payment import PaymentStatus
from mini_visa.readmodel import Database, ReadModel
from mini_visa.readmodel.queries import PaymentFilters
from mini_visa.readmodel.testing import START_MS, random_log

SMALL = {"positions", "rules"}
"""Tables that do not grow with payments: they may be read through."""
SORTED = {"payment", "sagas", "late sagas", "ledger account then"}
"""Of few rows: a payment's events; what is late, in each of its states; the currencies of an account."""
PAYMENT = "pay_000001_1"
QUERIES: dict[str, tuple[str, dict[str, Any]]] = {
    "payment": ("payment", {"payment_id": PAYMENT}),
    "payments": ("payments", {"filters": PaymentFilters()}),
    **{
        f"payments by {name}": ("payments", {"filters": PaymentFilters(**{name: value})})
        for name, value in {
            "account": "tok_000001",
            "merchant_id": "m1",
            "status": PaymentStatus.CAPTURED,
            "from_ms": START_MS,
            "to_ms": START_MS + 1_000,
            "metadata": {"order": "7"},
        }.items()
    },
    "payments by two labels": (
        "payments",
        {"filters": PaymentFilters(metadata={"order": "7", "colour": "red"})},
    ),
    "account": ("account", {"account_id": "tok_000001"}),
    "account then": ("account_at", {"account_id": "tok_000001", "at": START_MS}),
    "account after": ("account_after", {"account_id": "tok_000001", "partition": 0, "offset": 9}),
    "payment after": ("payment_after", {"payment_id": PAYMENT, "partition": 0, "offset": 9}),
    "entries": ("entries", {"account_id": "tok_000001"}),
    "entries then": ("entries", {"account_id": "tok_000001", "at": START_MS}),
    "alerts": ("alerts", {}),
    "ledger account": ("ledger_account", {"name": "holds:contra"}),
    "ledger account then": ("ledger_account_at", {"name": "holds:contra", "at": START_MS}),
    "statement": ("ledger_statement", {"name": "payable:merchant:m1"}),
    "statement then": ("ledger_statement", {"name": "payable:merchant:m1", "at": START_MS}),
    "journal entries": ("journal_entries", {"payment_id": PAYMENT}),
    "cycles": ("settlement_cycles", {}),
    "cycle": ("settlement_positions", {"cycle": "20260101T000000Z"}),
    "sagas": ("open_sagas", {}),
    "late sagas": ("sagas", {}),
    "wait": ("wait_for", {"partition": 0, "position": 0, "timeout_s": 0.001}),
    "lag": ("lag_ms", {}),
}


@pytest.fixture(params=["sqlite"])
def settings(settings):
    return settings


class Plans:
    """What SQLite says of each statement, beside running it."""

    def __init__(self, database: Database) -> None:
        self.lines: list[str] = []
        sa.event.listen(database.engine.sync_engine, "before_cursor_execute", self._explain)

    def _explain(
        self, connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool
    ) -> None:
        if statement.startswith("SELECT"):
            cursor.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)
            self.lines += [row[3] for row in cursor.fetchall()]


@pytest.mark.parametrize("name", QUERIES)
async def test_a_query_walks_an_index_and_sorts_nothing(read_model: ReadModel, fill: Any, name: str) -> None:
    await fill(random_log(30, accounts=3))
    plans = Plans(read_model._database)
    query, arguments = QUERIES[name]
    await getattr(read_model, query)(**arguments)
    assert plans.lines
    for line in plans.lines:
        what, _, rest = line.partition(" ")
        if what == "USE":
            assert name in SORTED, line
        else:
            table, _, way = rest.partition(" ")
            assert way.startswith("USING ") or table in SMALL, f"{table} is read through: {line}"
