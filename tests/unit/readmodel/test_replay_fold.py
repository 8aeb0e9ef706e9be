"""What a replay notices in an account's own events."""

from __future__ import annotations

import msgspec
import pytest

from mini_visa import topics
from mini_visa.readmodel.testing import EventLog
from mini_visa.replay import Fold


@pytest.fixture
def log() -> EventLog:
    made = EventLog(partitions=1)
    account = made.open("tok_1", limit=10_000)
    first = made.authorize(account, 3_000)
    made.capture(first, 1_000)
    made.authorize(account, 9_000)  # declined
    made.reverse(first)
    made.refuse(first)
    made.authorize(account, 500)
    return made


def folded(log: EventLog, change=lambda number, fact: fact, payment_id: str = "") -> Fold:
    fold = Fold("tok_1", payment_id)
    for number, record in enumerate(log.records[0]):
        fact = change(number, topics.PAYMENT_EVENTS.decode(record.value))
        if fact is not None:
            fold.add(record.offset, fact)
    fold.check_holds()
    return fold


def test_a_sound_log_makes_the_account_and_its_payments_without_a_difference(log):
    fold = folded(log)
    assert fold.differences == []
    assert fold.account == log.accounts["tok_1"]
    assert fold.payments == log.payments
    assert (fold.subject_events, fold.account_events, fold.offset) == (7, 6, log.records[0][-1].offset)


def test_only_what_is_about_the_payment_counts_as_its_events(log):
    payment_id = next(iter(log.payments))
    assert folded(log, payment_id=payment_id).subject_events == 4


def test_a_missing_event_is_noticed(log):
    fold = folded(log, lambda number, fact: None if number == 2 else fact)
    assert any("is number 4, not 3" in difference for difference in fold.differences)


def test_a_doubled_event_is_noticed(log):
    fold = Fold("tok_1")
    for record in (*log.records[0][:2], log.records[0][1]):
        fold.add(record.offset, topics.PAYMENT_EVENTS.decode(record.value))
    assert any("is number 2, not 3" in difference for difference in fold.differences)


def test_an_account_that_does_not_follow_from_its_postings_is_noticed(log):
    def one_cent_more(number, fact):
        if number != 2:
            return fact
        wrong = msgspec.structs.replace(fact.account, posted=fact.account.posted + 1)
        return msgspec.structs.replace(fact, account=wrong)

    (first, *_) = folded(log, one_cent_more).differences
    assert "held 2000 and posted 1001; its postings add up to 2000 and 1000" in first


def test_a_hold_that_no_payment_explains_is_noticed(log):
    def forgets_its_hold(number, fact):
        if number != 6:
            return fact
        return msgspec.structs.replace(fact, payment=msgspec.structs.replace(fact.payment, hold_ended=True))

    assert folded(log, forgets_its_hold).differences == ["open holds add up to 0; the account shows 500"]


def test_each_field_that_another_has_otherwise_is_named(log):
    fold = folded(log)
    other = msgspec.structs.replace(fold.account, held=1, version=9)
    payment_id = next(iter(log.payments))
    fold.compare("the read model", other, {payment_id: None})
    assert fold.differences == [
        "the read model: the account is held 1 instead of 500, version 9 instead of 6",
        f"the read model: {payment_id} is missing",
    ]
