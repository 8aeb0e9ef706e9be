import pytest

from mini_visa.domain.account import InvalidCommand
from mini_visa.domain.commands import Authorize, Increment
from mini_visa.domain.events import (
    HoldExpired,
    PaymentAuthorized,
    PaymentCaptured,
    PaymentDeclined,
    PaymentUnknownCard,
    RequestRefused,
)
from mini_visa.domain.ids import account_of
from mini_visa.domain.payment import AccountStatus, Card, Merchant, PaymentStatus, Verdict
from mini_visa.domain.testing import NOON, Host

DAY_S = 86_400
FRAUD = Verdict(score=90, response_code="59")


def test_a_hold_takes_from_what_is_available() -> None:
    host = Host(limit="1000.00")
    decision = host.authorize("60.00", merchant=Merchant(id="m1"))
    payment = decision.outcome.payment
    assert (decision.outcome.status, decision.outcome.response_code) == (200, "00")
    assert (payment.status, payment.authorized, payment.response_code) == ("authorized", 6000, "00")
    assert payment.expires_at == NOON + 7 * DAY_S * 1000
    assert account_of(payment.payment_id) == host.account_id
    assert len(payment.authorization_code) == 6 and payment.authorization_code.isalnum()
    assert (host.account.held, host.account.available) == (6000, 94_000)
    [event] = decision.events
    assert type(event) is PaymentAuthorized and event.payment == payment and event.account == host.account
    assert (event.amount, event.available_before, event.seq) == (6000, 100_000, 2)


def test_a_hold_over_what_is_available_is_declined_and_recorded() -> None:
    host = Host(limit="100.00")
    host.authorize("60.00")
    decision = host.authorize("40.01")
    assert decision.outcome.response_code == "51" and decision.outcome.payment.status == "declined"
    assert [type(event) for event in decision.events] == [PaymentDeclined]
    assert host.payment(decision.outcome.payment).authorized == 0
    assert host.account.held == 6000


def test_partial_approval_takes_what_there_is_only_when_asked_for() -> None:
    host = Host(limit="100.00")
    decision = host.authorize("150.00", partial_approval=True)
    payment = decision.outcome.payment
    assert (decision.outcome.response_code, payment.status) == ("10", "partially_authorized")
    assert (payment.amount, payment.authorized) == (15_000, 10_000)
    assert host.authorize("0.01", partial_approval=True).outcome.response_code == "51"


def test_an_account_check_is_approved_and_holds_nothing_even_when_overdrawn() -> None:
    host = Host(limit="100.00")
    host.authorize("100.00")
    host.change(limit="10.00")
    decision = host.authorize("0.00")
    assert decision.outcome.response_code == "00" and decision.outcome.payment.status == "authorized"
    assert decision.outcome.payment.expires_at == 0 and len(host.records.holds) == 1
    assert host.increment(decision.outcome.payment, "1.00").outcome.status == 409


@pytest.mark.parametrize(
    ("account", "fields", "code"),
    [
        ({"status": AccountStatus.CLOSED, "expiry": "2020-01"}, {"verdict": FRAUD}, "14"),
        ({"status": AccountStatus.LOST, "expiry": "2020-01"}, {}, "41"),
        ({"status": AccountStatus.STOLEN, "expiry": "2020-01"}, {}, "43"),
        ({"status": AccountStatus.BLOCKED, "expiry": "2020-01"}, {}, "62"),
        ({"expiry": "2025-12"}, {"currency": "EUR"}, "54"),
        ({"expiry": "2026-01"}, {"expiry": "2026-02"}, "54"),
        ({}, {"expiry": "2025-12"}, "54"),
        ({}, {"currency": "EUR", "cvv_match": False}, "57"),
        ({}, {"cvv_match": False, "verdict": FRAUD}, "05"),
        ({}, {"verdict": Verdict(response_code="65")}, "65"),
        ({}, {"verdict": Verdict(response_code="61")}, "61"),
        ({}, {"verdict": FRAUD}, "59"),
        ({}, {"verdict": Verdict(score=50)}, "51"),
        ({}, {}, "51"),
    ],
)
def test_the_first_reason_to_decline_is_the_one_that_counts(account: dict, fields: dict, code: str) -> None:
    """Each row has a later reason too: at least the amount, which no account here could pay."""
    host = Host(limit="10.00", **account)
    assert host.authorize("10.01", **fields).outcome.response_code == code


def test_a_card_is_good_to_the_end_of_its_month() -> None:
    host = Host(expiry="2026-01")
    assert host.authorize("1.00", expiry="2026-01", cvv_match=True).outcome.response_code == "00"
    host.pass_time(30.5 * DAY_S - 0.001)
    assert host.authorize("1.00").outcome.response_code == "00"
    host.pass_time(0.001)
    assert host.authorize("1.00").outcome.response_code == "54"


def test_an_unknown_card_is_declined_with_14_and_leaves_a_payment() -> None:
    host = Host(opened=False)
    decision = host.authorize("1.00")
    assert decision.outcome.response_code == "14"
    assert [type(event) for event in decision.events] == [PaymentUnknownCard]
    assert host.payment(decision.outcome.payment).status == "declined"
    assert host.capture(decision.outcome.payment).outcome.status == 409


def test_an_amount_without_currency_is_read_in_the_accounts_currency() -> None:
    host = Host(currency="EUR")
    card = Card(token=host.account_id, bin="411111", last4="1111")

    def authorize(currency: str, request_id: str) -> Authorize:
        return Authorize(
            account=host.account_id, request_id=request_id, amount=100, currency=currency, card=card
        )

    assert host.send(authorize("USD", "r1")).outcome.payment.currency == "EUR"
    refused = host.send(authorize("JPY", "r2"))
    assert (refused.outcome.status, refused.outcome.response_code) == (400, "13")
    assert "EUR" in refused.outcome.refusal.reason
    assert [type(event) for event in refused.events] == [RequestRefused]


def test_a_sale_is_one_event_and_never_a_hold() -> None:
    host = Host(limit="100.00")
    decision = host.authorize("150.00", capture=True, partial_approval=True)
    payment = decision.outcome.payment
    assert [type(event) for event in decision.events] == [PaymentCaptured]
    assert (payment.status, payment.captured, decision.outcome.response_code) == ("captured", 10_000, "10")
    assert (host.account.held, host.account.posted) == (0, 10_000)
    assert not host.records.holds and host.payment(payment) == payment
    (event,) = decision.events
    assert (event.seq, event.available_before, event.hold_used, event.response_code) == (2, 10_000, 0, "10")
    assert host.ledger == {
        ("receivable:cardholder:" + host.account.account_id, "USD"): 10_000,
        ("clearing:suspense", "USD"): -10_000,
    }


def test_an_increment_raises_the_hold_or_leaves_it() -> None:
    host = Host(limit="100.00")
    payment = host.authorize("50.00").outcome.payment
    assert host.increment(payment, "30.00").outcome.payment.authorized == 8000
    declined = host.increment(payment, "20.01").outcome
    assert (declined.status, declined.response_code, declined.payment.status) == (200, "51", "authorized")
    assert host.account.held == 8000
    assert host.increment(payment, "20.00").outcome.response_code == "00" and host.account.available == 0
    assert host.reverse(payment, "20.00").outcome.status == 200
    risky = host.increment(payment, "1.00", verdict=FRAUD)
    assert risky.outcome.response_code == "59" and host.account.held == 8000
    host.change(status=AccountStatus.LOST)
    assert host.increment(payment, "1.00").outcome.response_code == "41"


def test_an_amount_in_other_decimals_than_the_payments_is_bad_input() -> None:
    host = Host(currency="JPY", limit="1000")
    payment = host.authorize("100").outcome.payment
    increment = Increment(
        account=host.account_id, request_id="r", payment_id=payment.payment_id, amount=1000, exponent=2
    )
    outcome = host.send(increment).outcome
    assert (outcome.status, outcome.response_code) == (400, "13")
    assert "0 decimals" in outcome.refusal.reason and "JPY" in outcome.refusal.reason


@pytest.mark.parametrize("operation", ["increment", "capture", "reverse", "refund", "charge_back"])
def test_nothing_is_not_an_amount(operation: str) -> None:
    host = Host()
    payment = host.authorize("10.00").outcome.payment
    outcome = getattr(host, operation)(payment, "0.00").outcome
    assert (outcome.status, outcome.response_code) == (400, "13")


def test_a_reversal_releases_all_or_a_part() -> None:
    host = Host()
    payment = host.authorize("100.00").outcome.payment
    part = host.reverse(payment, "40.00").outcome.payment
    assert (part.status, part.reversed, host.account.held) == ("authorized", 4000, 6000)
    too_much = host.reverse(payment, "60.01").outcome
    assert (too_much.status, too_much.refusal.left, too_much.refusal.state) == (409, 6000, "authorized")
    rest = host.reverse(payment).outcome.payment
    assert (rest.status, rest.reversed, host.account.held) == ("reversed", 10_000, 0)
    assert host.reverse(payment).outcome.status == 409
    assert not host.records.holds


def test_reversing_the_rest_of_a_captured_payment_leaves_it_captured() -> None:
    host = Host()
    payment = host.authorize("100.00").outcome.payment
    host.capture(payment, "30.00", final=False)
    rest = host.reverse(payment).outcome.payment
    assert (rest.status, rest.captured, rest.reversed) == ("captured", 3000, 7000)
    assert host.capture(payment, "1.00").outcome.status == 409


def test_a_hold_ends_at_the_millisecond_it_says() -> None:
    host = Host(limit="100.00")
    first = host.authorize("100.00").outcome.payment
    host.pass_time(7 * DAY_S - 0.001)
    assert host.authorize("1.00").outcome.response_code == "51"
    host.pass_time(0.001)
    decision = host.authorize("100.00")
    assert [type(event) for event in decision.events] == [HoldExpired, PaymentAuthorized]
    assert [event.seq for event in decision.events] == [4, 5]
    assert decision.events[0].request_id == "" and decision.events[0].amount == 10_000
    assert host.payment(first).status is PaymentStatus.EXPIRED


def test_travel_is_held_for_31_days() -> None:
    host = Host()
    for mcc in ("7011", "3501", "4411", "7512", "3351"):
        payment = host.authorize("1.00", merchant=Merchant(mcc=mcc)).outcome.payment
        assert payment.expires_at == NOON + 31 * DAY_S * 1000
    assert (
        host.authorize("1.00", merchant=Merchant(mcc="5411")).outcome.payment.expires_at
        < NOON + 8 * DAY_S * 1000
    )


def test_a_fuel_pump_is_held_for_two_hours() -> None:
    host = Host()
    payment = host.authorize("1.00", merchant=Merchant(mcc="5542")).outcome.payment
    assert payment.expires_at == NOON + 2 * 3_600_000


def test_a_tick_ends_some_holds_and_the_next_goes_on() -> None:
    host = Host()
    payments = [host.authorize("1.00").outcome.payment for _ in range(5)]
    late = host.authorize("1.00", merchant=Merchant(mcc="7011")).outcome.payment
    host.pass_time(7 * DAY_S)
    assert len(host.tick(limit=3)) == 3
    assert host.account.held == 300
    assert len(host.tick(limit=3)) == 2
    assert host.tick() == []
    assert {host.payment(payment).status for payment in payments} == {"expired"}
    assert host.payment(late).status == "authorized" and host.account.next_expiry == late.expires_at


def test_a_captured_hold_does_not_come_back_when_its_time_would_have_come() -> None:
    host = Host()
    payment = host.authorize("10.00").outcome.payment
    host.capture(payment)
    host.pass_time(7 * DAY_S)
    assert host.tick() == [] and not host.records.wakes
    assert host.payment(payment).status == "captured" and host.account.next_expiry == 0


@pytest.mark.parametrize(
    "command",
    [
        {"amount": -1},
        {"currency": "XYZ"},
        {"account": "4111111111111111"},
        {"request_id": ""},
        {"request_id": "a/b"},
        {"client": "a/b"},
        {"client": ""},
    ],
)
def test_what_no_gateway_would_send_is_not_decided(command: dict) -> None:
    host = Host()
    card = Card(token=host.account_id, bin="411111", last4="1111")
    whole = {"account": host.account_id, "request_id": "r", "amount": 1, "currency": "USD", "card": card}
    with pytest.raises(InvalidCommand):
        host.send(Authorize(**{**whole, **command}))


def test_an_advice_is_held_until_its_own_time_whatever_the_card_could_pay() -> None:
    host = Host(limit="10.00", status=AccountStatus.BLOCKED)
    payment = host.authorize("60.00", advice_until=NOON + DAY_S * 1000).outcome.payment
    assert (payment.status, payment.response_code) == (PaymentStatus.AUTHORIZED, "00")
    assert (host.account.available, payment.expires_at) == (-5_000, NOON + DAY_S * 1000)
    assert host.authorize("1.00").outcome.response_code == "62", "only the advice is not declined"
    assert host.authorize("1.00", currency="EUR", advice_until=NOON + 1).outcome.response_code == "62"
    host.pass_time(DAY_S)
    assert [type(event) for event in host.tick()] == [HoldExpired]
    assert host.account.held == 0
