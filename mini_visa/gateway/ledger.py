"""Reads of the ledger and of settlement: balances, statements, entries, cycles, net positions; open sagas."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from typing import Final

from mini_visa import topics
from mini_visa.domain.settlement import CsvFile, rows_of
from mini_visa.gateway import views
from mini_visa.gateway.endpoints import Call, Reply
from mini_visa.gateway.problems import not_found
from mini_visa.gateway.queries import page_reply, reading, view_reply
from mini_visa.readmodel.pages import PAGE_MAX

CSV: Final = "text/csv"
CYCLE_COLUMNS: Final = ("cycle", "partitions", "positions", "closed_at")


async def trial_balance(call: Call) -> Reply:
    """Debits and credits of every ledger account, per currency, and how far the journals were read."""
    async with reading(call, None) as read_model:
        trial = await read_model.trial_balance()
        age = await read_model.lag_ms(topics.LEDGER_JOURNAL.name)
    return view_reply(views.trial_balance_view(trial), age)


async def account(call: Call) -> Reply:
    """A ledger account's balance in each of its currencies, now or at a time."""
    name, at = call.path["name"], call.values["at"]
    async with reading(call, None) as read_model:
        found = await (
            read_model.ledger_account(name) if at is None else read_model.ledger_account_at(name, at)
        )
        age = await read_model.lag_ms(topics.LEDGER_JOURNAL.name)
    if not found:
        raise not_found("ledger account" if at is None else "ledger account at that time")
    return view_reply({"account": name, "balances": [views.balance_view(one) for one in found]}, age)


async def statement(call: Call) -> Reply:
    """What was posted on a ledger account, newest first: also a merchant's statement."""
    name, values = call.path["name"], call.values
    async with reading(call, None) as read_model:
        page = await read_model.ledger_statement(name, values["at"], values["cursor"], values["limit"])
        age = await read_model.lag_ms(topics.LEDGER_JOURNAL.name)
    return page_reply([views.line_view(line) for line in page.items], page.next_cursor, age)


async def entries(call: Call) -> Reply:
    """What was posted for a payment, oldest first, with the entries' hash chain."""
    payment_id = call.values["payment"]
    async with reading(call, call.gateway.account_of(payment_id)) as read_model:
        found = await read_model.journal_entries(payment_id)
        age = await read_model.lag_ms(topics.LEDGER_JOURNAL.name)
    return view_reply({"items": [views.journal_entry_view(entry) for entry in found]}, age)


async def cycles(call: Call) -> Reply:
    """Settlement cycles that are closed, newest first."""
    async with reading(call, None) as read_model:
        page = await read_model.settlement_cycles(call.values["cursor"], call.values["limit"])
        age = await read_model.lag_ms(topics.SETTLEMENT_POSITIONS.name)
    shown = [views.cycle_view(cycle) for cycle in page.items]
    if _wants_csv(call):
        lines = [CYCLE_COLUMNS, *([str(row[column]) for column in CYCLE_COLUMNS] for row in shown)]
        return Reply("".join(f"{','.join(line)}\r\n" for line in lines).encode(), CSV)
    return page_reply(shown, page.next_cursor, age)


async def positions(call: Call) -> Reply:
    """A cycle's net positions, by merchant and currency. As CSV: all of them, the cycle's file."""
    cycle = call.path["cycle"]
    if _wants_csv(call):
        return Reply(_file(call, cycle), CSV)
    async with reading(call, None) as read_model:
        page = await read_model.settlement_positions(cycle, call.values["cursor"], call.values["limit"])
        age = await read_model.lag_ms(topics.SETTLEMENT_POSITIONS.name)
    if not page.items and call.values["cursor"] is None:
        raise not_found("settlement cycle")
    return page_reply(rows_of(page.items), page.next_cursor, age)


async def _file(call: Call, cycle: str) -> AsyncGenerator[bytes, None]:
    """Page by page: a cycle may have more merchants than a gateway has memory. A client may take its time
    over each; the read model may not."""
    file, cursor = CsvFile(), None
    while True:
        async with reading(call, None) as read_model:
            page = await read_model.settlement_positions(cycle, cursor, PAGE_MAX)
        if cursor is None and not page.items:
            raise not_found("settlement cycle")
        yield file.page(page.items)
        cursor = page.next_cursor
        if cursor is None:
            return


async def sagas(call: Call) -> Reply:
    """Payments some step of which has still to take place, the oldest first."""
    async with reading(call, None) as read_model:
        found = await read_model.open_sagas(call.values["limit"])
        age = await read_model.lag_ms(topics.PAYMENT_SAGAS.name)
    now = time.time_ns() // 1_000_000
    return view_reply({"items": [views.saga_view(saga, now) for saga in found]}, age)


def _wants_csv(call: Call) -> bool:
    """By the header Accept: the first kind in it that there is."""
    for kind in call.headers.get("Accept", "").split(","):
        name = kind.partition(";")[0].strip().lower()
        if name in (CSV, "application/json", "*/*"):
            return name == CSV
    return False
