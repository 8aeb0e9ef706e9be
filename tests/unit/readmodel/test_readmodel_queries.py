"""What the gateway can ask, on each database."""

from __future__ import annotations

import asyncio
import time
from decimal import Decimal

import pytest
import sqlalchemy as sa

from mini_visa.domain.payment import PaymentStatus
from mini_visa.readmodel import InvalidCursor, PaymentFilters, ReadModel
from mini_visa.readmodel.apply import Batch
from mini_visa.readmodel.testing import START_MS, EventLog, random_log, refuse
from mini_visa.readmodel.views import PAYMENTS_VIEW


async def listed(read_model: ReadModel, limit: int = 100, **filters) -> list[str]:
    """Ids of all pages, and that no page but the last is short."""
    ids, cursor = [], None
    while True:
        page = await read_model.payments(PaymentFilters(**filters), cursor, limit)
        ids += [payment.payment_id for payment in page.items]
        if page.next_cursor is None:
            return ids
        assert len(page.items) == limit
        cursor = page.next_cursor


async def test_a_payment_is_shown_as_it_stands_with_its_events_in_order(read_model, fill):
    log = EventLog()
    payment_id = log.authorize(log.open("tok_1"), 1_000, metadata={"order": "7"})
    log.capture(payment_id, 400)
    log.capture(payment_id)
    log.refuse(payment_id)
    await fill(log)
    record = await read_model.payment(payment_id)
    assert record.payment == log.payments[payment_id]
    assert record.payment.status == PaymentStatus.CAPTURED
    assert [event["type"] for event in record.events] == [
        "payment_authorized/1",
        "payment_captured/1",
        "payment_captured/1",
        "request_refused/1",
    ]
    assert [event.get("amount") for event in record.events[:3]] == [1_000, 400, 600]
    assert {event["partition"] for event in record.events} == {log.partition("tok_1")}


async def test_a_payment_and_its_events_are_of_one_moment(read_model, fill):
    """Each statement sees what was committed when it began: an event between two of them would be in the list
    of events and not in the payment."""
    log = EventLog()
    payment_id = log.authorize(log.open("tok_1"), 1_000)
    await fill(log)
    statements: list[str] = []
    sa.event.listen(
        read_model._database.engine.sync_engine,
        "before_cursor_execute",
        lambda _connection, _cursor, statement, *_: statements.append(statement),
    )
    assert (await read_model.payment(payment_id)).payment == log.payments[payment_id]
    assert len([statement for statement in statements if "payment_events" in statement]) == 1, statements


async def test_what_does_not_exist_is_none(read_model):
    assert await read_model.payment("pay_none") is None
    assert await read_model.account("tok_none") is None
    assert await read_model.account_at("tok_none", START_MS) is None
    assert (await read_model.entries("tok_none")).items == []
    assert (await read_model.payments(PaymentFilters())).items == []


async def test_declined_payments_are_there_also_those_of_unknown_cards(read_model, fill):
    log = EventLog()
    declined = log.authorize(log.open("tok_1", limit=10), 1_000)
    unknown = log.unknown_card("tok_2")
    await fill(log)
    for payment_id, code in ((declined, "51"), (unknown, "14")):
        record = await read_model.payment(payment_id)
        assert record.payment.status == PaymentStatus.DECLINED
        assert record.payment.response_code == code
        assert len(record.events) == 1
    assert await listed(read_model, status=PaymentStatus.DECLINED) == [unknown, declined]


@pytest.mark.parametrize("ghost", ["pay_ghost", "pay_1_ffffffffffff", "pay_1_ffffffffffffffff"])
async def test_a_refused_request_about_no_payment_makes_none(read_model, fill, ghost):
    log = EventLog()
    payment_id = log.authorize(log.open("tok_1"), 1_000)
    log.payments[ghost] = log.payments[payment_id]
    log.refuse(ghost, "there is no such payment")
    await fill(log)
    assert await read_model.payment(ghost) is None


@pytest.mark.parametrize("http_status", [404, 422])
async def test_what_was_refused_without_a_look_at_the_payment_is_no_part_of_its_record(
    read_model, fill, http_status
):
    """It may be another client's, who could fill the record with it."""
    log = EventLog()
    payment_id = log.authorize(log.open("tok_1"), 1_000)
    log.refuse(payment_id, "there is no such payment", http_status)
    await fill(log)
    record = await read_model.payment(payment_id)
    assert [event["type"] for event in record.events] == ["payment_authorized/1"]


async def test_lists_are_newest_first_and_complete_whatever_the_page_size(read_model, fill):
    log = random_log(120, accounts=5)
    await fill(log)
    newest_first = sorted(log.payments.values(), key=lambda p: (p.created_at, p.payment_id), reverse=True)
    expected = [payment.payment_id for payment in newest_first]
    for limit in (1, 7, 120, 121, 1_000):
        assert await listed(read_model, limit) == expected


@pytest.mark.parametrize(
    ("filters", "matches"),
    [
        ({"account": "tok_000001"}, lambda p: p.account == "tok_000001"),
        ({"merchant_id": "m3"}, lambda p: p.merchant.id == "m3"),
        ({"status": PaymentStatus.REVERSED}, lambda p: p.status == PaymentStatus.REVERSED),
        ({"client": "shop"}, lambda p: p.client == "shop"),
        ({"min_amount": Decimal("400")}, lambda p: p.amount >= 40_000),
        ({"max_amount": Decimal("9.99")}, lambda p: p.amount <= 999),
        ({"min_amount": Decimal("50"), "max_amount": Decimal("60")}, lambda p: 5_000 <= p.amount <= 6_000),
        (
            {"account": "tok_000001", "status": PaymentStatus.CAPTURED, "min_amount": Decimal("100.00")},
            lambda p: (p.account, p.status) == ("tok_000001", PaymentStatus.CAPTURED) and p.amount >= 10_000,
        ),
        ({"from_ms": START_MS + 5_000}, lambda p: p.created_at >= START_MS + 5_000),
        ({"to_ms": START_MS + 5_000}, lambda p: p.created_at < START_MS + 5_000),
        ({"metadata": {"order": "7"}}, lambda p: p.metadata.get("order") == "7"),
        ({"metadata": {"order": "7", "colour": "red"}}, lambda p: p.metadata.get("colour") == "red"),
    ],
)
async def test_each_filter_shows_what_matches_it_and_nothing_else(read_model, fill, filters, matches):
    log = random_log(300, accounts=3)
    log.authorize("tok_000001", 100, metadata={"order": "7", "colour": "red"}, client="shop")
    log.authorize("tok_000001", 100, metadata={"colour": "7"})
    log.authorize("tok_000001", 100, metadata={"order": "7"})
    await fill(log)
    expected = {payment.payment_id for payment in log.payments.values() if matches(payment)}
    assert expected and len(expected) < len(log.payments)
    found = await listed(read_model, 10, **filters)
    assert len(found) == len(set(found))
    assert set(found) == expected


async def test_amounts_of_different_currencies_are_compared_in_their_own_units(read_model, fill):
    log = EventLog()
    ids = {}
    for currency, minor in (("JPY", 10), ("USD", 1_000), ("KWD", 10_000)):  # ten of each
        account = log.open(f"tok_{currency}", currency=currency, limit=10**6)
        ids[currency] = log.authorize(account, minor)
        log.authorize(account, minor - 1)
    await fill(log)
    assert set(await listed(read_model, min_amount=Decimal("10"))) == set(ids.values())


async def test_rows_that_come_in_between_do_not_disturb_the_next_page(read_model, fill):
    log = EventLog()
    account = log.open("tok_1")
    before = [log.authorize(account, 100) for _ in range(10)]
    await fill(log)
    first = await read_model.payments(PaymentFilters(), None, 5)
    log.authorize(account, 100)
    await fill(log)
    second = await read_model.payments(PaymentFilters(), first.next_cursor, 5)
    assert [p.payment_id for p in first.items + second.items] == before[::-1]


@pytest.mark.parametrize(
    "cursor",
    ["", "x", "é", "a" * 5_000, "AAAA", "W10", "bnVsbA", "WzEsMl0"],
)
async def test_a_cursor_that_is_none_is_refused(read_model, cursor):
    with pytest.raises(InvalidCursor):
        await read_model.payments(PaymentFilters(), cursor)
    with pytest.raises(InvalidCursor):
        await read_model.entries("tok_1", None, cursor)
    with pytest.raises(InvalidCursor):
        await read_model.alerts(cursor)


async def test_a_cursor_of_other_filters_or_of_another_list_is_refused(read_model, fill):
    log = random_log(50, accounts=2)
    await fill(log)
    page = await read_model.payments(PaymentFilters(account="tok_000001"), None, 2)
    with pytest.raises(InvalidCursor):
        await read_model.payments(PaymentFilters(account="tok_000000"), page.next_cursor, 2)
    with pytest.raises(InvalidCursor):
        await read_model.alerts(page.next_cursor)


@pytest.mark.parametrize("limit", [0, -1, 1_001])
async def test_a_limit_out_of_bounds_is_refused(read_model, limit):
    with pytest.raises(ValueError, match="from 1 to 1000"):
        await read_model.payments(PaymentFilters(), None, limit)


async def test_an_account_is_shown_as_it_stands_and_as_it_stood(read_model, fill):
    log = EventLog()
    account_id = log.open("tok_1")
    opened = log.accounts[account_id], log.now - 10
    payment = log.authorize(account_id, 3_000)
    held = log.accounts[account_id], log.now - 10
    log.capture(payment)
    await fill(log)
    assert await read_model.account(account_id) == log.accounts[account_id]
    assert (await read_model.account(account_id)).posted == 3_000
    for account, at in (opened, held):
        assert await read_model.account_at(account_id, at) == account
        assert await read_model.account_at(account_id, at + 9) == account
    assert await read_model.account_at(account_id, START_MS - 1) is None


async def test_a_statement_runs_from_the_newest_entry_with_the_balances_after_each(read_model, fill):
    log = EventLog()
    account_id = log.open("tok_1", limit=10_000)
    payment = log.authorize(account_id, 3_000)
    log.capture(payment, 1_000)
    middle = log.now - 10
    log.reverse(payment)
    log.refuse(payment)  # changes nothing and so is no entry
    log.open("tok_2")
    await fill(log)
    entries = (await read_model.entries(account_id)).items
    assert [(e.type, e.amount, e.held, e.posted, e.available) for e in entries] == [
        ("payment_reversed/1", 2_000, 0, 1_000, 9_000),
        ("payment_captured/1", 1_000, 2_000, 1_000, 7_000),
        ("payment_authorized/1", 3_000, 3_000, 0, 7_000),
        ("account_opened/1", 0, 0, 0, 10_000),
    ]
    assert [e.seq for e in entries] == [4, 3, 2, 1]
    assert (await read_model.entries(account_id, middle)).items == entries[1:]
    pages, cursor = [], None
    while True:
        page = await read_model.entries(account_id, None, cursor, 1)
        pages += page.items
        cursor = page.next_cursor
        if cursor is None:
            break
    assert pages == entries


async def test_alerts_are_newest_first(read_model, fill):
    log = EventLog()
    account = log.open("tok_1")
    ids = [log.alert(account, rule=f"rule{number}") for number in range(5)]
    await fill(log)
    first = await read_model.alerts(None, 3)
    second = await read_model.alerts(first.next_cursor, 3)
    assert [alert.alert_id for alert in first.items + second.items] == ids[::-1]
    assert first.items[0].hit.rule == "rule4"
    assert second.next_cursor is None


async def test_waiting_for_a_command_ends_when_its_outcome_is_there(read_model, fill):
    log = EventLog()
    account = log.open("tok_1")
    await fill(log)
    partition = log.partition(account)
    assert await read_model.wait_for(partition, log.last_position(account), 0)
    log.authorize(account, 100)
    waits = [
        asyncio.create_task(read_model.wait_for(partition, log.last_position(account) - back, 10))
        for back in (0, 0, 1, 2)
    ]
    await asyncio.sleep(0.05)
    assert not any(wait.done() for wait in waits)
    await fill(log)
    assert await asyncio.gather(*waits) == [True] * 4


async def test_waiting_for_what_does_not_come_ends_in_time(read_model, fill):
    log = EventLog()
    log.open("tok_1")
    await fill(log)
    assert not await read_model.wait_for(log.partition("tok_1"), 10**9, 0.05)
    assert not await read_model.wait_for(99, 0, 0.05)
    assert read_model._waits == {}


@pytest.mark.parametrize("fact", ["refuse", "tick", "unknown_card"])
async def test_facts_that_change_no_account_advance_the_position_too(read_model, fill, fact):
    log = EventLog(partitions=1)
    payment = log.authorize(log.open("tok_1"), 100)
    await fill(log)
    before = log.last_position("tok_1")
    {"refuse": lambda: log.refuse(payment), "tick": log.tick, "unknown_card": lambda: log.unknown_card("t")}[
        fact
    ]()
    assert log.last_position("tok_1") > before
    await fill(log)
    assert await read_model.wait_for(0, log.last_position("tok_1"), 0)


async def test_a_command_counts_as_applied_when_all_its_events_are(read_model, applier):
    """Several events may share a command, and a batch may end between them."""
    log = EventLog(partitions=1)
    log.open("tok_1")
    log.authorize("tok_1", 100)
    log._commands[0] -= 3  # the next event is the same command's
    log.authorize("tok_1", 100)
    place = ("payment.events", 0)
    await applier.positions({place: 0})
    records, last = log.records[0], log.last_position("tok_1")
    await applier.apply([Batch(PAYMENTS_VIEW, 0, 0, records[:2], 0, drained=False)], refuse)
    assert await read_model.wait_for(0, last - 1, 0)
    assert not await read_model.wait_for(0, last, 0.02)
    await applier.apply([Batch(PAYMENTS_VIEW, 0, 2, records[2:], 0, drained=False)], refuse)
    assert not await read_model.wait_for(0, last, 0.02)
    await applier.confirm({(place, 3): 1})  # nothing more came
    assert await read_model.wait_for(0, last, 0)


async def test_the_lag_is_the_age_of_the_least_advanced_partition(read_model, applier, fill):
    assert await read_model.lag_ms() == 0
    now = int(time.time() * 1000)
    await applier.positions({("payment.events", 0): 0, ("payment.events", 1): 0})
    await applier.confirm({(("payment.events", 0), 0): now, (("payment.events", 1), 0): now - 5_000})
    await asyncio.sleep(0.1)
    assert 5_000 <= await read_model.lag_ms() < 60_000
    await applier.confirm({(("payment.events", 1), 0): now - 9_000})  # it never goes back
    await applier.confirm({(("payment.events", 1), 1): now})  # not at this offset any more
    await asyncio.sleep(0.1)
    assert 5_000 <= await read_model.lag_ms() < 60_000


async def test_texts_that_no_database_takes_are_stored_all_the_same(read_model, fill):
    log = EventLog()
    payment_id = log.authorize(log.open("tok_1"), 100, merchant_id="m\0", metadata={"a\0": "b\0"})
    await fill(log)
    assert (await read_model.payment(payment_id)).payment.merchant.id == "m\0"
    assert await listed(read_model, merchant_id="m\0", metadata={"a\0": "b\0"}) == [payment_id]
