"""Journals, balances, settlement and sagas in SQL, on each database."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from mini_visa import topics
from mini_visa.domain.journal import ChainHead, seal, verify
from mini_visa.domain.ledger import HOLDS_CONTRA, holds_of, postings_of
from mini_visa.domain.saga import SagaEvent
from mini_visa.domain.settlement import CycleClosed, SettlementPosition
from mini_visa.readmodel import InvalidCursor
from mini_visa.readmodel.testing import EventLog, apply_new, random_log
from mini_visa.readmodel.views import ALL, journal_rows
from mini_visa.streams.processor import Record

VIEWS = {view.topic: view for view in ALL}


def records(topic, messages) -> list[Record]:
    return [Record(offset, 1_000 + offset, b"k", topic.encode(m)) for offset, m in enumerate(messages)]


def journals(log: EventLog) -> dict[int, list]:
    """The entries that the ledger makes of a log."""
    made = {}
    for partition, source in log.records.items():
        head, entries = ChainHead(), []
        for record in source:
            event = topics.PAYMENT_EVENTS.decode(record.value)
            if postings := postings_of(event):
                payment = getattr(event, "payment", None)
                entry = seal(
                    head,
                    journal="payments",
                    partition=partition,
                    at=event.at,
                    source=record.offset,
                    kind=type(event).__struct_config__.tag,
                    postings=postings,
                    account=event.account.account_id,
                    payment_id=payment.payment_id if payment else "",
                )
                entries.append(entry)
                head = ChainHead(entry.number, entry.hash)
        made[partition] = entries
    return made


async def test_balances_are_the_sums_of_all_postings_however_they_are_cut(read_model, applier):
    made = journals(random_log(200, accounts=5))
    sums: Counter = Counter()
    for partition, entries in made.items():
        view, source = VIEWS[topics.LEDGER_JOURNAL], records(topics.LEDGER_JOURNAL, entries)
        for end in (3, 50, len(source)):
            await apply_new(applier, view, partition, source[:end])
        for entry in entries:
            for posting in entry.postings:
                sums[posting.account] += posting.amount
    trial = await read_model.trial_balance()
    assert [(total.currency, total.difference) for total in trial.currencies] == [("USD", 0)]
    assert trial.currencies[0].debits == sum(
        p.amount for e in made.values() for x in e for p in x.postings if p.amount > 0
    )
    assert {(p.topic, p.partition): p.next_offset for p in trial.positions} == {
        ("ledger.journal", partition): len(entries) for partition, entries in made.items()
    }
    for account, balance in sums.items():
        (found,) = await read_model.ledger_account(account)
        assert found.balance == balance
    assert (await read_model.ledger_account(HOLDS_CONTRA))[0].balance == sums[HOLDS_CONTRA]
    assert await read_model.ledger_account(holds_of("tok_nobody")) == []


async def test_the_entries_of_a_payment_are_there_as_they_were_sealed(read_model, applier):
    log = EventLog(partitions=1)
    payment = log.authorize(log.open("tok_1"), 3_000)
    other = log.authorize("tok_1", 100)
    log.capture(payment)
    (entries,) = journals(log).values()
    await apply_new(applier, VIEWS[topics.LEDGER_JOURNAL], 0, records(topics.LEDGER_JOURNAL, entries))
    found = await read_model.journal_entries(payment)
    assert found == [entry for entry in entries if entry.payment_id == payment]
    assert [entry.kind for entry in found] == ["payment_authorized/1", "payment_captured/1"]
    assert len(await read_model.journal_entries(other)) == 1
    assert await read_model.journal_entries("pay_nobody_1") == []
    assert await read_model.journal_entries("nonsense") == []
    verify(sorted(found + await read_model.journal_entries(other), key=lambda entry: entry.number))


async def test_entries_of_the_two_journals_never_collide(read_model, applier):
    def chain(journal):
        return [
            seal(
                ChainHead(), journal=journal, partition=0, at=1, source=0, kind="k",
                postings=postings_of(topics.PAYMENT_EVENTS.decode(log.records[0][1].value)),
            )
        ]  # fmt: skip

    log = EventLog(partitions=1)
    log.authorize(log.open("tok_1"), 100)
    for topic, journal in (
        (topics.LEDGER_JOURNAL, "payments"),
        (topics.LEDGER_SETTLEMENT_JOURNAL, "settlement"),
    ):
        await apply_new(applier, replace(VIEWS[topic], rows=journal_rows), 0, records(topic, chain(journal)))
    (balance,) = await read_model.ledger_account(HOLDS_CONTRA)
    assert balance.balance == -200


def position(cycle: str, merchant: str, currency: str = "USD", sales: int = 1_000) -> SettlementPosition:
    return SettlementPosition(
        cycle=cycle, merchant_id=merchant, currency=currency, items=1, sales=sales, returns=0,
        interchange=25, scheme_fees=1, closed_at=99,
    )  # fmt: skip


async def test_settlement_is_listed_by_cycle_and_by_merchant(read_model, applier):
    cycles = [f"2026-01-01T00:0{minute}:00Z" for minute in range(3)]
    merchants = [f"m{number}" for number in range(5)]
    for partition in (0, 1):
        facts = []
        for cycle in cycles[: 3 - partition]:
            wanted = [position(cycle, m) for m in merchants[partition::2]]
            facts += wanted
            facts.append(
                CycleClosed(
                    cycle=cycle,
                    partition=partition,
                    positions=len(wanted),
                    first_item=0,
                    end_item=9,
                    closed_at=99,
                )
            )
        await apply_new(
            applier,
            VIEWS[topics.SETTLEMENT_POSITIONS],
            partition,
            records(topics.SETTLEMENT_POSITIONS, facts),
        )
    first = await read_model.settlement_cycles(None, 2)
    second = await read_model.settlement_cycles(first.next_cursor, 2)
    found = first.items + second.items
    assert [(c.cycle, c.partitions, c.positions) for c in found] == [
        (cycles[2], 1, 3), (cycles[1], 2, 5), (cycles[0], 2, 5),
    ]  # fmt: skip
    assert second.next_cursor is None
    listed, cursor = [], None
    while True:
        page = await read_model.settlement_positions(cycles[0], cursor, 2)
        listed += page.items
        if (cursor := page.next_cursor) is None:
            break
    assert listed == [position(cycles[0], merchant) for merchant in merchants]
    assert (await read_model.settlement_positions("2020-01-01T00:00:00Z")).items == []
    with pytest.raises(InvalidCursor):
        await read_model.settlement_positions(cycles[1], first.next_cursor)


async def test_a_saga_is_listed_by_the_last_that_was_said_about_it(read_model, applier):
    def said(n: int, state: str, since: int) -> SagaEvent:
        return SagaEvent(
            payment_id=f"pay_a_{n:x}",
            account="tok_a",
            state=state,
            step="clearing",
            at=since + 1,
            since=since,
        )

    told = [
        said(1, "overdue", 30),
        said(2, "overdue", 20),
        said(3, "compensating", 10),
        said(2, "completed", 20),
    ]
    await apply_new(applier, VIEWS[topics.PAYMENT_SAGAS], 0, records(topics.PAYMENT_SAGAS, told))
    assert await read_model.sagas() == [told[2], told[0]]
    assert await read_model.sagas(["completed"]) == [told[3]]
