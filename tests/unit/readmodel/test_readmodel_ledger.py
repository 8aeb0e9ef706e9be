"""Journals, balances, settlement and sagas in SQL, on each database."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import chain
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from mini_visa import topics
from mini_visa.domain.clearing import ClearingItem
from mini_visa.domain.commands import Tick
from mini_visa.domain.events import CaptureCleared
from mini_visa.domain.journal import ChainHead, seal, verify
from mini_visa.domain.ledger import HOLDS_CONTRA, holds_of, postings_of
from mini_visa.domain.payment import CaptureState
from mini_visa.domain.risk import DEFAULT_RULES, RuleInForce
from mini_visa.domain.saga import SagaEvent
from mini_visa.domain.settlement import CycleClosed, SettlementPosition
from mini_visa.gateway.ledger import _file as cycle_file
from mini_visa.gateway.problems import Problem
from mini_visa.gateway.recent import Recent
from mini_visa.readmodel import InvalidCursor, PaymentFilters
from mini_visa.readmodel.testing import EventLog, apply_new, random_log
from mini_visa.readmodel.views import ALL, journal_rows
from mini_visa.settings import Settings
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


async def test_settlement_is_listed_by_cycle_and_by_merchant(read_model, applier, monkeypatch):
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
    monkeypatch.setattr("mini_visa.readmodel.queries.PAGE_MAX", 2)
    pages = [page async for page in read_model.settled_positions(cycles[0])]
    assert [len(page) for page in pages] == [2, 2, 1] and [*chain.from_iterable(pages)] == listed
    assert [page async for page in read_model.settled_positions("2020-01-01T00:00:00Z")] == []
    monkeypatch.setattr("mini_visa.gateway.ledger.PAGE_MAX", 2)
    gateway = SimpleNamespace(read_model=read_model, settings=Settings(), recent=Recent())
    asked: Any = SimpleNamespace(gateway=gateway, headers={})
    parts = [part.decode().splitlines() async for part in cycle_file(asked, cycles[0])]
    assert [len(lines) for lines in parts] == [1 + 2, 2, 1], "one header, and a page in each part"
    assert [line.split(",")[1] for line in chain.from_iterable(parts)] == ["merchant_id", *merchants]
    with pytest.raises(Problem, match="404 not-found"):
        await anext(cycle_file(asked, "2020-01-01T00:00:00Z"))
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


async def test_a_ledger_account_at_a_time_is_what_was_posted_by_then(read_model, applier):
    made = journals(random_log(120, accounts=3))
    sums: dict[str, list[tuple[int, int]]] = {}
    for partition, entries in made.items():
        view, source = VIEWS[topics.LEDGER_JOURNAL], records(topics.LEDGER_JOURNAL, entries)
        await apply_new(applier, view, partition, source)
        for entry in entries:
            for posting in entry.postings:
                sums.setdefault(posting.account, []).append((entry.at, posting.amount))
    assert len(sums) > 5
    for account, lines in sums.items():
        times = sorted(at for at, _ in lines)
        for at in (times[0] - 1, times[0], times[len(times) // 2], times[-1] - 1, times[-1] + 1):
            expected = [amount for posted_at, amount in lines if posted_at <= at]
            found = await read_model.ledger_account_at(account, at)
            debits, credits = sum(a for a in expected if a > 0), -sum(a for a in expected if a < 0)
            assert [(one.debits, one.credits) for one in found] == ([(debits, credits)] if expected else [])


async def test_a_statement_has_every_posting_on_an_account_newest_first(read_model, applier):
    made = journals(random_log(120, accounts=3))
    posted = []
    for partition, entries in made.items():
        view, source = VIEWS[topics.LEDGER_JOURNAL], records(topics.LEDGER_JOURNAL, entries)
        await apply_new(applier, view, partition, source)
        posted += [
            (e.at, e.number, p.amount) for e in entries for p in e.postings if p.account == HOLDS_CONTRA
        ]
    listed, cursor = [], None
    while True:
        page = await read_model.ledger_statement(HOLDS_CONTRA, None, cursor, 7)
        listed += page.items
        if (cursor := page.next_cursor) is None:
            break
    assert sorted((line.entry.at, line.entry.number, line.amount) for line in listed) == sorted(posted)
    assert [line.entry.at for line in listed] == sorted((line.entry.at for line in listed), reverse=True)
    middle = listed[len(listed) // 2].entry.at
    before = await read_model.ledger_statement(HOLDS_CONTRA, middle, None, 1_000)
    assert before.items == [line for line in listed if line.entry.at <= middle]
    with pytest.raises(InvalidCursor):
        await read_model.ledger_statement("settlement:bank", None, cursor or "AAAA", 7)


def an_item(payment_id: str, n: int) -> ClearingItem:
    return ClearingItem(
        merchant_id="m1", currency="USD", kind="capture_cleared", payment_id=payment_id, at=1, sale=5, n=n
    )


async def test_a_capture_is_settled_when_the_cycle_that_its_item_is_in_is_closed(read_model, applier, fill):
    log = EventLog(partitions=1)
    payment = log.authorize(log.open("tok_1"), 3_000)
    log.capture(payment)
    cleared = replace_capture(log, payment, CaptureState.CLEARED)
    await fill(log)
    item_topic, closings = topics.CLEARING_ITEMS, topics.SETTLEMENT_POSITIONS
    items = [an_item("pay_other_1", 1), an_item(payment, 1), Tick()]
    await apply_new(applier, VIEWS[item_topic], 2, records(item_topic, items))

    async def shown() -> str:
        record = await read_model.payment(payment)
        assert record is not None and (await read_model.payments(PaymentFilters())).items == [record.payment]
        return record.payment.captures[0].state

    def closed(end_item: int, partition: int, cycle: str = "c1") -> CycleClosed:
        return CycleClosed(
            cycle=cycle, partition=partition, positions=1, first_item=0, end_item=end_item, closed_at=9
        )

    assert await shown() == "cleared" and cleared.cleared
    await apply_new(applier, VIEWS[closings], 1, records(closings, [closed(9, 1)]))
    assert await shown() == "cleared", "another partition's cycle"
    source = records(closings, [closed(1, 2), closed(2, 2, "c2")])
    await apply_new(applier, VIEWS[closings], 2, source[:1])
    assert await shown() == "cleared", "its item came after that"
    await apply_new(applier, VIEWS[closings], 2, source)
    assert await shown() == "settled"


def replace_capture(log: EventLog, payment_id: str, state: CaptureState):
    """The payment's last event once more, with its capture in another state."""
    payment = log.payments[payment_id]
    captures = tuple(msgspec.structs.replace(one, state=state) for one in payment.captures)
    after = msgspec.structs.replace(payment, captures=captures, cleared=payment.captured)
    account = log.accounts[payment.account]
    log._payment_event(
        CaptureCleared, account, after, amount=payment.captured, n=1, interchange=1, scheme_fee=1
    )
    return after


async def test_every_open_saga_is_listed_with_its_age_and_one_that_is_over_is_not(read_model, applier, fill):
    log = EventLog(partitions=1)
    account = log.open("tok_1")
    waiting, late, done = (log.authorize(account, 1_000) for _ in range(3))
    for payment in (waiting, late, done):
        log.capture(payment)
    replace_capture(log, done, CaptureState.CLEARED)
    await fill(log)
    told = [
        SagaEvent(
            payment_id=payment, account=account, state="overdue", step="clearing", at=9, since=8, tries=2
        )
        for payment in (late, done)
    ]
    told.append(msgspec.structs.replace(told[-1], state="completed"))
    await apply_new(applier, VIEWS[topics.PAYMENT_SAGAS], 0, records(topics.PAYMENT_SAGAS, told))
    found = await read_model.open_sagas()
    assert [(one.payment_id, one.state, one.waiting, one.tries) for one in found] == [
        (waiting, "waiting", (1,), 0), (late, "overdue", (1,), 2),
    ]  # fmt: skip
    assert found[0].since == log.payments[waiting].captures[0].at


async def test_a_rule_counts_the_partitions_that_have_put_it_in_force(read_model, applier):
    def put(version: int) -> RuleInForce:
        rule = msgspec.structs.replace(DEFAULT_RULES[0], version=version)
        return RuleInForce(rule=rule, at=version)

    for partition, versions in ((0, (2, 3)), (1, (2,))):
        source = records(topics.RISK_RULES, [put(version) for version in versions])
        await apply_new(applier, VIEWS[topics.RISK_RULES], partition, source)
    assert [(rule.version, partitions) for rule, partitions in await read_model.rules()] == [(2, 2), (3, 1)]
