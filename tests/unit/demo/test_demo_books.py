"""The demo's books: each thing that does not add up is seen."""

from __future__ import annotations

from typing import Any

import pytest

from mini_visa.demo import checks
from mini_visa.demo.books import JOURNAL, POSITIONS, SAGAS, SETTLEMENT_JOURNAL, Books

HOLD, CONTRA = "holds:cardholder:tok_1", "holds:contra"
OWES, SUSPENSE, MERCHANT, BANK = (
    "receivable:cardholder:tok_1", "clearing:suspense", "payable:merchant:m1", "settlement:bank",
)  # fmt: skip


class Writer:
    """Writes journals as the ledger would."""

    def __init__(self) -> None:
        self.books = Books()
        self.number = dict.fromkeys((JOURNAL, SETTLEMENT_JOURNAL), 0)

    def entry(self, kind: str, debit: str, credit: str, amount: int, **changes: Any) -> None:
        topic = SETTLEMENT_JOURNAL if kind == "merchant_settled" else JOURNAL
        self.number[topic] += 1
        number = self.number[topic]
        entry = {
            "number": number, "previous": f"h{number - 1}" if number > 1 else "", "hash": f"h{number}",
            "kind": kind, "postings": [[debit, "USD", amount], [credit, "USD", -amount]],
            **({} if topic == SETTLEMENT_JOURNAL else {"payment_id": "pay_1"}), **changes,
        }  # fmt: skip
        self.books._add(topic, 0, entry)

    def position(self, net: int) -> None:
        self.books._add(POSITIONS, 0, {
            "type": "settlement_position/1", "cycle": "c1", "merchant_id": "m1", "currency": "USD",
            "sales": net, "returns": 0, "interchange": 0, "scheme_fees": 0,
        })  # fmt: skip

    def closed(self, positions: int) -> None:
        self.books._add(POSITIONS, 0, {"type": "cycle_closed/1", "cycle": "c1", "positions": positions})

    def saga(self, state: str) -> None:
        self.books._add(SAGAS, 0, {"payment_id": "pay_1", "state": state})


def a_sale() -> Writer:
    writer = Writer()
    writer.entry("payment_captured", OWES, SUSPENSE, 100)
    writer.entry("capture_cleared", SUSPENSE, MERCHANT, 100)
    return writer


def a_settled_sale() -> Writer:
    writer = a_sale()
    writer.position(100)
    writer.closed(1)
    writer.entry("merchant_settled", MERCHANT, BANK, 100)
    return writer


def test_a_settled_sale_adds_up():
    books = a_settled_sale().books
    assert checks.balanced(books).passed and checks.settlement(books).passed
    assert checks.no_open_saga(books).passed and not books.owed()


@pytest.mark.parametrize(
    "changes",
    [{"number": 3}, {"previous": "other"}, {"postings": [[OWES, "USD", 5], [SUSPENSE, "USD", -4]]}],
    ids=["left out", "not after the one before", "does not balance"],
)
def test_an_entry_that_is_not_right_is_seen(changes):
    writer = a_sale()
    writer.entry(
        "payment_captured",
        OWES,
        SUSPENSE,
        5,
        **{"number": 3, **changes, **({"number": 4} if "number" in changes else {})},
    )
    assert not checks.balanced(writer.books).passed


def test_a_capture_without_an_outcome_is_stuck():
    writer = Writer()
    writer.entry("payment_captured", OWES, SUSPENSE, 100)
    assert writer.books.uncleared() == ["pay_1"] and not checks.no_open_saga(writer.books).passed


def test_a_late_saga_is_stuck_until_it_is_over():
    writer = a_sale()
    writer.saga("overdue")
    assert not checks.no_open_saga(writer.books).passed
    writer.saga("completed")
    assert checks.no_open_saga(writer.books).passed


def test_a_compensated_payment_must_leave_nothing_on_any_account():
    writer = Writer()
    writer.entry("payment_authorized", HOLD, CONTRA, 150)
    writer.entry("payment_captured", CONTRA, HOLD, 100)
    writer.entry("capture_rejected", SUSPENSE, OWES, 0)
    assert not checks.compensated(writer.books).passed and writer.books.uncleared() == ["pay_1"]
    writer.entry("payment_reversed", CONTRA, HOLD, 50)
    assert checks.compensated(writer.books).passed and not writer.books.uncleared()


def test_what_was_not_settled_or_settled_otherwise_is_seen():
    unpaid = a_sale()
    unpaid.position(100)
    unpaid.closed(1)
    assert not checks.settlement(unpaid.books).passed
    otherwise = a_settled_sale()
    otherwise.position(1)
    assert not checks.settlement(otherwise.books).passed
    nowhere = a_settled_sale()
    nowhere.entry("capture_cleared", SUSPENSE, "payable:merchant:m2", 7)
    assert not checks.settlement(nowhere.books).passed


def test_a_position_that_its_cycle_does_not_count_is_seen():
    writer = a_settled_sale()
    writer.closed(1)
    assert not checks.settlement(writer.books).passed
