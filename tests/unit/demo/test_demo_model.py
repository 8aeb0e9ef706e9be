"""The generator's own reckoning: what it expects must be what the contract says."""

from __future__ import annotations

import pytest

from mini_visa.demo.model import VELOCITY_COUNT, ModelAccount, ModelPayment


def an_account(limit: int = 100_00, **changes: object) -> ModelAccount:
    return ModelAccount(limit=limit, **changes)


def test_a_hold_takes_from_what_is_available():
    account = an_account()
    assert account.authorize("a", 60_00, currency="USD").code == "00"
    assert (account.held, account.available) == (60_00, 40_00)


def test_exactly_the_limit_is_approved_and_a_cent_more_is_not():
    assert an_account().authorize("a", 100_00, currency="USD").code == "00"
    assert an_account().authorize("a", 100_01, currency="USD").code == "51"


def test_a_partial_approval_takes_what_is_left():
    account = an_account()
    account.authorize("a", 90_00, currency="USD")
    payment = account.authorize("b", 50_00, currency="USD", partial=True)
    assert (payment.code, payment.status, payment.authorized) == ("10", "partially_authorized", 10_00)
    assert account.authorize("c", 1, currency="USD", partial=True).code == "51"


@pytest.mark.parametrize(
    ("changes", "request_", "code"),
    [
        ({"known": False}, {}, "14"),
        ({"status": "closed"}, {}, "14"),
        ({"status": "lost", "expired": True}, {}, "41"),
        ({"status": "stolen"}, {}, "43"),
        ({"status": "blocked"}, {"cvv_match": False}, "62"),
        ({"expired": True}, {"currency": "EUR"}, "54"),
        ({}, {"currency": "EUR", "cvv_match": False}, "57"),
        ({}, {"cvv_match": False}, "05"),
    ],
)
def test_the_first_reason_that_applies_declines(changes, request_, code):
    account = an_account(**changes)
    payment = account.authorize("a", 200_00, **{"currency": "USD", **request_})
    assert (payment.code, payment.status) == (code, "declined")
    assert account.held == 0


def test_the_eleventh_request_within_the_window_is_one_too_many():
    account = an_account()
    codes = [account.authorize(str(number), 1, currency="USD").code for number in range(VELOCITY_COUNT + 1)]
    assert codes == ["00"] * VELOCITY_COUNT + ["65"]


def test_more_than_5000_within_the_window_is_too_much_also_when_the_limit_allows_it():
    account = an_account(limit=20_000_00)
    codes = [account.authorize(str(n), 2_500_00, currency="USD").code for n in range(3)]
    assert codes == ["00", "00", "61"]


def test_a_part_capture_keeps_the_rest_on_hold_until_the_final_one():
    account = an_account()
    payment = account.authorize("a", 50_00, currency="USD")
    assert account.capture(payment, 20_00, final=False)
    assert (payment.status, account.held, account.posted) == ("partially_captured", 30_00, 20_00)
    assert account.capture(payment, 10_00, final=True)
    assert (payment.status, account.held, account.posted) == ("captured", 0, 30_00)


def test_more_than_is_held_is_neither_captured_nor_reversed():
    account = an_account()
    payment = account.authorize("a", 50_00, currency="USD")
    assert not account.capture(payment, 50_01, final=True)
    assert not account.reverse(payment, 50_01)
    assert (payment.held, account.held) == (50_00, 50_00)


def test_a_reversal_gives_back_and_ends_the_payment_with_its_last_cent():
    account = an_account()
    payment = account.authorize("a", 50_00, currency="USD")
    assert account.reverse(payment, 20_00)
    assert (payment.status, account.available) == ("authorized", 70_00)
    assert account.reverse(payment, 30_00)
    assert (payment.status, account.available) == ("reversed", 100_00)


def test_an_increment_beyond_what_is_available_leaves_the_payment_as_it_is():
    account = an_account()
    payment = account.authorize("a", 50_00, currency="USD")
    assert account.increment(payment, 50_01) == "51"
    assert account.increment(payment, 50_00) == "00"
    assert (payment.authorized, account.held) == (100_00, 100_00)


def test_a_request_that_was_reversed_before_it_came_holds_nothing():
    account = an_account()
    account.cancelled.add("a")
    payment = account.authorize("a", 50_00, currency="USD")
    assert (payment.code, payment.status, account.held) == ("68", "reversed", 0)


def test_what_the_cardholder_pays_is_available_again():
    account = an_account()
    account.authorize("a", 60_00, currency="USD", capture=True)
    account.pay(20_00)
    assert (account.posted, account.available) == (40_00, 60_00)


def captured(account: ModelAccount, amount: int = 50_00, *parts: int) -> ModelPayment:
    payment = account.authorize("a", amount, currency="USD")
    for part in parts or (amount,):
        assert account.capture(payment, part, final=False)
    return payment


def test_a_rejected_capture_gives_the_money_back_and_lets_go_of_what_is_still_held():
    account = an_account()
    payment = captured(account, 50_00, 30_00)
    account.clear(payment, 1, accepted=False)
    assert payment.compensated and payment.called_off and payment.status == "reversed"
    assert (payment.captured, payment.held, account.held, account.posted) == (0, 0, 0, 0)


def test_a_rejected_capture_beside_one_that_stands_leaves_the_hold_alone():
    account = an_account()
    payment = captured(account, 50_00, 20_00, 20_00)
    account.clear(payment, 1, accepted=False)
    assert not payment.compensated and payment.held == 10_00 and account.posted == 20_00


def test_a_refund_before_clearing_posts_when_it_clears():
    account = an_account()
    payment = captured(account)
    assert account.refund(payment, 20_00) and account.posted == 50_00
    assert not account.refund(payment, 30_01)
    account.clear(payment, 1, accepted=True)
    assert (payment.refunded, account.posted) == (20_00, 30_00)


def test_refunds_and_disputes_together_give_back_no_more_than_was_captured():
    account = an_account()
    payment = captured(account)
    assert not account.charge_back(payment, 1)
    account.clear(payment, 1, accepted=True)
    assert account.charge_back(payment, 30_00) and account.refund(payment, 20_00)
    assert not account.refund(payment, 1) and not account.charge_back(payment, 1)
    account.represent(payment, 1)
    assert account.posted == 30_00 and account.refund(payment, 30_00)


def test_an_expired_hold_can_still_be_captured_in_full():
    account = an_account()
    payment = account.authorize("a", 40_00, currency="USD")
    account.expire(payment)
    assert (account.held, payment.status) == (0, "expired")
    assert not account.capture(payment, 40_01, final=True)
    assert account.capture(payment, 40_00, final=True)
    assert (account.held, account.posted, payment.status) == (0, 40_00, "captured")
