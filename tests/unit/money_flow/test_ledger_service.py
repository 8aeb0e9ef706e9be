"""The ledger service: journal, settlement and balances, from the events of the real aggregate."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from agents.testing import ACCOUNT, DAY, MIDNIGHT, Pipeline
from mini_visa import topics
from mini_visa.domain.events import PaymentAuthorized
from mini_visa.domain.journal import (
    AMOUNT_MAX,
    BrokenChain,
    ChainHead,
    JournalEntry,
    TrialBalance,
    Unbalanced,
    hash_of,
    seal,
    verify,
)
from mini_visa.domain.ledger import Posting
from mini_visa.domain.payment import Merchant
from tables.ledger import BALANCES, CHAIN, HEAD

RECEIVABLE = f"receivable:cardholder:{ACCOUNT}"
HOLDS = f"holds:cardholder:{ACCOUNT}"


def an_entry(head: ChainHead, *postings: tuple[str, str, int], source: int = 7) -> JournalEntry:
    return seal(
        head, journal="payments", partition=0, at=MIDNIGHT, source=source, kind="test",
        postings=tuple(Posting(*posting) for posting in postings),
    )  # fmt: skip


def a_chain(length: int) -> list[JournalEntry]:
    entries, head = [], ChainHead()
    for n in range(length):
        entry = an_entry(head, ("a", "USD", 5 + n), ("b", "USD", -5 - n), source=n)
        head = ChainHead(entry.number, entry.hash)
        entries.append(entry)
    return entries


def test_a_hold_is_one_balanced_entry_that_says_where_it_came_from():
    flow = Pipeline()
    payment = flow.authorize("100.00")
    (entry,) = flow.journal
    assert entry.postings == (Posting(HOLDS, "USD", 100_00), Posting("holds:contra", "USD", -100_00))
    assert (entry.kind, entry.number, entry.account, entry.payment_id, entry.merchant_id) == (
        "payment_authorized", 1, ACCOUNT, payment, "m1",
    )  # fmt: skip
    assert entry.at == MIDNIGHT and entry.reference == "r2"
    assert flow.drivers["journal"].outputs[0].key == ACCOUNT.encode()


def test_a_purchase_from_hold_to_settlement():
    flow = Pipeline()
    payment = flow.authorize("100.00")
    flow.capture(payment)
    assert flow.ledger == {RECEIVABLE: 100_00, "clearing:suspense": -100_00}
    flow.clear(payment)
    owed = 100_00 - 160 - 13
    assert flow.ledger == {
        RECEIVABLE: 100_00, "payable:merchant:m1": -owed, "income:interchange": -160, "income:scheme": -13,
    }  # fmt: skip
    flow.tick(DAY / 1000)
    assert flow.ledger == {
        RECEIVABLE: 100_00, "settlement:bank": -owed, "income:interchange": -160, "income:scheme": -13,
    }  # fmt: skip
    (settled,) = flow.settlement_journal
    assert (settled.kind, settled.merchant_id, settled.reference) == (
        "merchant_settled", "m1", "2026-01-01T00:00:00Z",
    )  # fmt: skip
    flow.pay("100.00")
    assert flow.ledger == {
        "settlement:bank": 173, "income:interchange": -160, "income:scheme": -13,
    }  # fmt: skip


def test_an_event_that_moves_nothing_makes_no_entry():
    flow = Pipeline(limit="10.00")
    flow.authorize("10.01")
    flow.change(limit=5)
    flow.authorize("0.00")
    assert flow.journal == [] and flow.ledger == {}


def test_entries_are_chained_in_the_order_of_their_events():
    flow = Pipeline()
    for n in range(5):
        flow.reverse(flow.authorize(f"{n + 1}.00"))
    assert [entry.number for entry in flow.journal] == list(range(1, 11))
    assert verify(flow.journal) == flow.drivers["journal"].row(CHAIN, HEAD)


def test_postings_of_a_merchant_go_to_the_merchants_partition_and_all_others_stay():
    flow = Pipeline()
    flow.clear(flow.authorize("5.00", capture=True))
    keys = {
        posting.account: output.key
        for output in flow.drivers["journal"].outputs
        if output.topic == topics.LEDGER_POSTINGS.name
        for posting in topics.LEDGER_POSTINGS.decode(output.value).postings
    }
    assert keys.pop("payable:merchant:m1") == b"payable:merchant:m1"
    assert set(keys.values()) == {ACCOUNT.encode()}


def test_a_payment_without_a_merchant_is_owed_to_the_unnamed_one():
    flow = Pipeline()
    flow.clear(flow.authorize("5.00", merchant=Merchant(), capture=True))
    assert flow.ledger["payable:merchant:unnamed"] < 0
    flow.tick(DAY / 1000)
    assert "payable:merchant:unnamed" not in flow.ledger


def test_a_balance_row_says_what_it_is_true_for():
    flow = Pipeline()
    flow.authorize("3.00")
    flow.at += 5
    flow.reverse(flow.authorize("2.00"))
    row = flow.drivers["balances"].row(BALANCES, f"{HOLDS}/USD")
    assert (row.debits, row.credits, row.amount, row.postings) == (500, 200, 300, 3)
    assert (row.journal, row.partition, row.number, row.at) == ("payments", 0, 3, MIDNIGHT + 5)


def test_an_event_whose_amount_is_out_of_range_is_a_dead_letter_and_the_chain_goes_on():
    flow = Pipeline()
    flow.authorize("1.00")
    driver = flow.drivers["journal"]
    event = flow.drivers["decide"].sent(topics.PAYMENT_EVENTS)[-1]
    assert isinstance(event, PaymentAuthorized)
    driver.send(replace(event, amount=AMOUNT_MAX + 1), key=ACCOUNT.encode(), at=flow.at)
    assert b"not posted" in dict(driver.dead_letters()[0].headers)["reason"]
    driver.send(event, key=ACCOUNT.encode(), at=flow.at)
    assert verify(flow.journal).number == 2


@pytest.mark.parametrize(
    "postings",
    [
        (),
        (("a", "USD", 5),),
        (("a", "USD", 5), ("b", "USD", -4)),
        (("a", "USD", 5), ("b", "EUR", -5)),
        (("a", "USD", 5), ("b", "USD", -5), ("c", "USD", 0)),
        (("a", "USD", AMOUNT_MAX + 1), ("b", "USD", -AMOUNT_MAX - 1)),
    ],
)
def test_what_does_not_balance_is_never_written(postings):
    with pytest.raises(Unbalanced):
        an_entry(ChainHead(), *postings)


@pytest.mark.parametrize(
    "change",
    [
        {"postings": (Posting("a", "USD", 9), Posting("b", "USD", -9))},
        {"at": 1}, {"source": 99}, {"kind": "other"}, {"account": "x"}, {"payment_id": "x"},
        {"merchant_id": "x"}, {"reference": "x"}, {"partition": 3}, {"journal": "settlement"},
        {"previous": "0" * 64}, {"number": 7},
    ],
)  # fmt: skip
def test_a_changed_entry_breaks_the_chain(change):
    chain = a_chain(3)
    verify(chain)
    with pytest.raises(BrokenChain):
        verify([chain[0], replace(chain[1], **change), chain[2]])
    forged = replace(chain[1], **change)
    with pytest.raises(BrokenChain):
        verify([chain[0], replace(forged, hash=hash_of(forged)), chain[2]])


def test_a_missing_a_doubled_and_a_swapped_entry_break_the_chain():
    first, second, third = a_chain(3)
    for wrong in ([first, third], [first, second, second], [second, first], [second, third]):
        with pytest.raises(BrokenChain):
            verify(wrong)


def test_a_trial_balance_adds_nothing_of_an_entry_that_does_not_follow():
    first, second, third = a_chain(3)
    trial = TrialBalance()
    trial.add(first)
    with pytest.raises(BrokenChain):
        trial.add(third)
    trial.add(second)
    assert trial.balances == {("a", "USD"): 11, ("b", "USD"): -11}
    assert trial.difference("USD") == 0
    assert trial.heads == {("payments", 0): ChainHead(2, second.hash)}
