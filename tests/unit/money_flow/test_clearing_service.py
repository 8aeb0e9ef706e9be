"""The clearing service: presentments until there is an outcome, items, and cycles that close once."""

from __future__ import annotations

import csv
import json
from io import StringIO

import msgspec
import pytest

from agents.testing import ACCOUNT, DAY, HOUR, MIDNIGHT, Pipeline
from mini_visa import topics
from mini_visa.domain.clearing import ClearingItem, Presentment
from mini_visa.domain.commands import Tick
from mini_visa.domain.payment import Card, Merchant
from mini_visa.domain.settlement import (
    CsvFile,
    CycleClosed,
    JsonFile,
    OpenPosition,
    SettlementPosition,
    cycle_name,
)
from mini_visa.streams.testing import Driver
from tables.clearing import (
    CYCLE,
    OPEN,
    POSITIONS,
    PRESENTMENTS,
    PRESENTMENTS_DUE,
    OpenCycle,
    merchant_of,
    position_key,
)

M1 = Merchant(id="m1", mcc="5411")
M2 = Merchant(id="m2", mcc="5411")


def a_captured(flow: Pipeline, amount: str = "100.00", merchant: Merchant = M1) -> str:
    payment = flow.authorize(amount, merchant=merchant)
    flow.capture(payment)
    return payment


def an_item(merchant_id: str = "m1", sale: int = 10_00, currency: str = "USD", **fields) -> ClearingItem:
    return ClearingItem(
        merchant_id=merchant_id, currency=currency, kind="capture_cleared", payment_id="p", at=MIDNIGHT,
        sale=sale, **fields,
    )  # fmt: skip


def a_net_service() -> Driver:
    from agents.clearing import net

    return Driver(net, partitions=1)


def send_item(driver: Driver, item: ClearingItem, at: int = MIDNIGHT) -> None:
    driver.send(item, key=item.merchant_id.encode(), at=at)


# -- presentments ----------------------------------------------------------------------------------


def test_each_capture_is_presented_once_with_what_the_clearing_house_needs():
    flow = Pipeline()
    payment = flow.authorize("100.00", merchant=Merchant(id="m1", mcc="5411", country="US"))
    flow.capture(payment, "40.00", final=False)
    flow.capture(payment, "60.00")
    assert flow.presented == [f"{payment}-1", f"{payment}-2"]
    assert flow.submissions[0] == Presentment(
        key=f"{payment}-1",
        payment_id=payment,
        n=1,
        amount=40_00,
        currency="USD",
        captured_at=MIDNIGHT,
        card=Card(token=ACCOUNT, bin="411111", last4="1111"),
        merchant=Merchant(id="m1", mcc="5411", country="US"),
        authorization_code=flow.payments[payment].authorization_code,
    )
    assert flow.submissions[0].account == ACCOUNT


def test_a_presentment_without_an_outcome_is_presented_again_and_each_time_later():
    flow = Pipeline()
    payment = a_captured(flow)
    times = []
    for _ in range(600):
        flow.tick(1)
        times.append(len(flow.presented))
    assert [second for second in range(1, 600) if times[second] > times[second - 1]] == [59, 179, 419]
    assert set(flow.presented) == {f"{payment}-1"}


@pytest.mark.parametrize("accepted", [True, False])
def test_an_outcome_ends_it(accepted):
    flow = Pipeline()
    payment = a_captured(flow)
    flow.clear(payment, accepted=accepted)
    flow.tick(HOUR / 1000)
    assert flow.presented == [f"{payment}-1"]
    assert flow.drivers["present"].rows(PRESENTMENTS) == {}
    assert list(flow.drivers["present"].rows(PRESENTMENTS_DUE)) == ["~"]


def test_what_is_due_at_once_is_presented_over_several_ticks(monkeypatch):
    monkeypatch.setattr("agents.clearing.PER_TICK_MAX", 2)
    flow = Pipeline()
    for _ in range(5):
        a_captured(flow, "1.00")
    counts = []
    for seconds in (100, 1, 1, 1):
        flow.tick(seconds)
        counts.append(len(flow.presented))
    assert counts == [7, 9, 10, 10]


# -- items -----------------------------------------------------------------------------------------


def items_of(flow: Pipeline) -> list[ClearingItem]:
    return flow.drivers["present"].sent(topics.CLEARING_ITEMS)


def test_whatever_the_ledger_posts_on_a_merchant_is_an_item_of_the_same_amount():
    flow = Pipeline()
    payment = a_captured(flow)
    flow.refund(payment, "10.00")
    flow.clear(payment)
    flow.refund(payment, "20.00")
    flow.charge_back(payment, "30.00")
    flow.represent(payment)
    assert [(one.kind, one.sale, one.returned, one.net) for one in items_of(flow)] == [
        ("capture_cleared", 100_00, 10_00, 100_00 - 10_00 - 173),
        ("payment_refunded", 0, 20_00, -20_00),
        ("chargeback_opened", 0, 30_00, -30_00),
        ("chargeback_represented", 30_00, 0, 30_00),
    ]
    assert sum(one.net for one in items_of(flow)) == -flow.ledger["payable:merchant:m1"]


def test_a_capture_that_is_rejected_is_no_item():
    flow = Pipeline()
    flow.clear(a_captured(flow), accepted=False)
    assert items_of(flow) == []


# -- cycles ----------------------------------------------------------------------------------------


def test_a_cycle_closes_with_the_first_tick_after_its_end_and_only_once():
    flow = Pipeline()
    flow.clear(a_captured(flow))
    flow.tick(DAY / 1000 - 1)
    assert flow.positions == []
    flow.tick(1)
    flow.tick(1)
    (position,) = flow.positions
    assert position == SettlementPosition(
        cycle="2026-01-01T00:00:00Z", merchant_id="m1", currency="USD", items=1, sales=100_00, returns=0,
        interchange=160, scheme_fees=13, closed_at=MIDNIGHT + DAY,
    )  # fmt: skip
    assert position.net == 98_27
    (closed,) = flow.closed_cycles
    assert (closed.cycle, closed.positions, closed.partition) == ("2026-01-01T00:00:00Z", 1, 0)


def test_an_item_belongs_to_the_cycle_that_is_open_when_it_arrives():
    driver = a_net_service()
    send_item(driver, an_item(sale=1), at=MIDNIGHT)
    send_item(driver, an_item(sale=2), at=MIDNIGHT + DAY + 5)
    driver.send(Tick(), at=MIDNIGHT + DAY + 10)
    send_item(driver, an_item(sale=4), at=MIDNIGHT + DAY + 11)
    driver.send(Tick(), at=MIDNIGHT + 2 * DAY)
    told = driver.sent(topics.SETTLEMENT_POSITIONS)
    sales = [(one.cycle, one.sales) for one in told if isinstance(one, SettlementPosition)]
    assert sales == [("2026-01-01T00:00:00Z", 3), ("2026-01-02T00:00:00Z", 4)]
    ranges = [(one.first_item, one.end_item) for one in told if isinstance(one, CycleClosed)]
    assert ranges == [(0, 2), (2, 4)], "offsets of clearing.items: the ticks are at 2 and 4"


def test_positions_are_by_merchant_and_currency():
    driver = a_net_service()
    for item in (
        an_item("m1"), an_item("m2", 5), an_item("m1", 7, "EUR"), an_item("m1", 0, returned=4_00),
    ):  # fmt: skip
        send_item(driver, item)
    driver.send(Tick(), at=MIDNIGHT + DAY)
    told = driver.sent(topics.SETTLEMENT_POSITIONS)
    assert [
        (one.merchant_id, one.currency, one.items, one.net) for one in told[:-1]
    ] == [("m1", "EUR", 1, 7), ("m1", "USD", 2, 6_00), ("m2", "USD", 1, 5)]  # fmt: skip
    assert told[-1].positions == 3
    assert driver.rows(POSITIONS) == {}
    keys = [output.key for output in driver.outputs]
    assert keys == [b"m1", b"m1", b"m2", b""]


def test_a_cycle_without_items_leaves_no_trace():
    driver = a_net_service()
    for day in range(4):
        driver.send(Tick(), at=MIDNIGHT + day * DAY)
    assert driver.outputs == []


def test_many_positions_are_told_over_several_ticks_while_the_next_cycle_goes_on(monkeypatch):
    monkeypatch.setattr("agents.clearing.PER_TICK_MAX", 2)
    driver = a_net_service()
    for n in range(5):
        send_item(driver, an_item(f"m{n}"))
    counts = []
    for tick in range(4):
        driver.send(Tick(), at=MIDNIGHT + DAY + tick)
        send_item(driver, an_item("m9", 1), at=MIDNIGHT + DAY + tick)
        counts.append(len(driver.sent(topics.SETTLEMENT_POSITIONS)))
    assert counts == [2, 4, 6, 6], "five positions and the end of the cycle"
    (closed,) = [one for one in driver.sent(topics.SETTLEMENT_POSITIONS) if isinstance(one, CycleClosed)]
    assert (closed.positions, closed.closed_at) == (5, MIDNIGHT + DAY)
    assert driver.row(CYCLE, "open").closing == -1
    driver.send(Tick(), at=MIDNIGHT + 2 * DAY)
    last = driver.sent(topics.SETTLEMENT_POSITIONS)[-2]
    assert (last.merchant_id, last.items) == ("m9", 4)


def test_exactly_as_many_positions_as_one_tick_tells_still_close_the_cycle(monkeypatch):
    monkeypatch.setattr("agents.clearing.PER_TICK_MAX", 2)
    driver = a_net_service()
    for n in range(2):
        send_item(driver, an_item(f"m{n}"))
    for tick in range(3):
        driver.send(Tick(), at=MIDNIGHT + DAY + tick)
    told = driver.sent(topics.SETTLEMENT_POSITIONS)
    assert [type(one).__name__ for one in told] == ["SettlementPosition", "SettlementPosition", "CycleClosed"]


def test_cycles_of_another_length_go_on_where_those_before_ended(monkeypatch):
    driver = a_net_service()
    cycles = []
    for length, at in ((5_000, 7_000), (5_000, 11_000), (DAY, DAY / 2), (DAY, DAY + 1), (5_000, DAY + 6_000)):
        monkeypatch.setattr("agents.clearing.CYCLE_MS", length)
        driver.send(Tick(), at=MIDNIGHT + int(at))
        send_item(driver, an_item(), at=MIDNIGHT + int(at))
    for one in driver.sent(topics.SETTLEMENT_POSITIONS):
        if isinstance(one, CycleClosed):
            cycles.append((one.cycle[11:], one.closed_at - MIDNIGHT))
    assert cycles == [
        ("00:00:05Z", 11_000),  # five seconds
        ("00:00:10Z", DAY + 1),  # the last short one, up to the end of its day
        ("00:00:00Z", DAY + 6_000),
    ]


def test_a_cycle_that_the_first_version_had_open_goes_on_and_closes_once():
    """It was known by its number, also in the keys of its positions; one more was closing."""
    number = MIDNIGHT // DAY
    driver = a_net_service()
    written = {
        (CYCLE, OPEN): b"\x01" + msgspec.msgpack.encode([number, 7, number - 1, 3, 7, 1, MIDNIGHT]),
        (POSITIONS, f"{number - 1:010d}/m2/USD".encode()): POSITIONS.encode(OpenPosition(1, 5_00)),
        (POSITIONS, f"{number:010d}/m%2F1/USD".encode()): POSITIONS.encode(OpenPosition(2, 20_00)),
    }
    driver.store.write([(table.name.encode() + b"\0" + key, row) for (table, key), row in written.items()])
    send_item(driver, an_item("m/1", 10_00), at=MIDNIGHT + HOUR)
    driver.send(Tick(), at=MIDNIGHT + HOUR)
    assert driver.row(CYCLE, OPEN) == OpenCycle(MIDNIGHT, 7, -1, 3, 7, 2, MIDNIGHT)
    driver.send(Tick(), at=MIDNIGHT + DAY)
    told = driver.sent(topics.SETTLEMENT_POSITIONS)
    names = [cycle_name(MIDNIGHT - DAY), cycle_name(MIDNIGHT)]
    assert [(one.cycle, one.merchant_id, one.items, one.sales) for one in told if is_position(one)] == [
        (names[0], "m2", 1, 5_00),
        (names[1], "m/1", 3, 30_00),
    ]
    closed = [one for one in told if isinstance(one, CycleClosed)]
    assert [(one.cycle, one.positions, one.first_item) for one in closed] == [
        (names[0], 2, 3),
        (names[1], 1, 7),
    ]
    assert driver.rows(POSITIONS) == {}


def is_position(message: object) -> bool:
    return isinstance(message, SettlementPosition)


@pytest.mark.parametrize("merchant", ["m1", "a/b", "50%", "%2F", "", "ü"])
def test_any_merchant_id_survives_in_a_key(merchant):
    assert merchant_of(position_key(7, merchant, "USD")) == (merchant, "USD")


def test_a_merchant_that_owes_pays_at_settlement():
    flow = Pipeline()
    payment = a_captured(flow, "50.00")
    flow.clear(payment)
    flow.tick(DAY / 1000)
    flow.refund(payment)
    assert flow.ledger["payable:merchant:m1"] == 50_00
    flow.tick(DAY / 1000)
    assert [position.net for position in flow.positions] == [50_00 - 85 - 7, -50_00]
    assert "payable:merchant:m1" not in flow.ledger
    assert flow.ledger["settlement:bank"] == 85 + 7


# -- the files -------------------------------------------------------------------------------------


def in_pages(file: CsvFile | JsonFile, positions: list[SettlementPosition]) -> bytes:
    """Of one position each."""
    return b"".join(file.page([one]) for one in positions) + file.end()


def test_a_file_of_nothing_is_one_still():
    assert json.loads(in_pages(JsonFile(), [])) == {"positions": [], "totals": {}}


def test_the_totals_of_the_files_are_what_the_bank_pays_in_the_ledger():
    flow = Pipeline(limit="1000000.00")
    for n in range(12):
        payment = a_captured(flow, f"{n * 7 + 1}.37", merchant=(Merchant(id="m1"), M2)[n % 2])
        flow.clear(payment, accepted=n % 5 != 4)
        if n % 5 == 0:
            flow.refund(payment, "1.00")
    flow.tick(DAY / 1000)
    rows = list(csv.DictReader(StringIO(in_pages(CsvFile(), flow.positions).decode(), newline="")))
    assert [row["merchant_id"] for row in rows] == ["m1", "m2"]
    total = sum(round(float(row["net"]) * 100) for row in rows)
    assert total == -flow.ledger["settlement:bank"]
    document = json.loads(in_pages(JsonFile(), flow.positions))
    assert len(document["positions"]) == len(rows)
    assert document["totals"] == {"USD": f"{total / 100:.2f}"}
    assert document["positions"][0] | {"items": "6"} == rows[0] | {"items": "6"}


def test_a_merchants_name_is_no_formula_and_breaks_no_line():
    position = SettlementPosition(
        cycle="c", merchant_id='=1+1,"x"\nrow', currency="JPY", items=1, sales=5, returns=9, interchange=0,
        scheme_fees=0, closed_at=0,
    )  # fmt: skip
    (row,) = csv.DictReader(StringIO(CsvFile().page([position]).decode(), newline=""))
    assert row["merchant_id"] == "'" + '=1+1,"x"\nrow'
    assert (row["net"], row["sales"]) == ("-4", "5")
