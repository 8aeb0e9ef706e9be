import pytest

from mini_visa.domain.commands import AcceptChargeback, RepresentChargeback
from mini_visa.domain.events import CaptureRejected, PaymentCaptured, PaymentRefunded
from mini_visa.domain.lifecycle import clearing_status, dispute_status, refund_status
from mini_visa.domain.payment import Merchant, Payment, held_of
from mini_visa.domain.terms import FeeRate, InvalidFees, Terms, fees_of
from mini_visa.domain.testing import Host

DAY_S = 86_400


def represent(host: Host, payment: Payment, n: int) -> Payment:
    return host.send(
        RepresentChargeback(
            account=host.account_id, request_id=f"r{host.position}", payment_id=payment.payment_id, n=n
        )
    ).outcome.payment


def accept(host: Host, payment: Payment, n: int) -> Payment:
    return host.send(
        AcceptChargeback(
            account=host.account_id, request_id=f"r{host.position}", payment_id=payment.payment_id, n=n
        )
    ).outcome.payment


def captured(host: Host, *amounts: str) -> Payment:
    """A payment with these captures, none cleared."""
    whole = f"{sum(host.minor(amount) for amount in amounts) / 100:.2f}"
    payment = host.authorize(whole, merchant=Merchant(id="m1")).outcome.payment
    for amount in amounts:
        host.capture(payment, amount, final=False)
    return host.payment(payment)


def test_a_final_capture_lets_the_rest_go() -> None:
    host = Host()
    payment = host.authorize("100.00").outcome.payment
    [event] = host.capture(payment, "70.00").events
    assert type(event) is PaymentCaptured and (event.hold_used, event.hold_freed) == (7000, 3000)
    assert (host.account.held, host.account.posted) == (0, 7000) and not host.records.holds


def test_capturing_all_that_is_held_ends_the_hold_final_or_not() -> None:
    host = Host()
    payment = host.authorize("100.00").outcome.payment
    assert host.capture(payment, "100.00", final=False).outcome.payment.status == "captured"
    assert not host.records.holds


@pytest.mark.parametrize(
    ("mcc", "most", "over"),
    [("5812", "120.00", "120.01"), ("7011", "115.00", "115.01"), ("", "100.00", "100.01")],
)
def test_a_capture_may_exceed_the_hold_by_the_tolerance_of_its_mcc(mcc: str, most: str, over: str) -> None:
    host = Host(limit="100.00")
    payment = host.authorize("100.00", merchant=Merchant(mcc=mcc)).outcome.payment
    refused = host.capture(payment, over).outcome
    assert refused.status == 409 and refused.refusal.left == host.minor(most)
    assert host.capture(payment, most).outcome.status == 200
    assert host.account.available == 10_000 - host.minor(most)


def test_tolerance_is_of_what_was_not_reversed_and_is_used_once() -> None:
    host = Host()
    payment = host.authorize("100.00", merchant=Merchant(mcc="5812")).outcome.payment
    host.reverse(payment, "50.00")
    host.capture(payment, "30.00", final=False)
    assert host.capture(payment, "30.01").outcome.refusal.left == 3000
    assert host.capture(payment, "30.00").outcome.payment.captured == 6000


def test_a_late_capture_is_forced_up_to_what_was_authorized() -> None:
    host = Host(limit="100.00")
    payment = host.authorize("100.00").outcome.payment
    host.pass_time(8 * DAY_S)
    host.authorize("100.00")
    part = host.capture(payment, "60.00", final=False).outcome.payment
    assert (part.status, part.forced, part.captures[0].forced) == ("partially_captured", True, True)
    assert host.account.available == -6000
    assert host.capture(payment, "40.01").outcome.refusal.left == 4000
    rest = host.capture(payment).outcome.payment
    assert (rest.status, rest.captured) == ("captured", 10_000)
    assert host.capture(payment, "0.01").outcome.status == 409


def test_a_forced_capture_counts_what_was_reversed_before() -> None:
    host = Host()
    payment = host.authorize("100.00").outcome.payment
    host.reverse(payment, "40.00")
    host.pass_time(7 * DAY_S)
    assert host.capture(payment, "60.01").outcome.refusal.left == 6000


def test_a_rejected_capture_does_not_bring_the_hold_back() -> None:
    host = Host()
    payment = host.authorize("100.00").outcome.payment
    host.capture(payment, "30.00", final=False)
    host.clear(payment, accepted=False, reason="no such merchant")
    after = host.payment(payment)
    assert (host.account.held, held_of(after), host.account.posted, after.captured) == (7000, 7000, 0, 0)
    assert (after.status, clearing_status(after)) == ("partially_captured", "rejected")
    assert after.captures[0].reason == "no such merchant"
    assert host.reverse(payment).outcome.payment.status == "reversed"


def test_a_capture_is_cleared_or_rejected_once() -> None:
    host = Host()
    payment = captured(host, "10.00")
    assert host.clear(payment).outcome.status == 200
    assert host.clear(payment, accepted=False).outcome.status == 409
    assert host.clear(payment, 2).outcome.status == 409
    assert host.clear(payment, 0).outcome.status == 409


def test_fees_come_from_the_first_rate_that_fits() -> None:
    rates = (
        FeeRate(first_mcc="7011", last_mcc="7011", country="FR", interchange_basis_points=100,
                interchange_fixed=0, scheme_basis_points=0, scheme_fixed=5),
        FeeRate(interchange_basis_points=200, interchange_fixed=1, scheme_basis_points=10),
    )  # fmt: skip
    terms = Terms(fees=rates)
    assert terms.fees_of(Merchant(mcc="7011", country="FR"), 10_000) == (100, 5)
    assert terms.fees_of(Merchant(mcc="7011", country="DE"), 10_000) == (201, 10)
    assert terms.fees_of(Merchant(), 10_000) == (201, 10)


def test_a_refund_posts_what_is_cleared_and_reserves_the_rest() -> None:
    host = Host()
    payment = captured(host, "100.00", "200.00")
    host.clear(payment, 1)
    [event] = host.refund(payment, "150.00").events
    assert type(event) is PaymentRefunded and (event.amount, event.posted) == (15_000, 10_000)
    after = host.payment(payment)
    assert (after.refunded, after.refund_reserved, refund_status(after)) == (10_000, 5000, "reserved")
    host.clear(payment, 2)
    after = host.payment(payment)
    assert (after.refunded, after.refund_reserved, refund_status(after)) == (15_000, 0, "posted")


def test_fees_are_kept_when_a_payment_is_refunded_unless_they_are_mirrored() -> None:
    for mirrored in (False, True):
        host = Host(terms=Terms(mirror_refund_fees=mirrored))
        payment = captured(host, "100.00")
        host.clear(payment)  # 1.50 + 0.10 interchange, 0.13 scheme fee
        assert host.ledger["payable:merchant:m1", "USD"] == -(10_000 - 173)
        [event] = host.refund(payment, "40.00").events
        back = (64, 5) if mirrored else (0, 0)
        assert (event.interchange_returned, event.scheme_fee_returned) == back
        host.refund(payment)
        income = host.ledger["income:interchange", "USD"] + host.ledger["income:scheme", "USD"]
        assert income == (0 if mirrored else -173)
        assert host.ledger["payable:merchant:m1", "USD"] == (0 if mirrored else 173)
        assert host.ledger["receivable:cardholder:tok_1testcard", "USD"] == 0


def test_a_refund_before_clearing_takes_its_fees_back_when_it_posts() -> None:
    host = Host(terms=Terms(mirror_refund_fees=True))
    payment = captured(host, "100.00")
    assert host.refund(payment, "50.00").events[0].interchange_returned == 0
    [event] = host.clear(payment).events
    assert (event.interchange, event.interchange_returned, event.scheme_fee_returned) == (160, 80, 6)
    assert host.ledger["payable:merchant:m1", "USD"] == -(5_000 - 80 - 7)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[]", "no rate"),
        ("[{", "truncated"),
        ('[{"interchange_basis_points": 1}]', "interchange_fixed"),
        (
            '[{"interchange_basis_points": -1, "interchange_fixed": 0, "scheme_basis_points": 0}]',
            "rate 0: shares",
        ),
        (
            '[{"interchange_basis_points": 1, "interchange_fixed": 0, "scheme_basis_points": 0, "mcc": "1"}]',
            "mcc",
        ),
    ],
)
def test_a_fee_schedule_that_cannot_be_right_is_refused(text: str, reason: str) -> None:
    with pytest.raises(InvalidFees, match=reason):
        fees_of(text.encode())


def test_a_fee_schedule_is_read_from_json() -> None:
    text = b"""[
      {"first_mcc": "5542", "last_mcc": "5542", "country": "US",
       "interchange_basis_points": 115, "interchange_fixed": 25, "scheme_basis_points": 14},
      {"interchange_basis_points": 150, "interchange_fixed": 10, "scheme_basis_points": 13}]"""
    terms = Terms(fees=fees_of(text))
    assert terms.fees_of(Merchant(mcc="5542", country="US"), 100_00) == (140, 14)
    assert terms.fees_of(Merchant(mcc="5542", country="DE"), 100_00) == (160, 13)


def test_reserved_refunds_that_a_rejection_leaves_no_cover_for_are_cancelled_newest_first() -> None:
    host = Host()
    payment = captured(host, "100.00", "200.00")
    host.refund(payment, "150.00")
    host.refund(payment, "100.00")
    [event] = host.clear(payment, 2, accepted=False).events
    assert type(event) is CaptureRejected and event.refund_cancelled == 15_000
    after = host.payment(payment)
    assert [(one.amount, one.cancelled, one.state) for one in after.refunds] == [
        (15_000, 5000, "reserved"), (10_000, 10_000, "cancelled"),
    ]  # fmt: skip
    host.clear(payment, 1)
    after = host.payment(payment)
    assert (after.refunded, after.refund_reserved, refund_status(after)) == (10_000, 0, "posted")
    assert host.account.posted == 0


def test_a_reserved_refund_posts_when_a_represented_chargeback_gives_it_cover() -> None:
    host = Host()
    payment = captured(host, "100.00", "200.00")
    host.clear(payment, 1)
    host.charge_back(payment, "100.00")
    host.refund(payment, "50.00")
    assert represent(host, payment, 1).refunded == 5000
    host.charge_back(payment, "50.00")
    host.clear(payment, 2, accepted=False)
    after = host.payment(payment)
    assert (after.captured, after.refunded, after.charged_back, host.account.posted) == (
        10_000,
        5000,
        5000,
        0,
    )


def test_refunds_and_chargebacks_name_what_is_left() -> None:
    host = Host()
    payment = captured(host, "100.00")
    assert host.refund(payment, "100.01").outcome.refusal.left == 10_000
    assert host.charge_back(payment, "0.01").outcome.refusal.left == 0
    host.clear(payment)
    host.refund(payment, "30.00")
    assert host.charge_back(payment).outcome.payment.charged_back == 7000
    assert host.refund(payment).outcome.status == 409
    assert host.charge_back(payment).outcome.status == 409


def test_a_chargeback_is_represented_or_accepted_once() -> None:
    host = Host()
    payment = captured(host, "100.00")
    host.clear(payment)
    host.charge_back(payment, "40.00", reason_code="13.1")
    assert dispute_status(host.payment(payment)) == "open" and host.account.posted == 6000
    after = represent(host, payment, 1)
    assert (after.charged_back, dispute_status(after), host.account.posted) == (0, "represented", 10_000)
    assert accept(host, payment, 1) == after  # refused: the payment as it is
    host.charge_back(payment)
    after = accept(host, payment, 2)
    assert (after.charged_back, dispute_status(after), host.account.posted) == (10_000, "accepted", 0)
    refusal = host.send(
        RepresentChargeback(account=host.account_id, request_id="x", payment_id=payment.payment_id, n=3)
    ).outcome
    assert refusal.status == 409 and "no chargeback 3" in refusal.refusal.reason


def test_a_payment_has_at_most_a_hundred_of_each_part() -> None:
    host = Host()
    payment = host.authorize("100.00").outcome.payment
    for _ in range(100):
        assert host.capture(payment, "0.01", final=False).outcome.status == 200
        host.refund(payment, "0.01")
    assert host.capture(payment, "0.01", final=False).outcome.status == 409
    assert len(host.payment(payment).refunds) == 100


def test_a_command_on_a_payment_that_is_not_there_is_refused_with_404() -> None:
    host, other = Host(), Host(account="tok_1other")
    payment = other.authorize("1.00").outcome.payment
    assert host.capture(payment).outcome.status == 404
    other.records.put_payment(payment)
    host.records.put_payment(payment)  # in the same partition, but another account's
    assert host.capture(payment).outcome.status == 404
