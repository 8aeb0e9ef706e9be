"""Payments, accounts and refusals as clients see them."""

from __future__ import annotations

from typing import Any

import msgspec
import orjson
import pytest

from mini_visa.domain.answers import Outcome, Refusal
from mini_visa.domain.lifecycle import clearing_status, dispute_status, refund_status
from mini_visa.domain.payment import (
    Account,
    Capture,
    CaptureState,
    Card,
    Chargeback,
    DisputeState,
    Payment,
    PaymentStatus,
    Refund,
    RefundState,
    RuleHit,
    Verdict,
)
from mini_visa.gateway.views import (
    account_view,
    explanation_view,
    outcome_bytes,
    payment_record_view,
    payment_view,
    refusal_problem,
    time_view,
)

NOON = 1_800_000_000_007
PAYMENT = Payment(
    payment_id="pay_1abc_7",
    account="tok_1abc",
    client="local",
    request_id="r1",
    card=Card(token="tok_1abc", bin="411111", last4="1111"),
    currency="USD",
    amount=1000,
    status=PaymentStatus.AUTHORIZED,
    response_code="00",
    created_at=NOON,
    authorized=1000,
    authorization_code="A1B2C3",
    expires_at=NOON + 604_800_000,
)


def changed(**changes: Any) -> Payment:
    return msgspec.structs.replace(PAYMENT, **changes)


def test_an_authorized_payment_looks_as_the_contract_says() -> None:
    view = orjson.loads(orjson.dumps(payment_view(PAYMENT)))
    assert view == {
        "payment_id": "pay_1abc_7",
        "request_id": "r1",
        "account_id": "tok_1abc",
        "status": "authorized",
        "response_code": "00",
        "response_text": "approved",
        "amount": "10.00",
        "approved_amount": "10.00",
        "currency": "USD",
        "authorization_code": "A1B2C3",
        "card": {"token": "tok_1abc", "bin": "411111", "last4": "1111"},
        "risk": {"score": 0, "rules": []},
        "amounts": {
            "authorized": "10.00",
            "captured": "0.00",
            "reversed": "0.00",
            "refunded": "0.00",
            "charged_back": "0.00",
            "held": "10.00",
            "cleared": "0.00",
            "refund_reserved": "0.00",
        },
        "clearing_status": None,
        "refund_status": None,
        "dispute_status": None,
        "forced": False,
        "expires_at": "2027-01-22T08:00:00.007Z",
        "created_at": "2027-01-15T08:00:00.007Z",
    }


@pytest.mark.parametrize(
    ("payment", "status", "code", "approved", "held"),
    [
        (changed(), "authorized", "00", "10.00", "10.00"),
        (
            changed(status=PaymentStatus.PARTIALLY_AUTHORIZED, response_code="10", authorized=400),
            "partially_authorized", "10", "4.00", "4.00",
        ),
        (
            changed(status=PaymentStatus.DECLINED, response_code="51", authorized=0, authorization_code="",
                    expires_at=0),
            "declined", "51", "0.00", "0.00",
        ),
        (
            changed(status=PaymentStatus.REVERSED, released=1000, reversed=1000, hold_ended=True),
            "reversed", "00", "10.00", "0.00",
        ),
        (changed(status=PaymentStatus.EXPIRED, released=1000, expired=True),
         "expired", "00", "10.00", "0.00"),
        (
            changed(status=PaymentStatus.PARTIALLY_CAPTURED, captured=300),
            "partially_captured", "00", "10.00", "7.00",
        ),
        (changed(status=PaymentStatus.CAPTURED, captured=1200), "captured", "00", "10.00", "0.00"),
    ],
    ids=lambda value: value if isinstance(value, str) and value.islower() else "",
)  # fmt: skip
def test_each_status_shows_what_is_approved_and_held(
    payment: Payment, status: str, code: str, approved: str, held: str
) -> None:
    view = payment_view(payment)
    assert (view["status"], view["response_code"]) == (status, code)
    assert (view["approved_amount"], view["amounts"]["held"]) == (approved, held)
    assert view["response_text"]
    if status == "declined":
        assert view["authorization_code"] is None and view["expires_at"] is None


@pytest.mark.parametrize(
    ("currency", "amount", "shown"),
    [
        ("USD", 5, "0.05"),
        ("JPY", 1000, "1000"),
        ("KWD", 1005, "1.005"),
        ("CLF", 1, "0.0001"),
        ("USD", 0, "0.00"),
    ],
)
def test_amounts_have_their_currencys_decimals(currency: str, amount: int, shown: str) -> None:
    view = payment_view(changed(currency=currency, amount=amount, authorized=amount))
    assert view["amount"] == view["approved_amount"] == view["amounts"]["authorized"] == shown


def test_times_are_utc_with_milliseconds() -> None:
    assert time_view(1) == "1970-01-01T00:00:00.001Z"
    assert time_view(1_709_210_096_999) == "2024-02-29T12:34:56.999Z"
    assert time_view(0) is None


S, C, D, R, X = (
    CaptureState.SUBMITTED,
    CaptureState.CLEARED,
    CaptureState.SETTLED,
    CaptureState.REJECTED,
    CaptureState.COMPENSATED,
)


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        ([], None),
        ([S], S),
        ([D, S], S),
        ([D, C], C),
        ([D, D], D),
        ([R, D], D),
        ([R], R),
        ([X], X),
        ([X, R], R),
    ],
)
def test_the_clearing_status_is_that_of_the_least_advanced_capture(
    states: list[CaptureState], expected: CaptureState | None
) -> None:
    captures = tuple(Capture(n=n, amount=1, at=NOON, state=state) for n, state in enumerate(states))
    assert clearing_status(changed(captures=captures)) == expected


def test_refunds_are_reserved_while_one_waits_and_cancelled_only_when_all_are() -> None:
    def of(*states: RefundState) -> RefundState | None:
        refunds = tuple(Refund(n=1, amount=1, at=NOON, state=state) for state in states)
        return refund_status(changed(refunds=refunds))

    assert of() is None
    assert of(RefundState.POSTED, RefundState.RESERVED) is RefundState.RESERVED
    assert of(RefundState.POSTED, RefundState.CANCELLED) is RefundState.POSTED
    assert of(RefundState.CANCELLED) is RefundState.CANCELLED


def test_a_dispute_is_open_while_one_is_and_else_as_the_last_one_ended() -> None:
    def of(*states: DisputeState) -> DisputeState | None:
        chargebacks = tuple(Chargeback(n=1, amount=1, at=NOON, state=state) for state in states)
        return dispute_status(changed(chargebacks=chargebacks))

    assert of() is None
    assert of(DisputeState.OPEN, DisputeState.ACCEPTED) is DisputeState.OPEN
    assert of(DisputeState.ACCEPTED, DisputeState.REPRESENTED) is DisputeState.REPRESENTED


def test_an_account_may_have_less_than_nothing_available() -> None:
    account = Account(
        account_id="tok_1abc", bin="411111", last4="1111", currency="USD", limit=100, held=50, posted=60
    )
    view = account_view(account)
    assert (view["limit"], view["held"], view["posted"], view["available"]) == (
        "1.00",
        "0.50",
        "0.60",
        "-0.10",
    )
    assert (view["status"], view["opened_at"], view["expiry"]) == ("active", None, None)


def test_an_answer_says_which_request_it_answers() -> None:
    outcome = Outcome(status=200, request_id="r2", response_code="51", payment=PAYMENT)
    body = orjson.loads(outcome_bytes(outcome))
    assert (body["request_id"], body["status"]) == ("r1", "authorized")
    assert body["operation"] == {"request_id": "r2", "response_code": "51"}
    assert outcome_bytes(outcome) == outcome_bytes(outcome)


def test_a_reversal_before_its_request_has_no_payment_yet() -> None:
    body = orjson.loads(outcome_bytes(Outcome(status=200, request_id="r2", response_code="00")))
    assert (body["payment_id"], body["status"]) == (None, "reversed")


@pytest.mark.parametrize(
    ("status", "kind", "field"),
    [
        (400, "bad-input", "amount"),
        (404, "not-found", None),
        (409, "conflict", None),
        (422, "request-id-reused", "request_id"),
    ],
)
def test_a_refusal_is_a_problem(status: int, kind: str, field: str | None) -> None:
    refusal = Refusal(reason="amount is no good.", state="captured", left=1005, currency="KWD")
    problem = refusal_problem(Outcome(status=status, request_id="r1", refusal=refusal))
    body = orjson.loads(problem.body())
    assert (body["type"], body["status"]) == (f"urn:mini-visa:problem:{kind}", status)
    assert body["detail"] == "amount is no good."
    assert (body["state"], body["left"], body["currency"]) == ("captured", "1.005", "KWD")
    assert [error["field"] for error in body.get("errors", [])] == ([field] if field else [])


def test_a_refusal_of_what_has_no_currency_says_nothing_of_what_is_left() -> None:
    refusal = Refusal(reason="the original was refused: there is nothing to reverse", left=0)
    body = orjson.loads(refusal_problem(Outcome(status=409, request_id="u", refusal=refusal)).body())
    assert "left" not in body


def test_the_field_at_fault_is_the_one_that_the_reason_is_about() -> None:
    refusal = Refusal(reason="limit must have exactly 0 decimals: the account is in JPY")
    body = orjson.loads(refusal_problem(Outcome(status=400, request_id="u", refusal=refusal)).body())
    assert [error["field"] for error in body["errors"]] == ["limit"]


def test_who_sees_only_its_own_payments_is_not_shown_what_the_card_had_available() -> None:
    event = {
        "type": "payment_authorized/1", "at": NOON, "partition": 3, "offset": 12, "position": 7, "seq": 2,
        "available_before": 99_000, "account": {"limit": 100_000},
        "payment": {"status": "authorized", "response_code": "00"},
    }  # fmt: skip
    decision = explanation_view(PAYMENT, [event], own=True)["decision"]
    assert (decision["available_before"], decision["limit"]) == (None, None)
    (shown,) = payment_record_view(PAYMENT, [event], own=True)["events"]
    assert "available_before" not in shown
    (shown,) = payment_record_view(PAYMENT, [event], own=False)["events"]
    assert shown["available_before"] == "990.00"


def test_an_explanation_has_the_rules_numbers_the_balance_before_and_the_places_in_the_log() -> None:
    hit = RuleHit(
        rule="velocity-count",
        version=2,
        outcome="decline",
        metric="count",
        value=11,
        threshold=10,
        window_s=60,
    )
    payment = changed(
        status=PaymentStatus.DECLINED,
        response_code="65",
        authorized=0,
        verdict=Verdict(
            score=80, response_code="65", hits=(hit,), evaluated=("velocity-count/2", "amount/1")
        ),
    )
    event = {
        "type": "payment_declined/1", "at": NOON, "partition": 3, "offset": 12, "position": 7,
        "available_before": 99_000, "account": {"limit": 100_000},
        "payment": {"status": "declined", "response_code": "65"},
    }  # fmt: skip
    view = explanation_view(payment, [{"type": "request_refused/1"}, event], own=False)
    assert view["risk"]["evaluated"] == ["velocity-count/2", "amount/1"]
    (rule,) = view["risk"]["rules"]
    assert (rule["rule"], rule["version"], rule["value"], rule["threshold"]) == ("velocity-count", 2, 11, 10)
    decision = view["decision"]
    assert (decision["response_code"], decision["available_before"], decision["limit"]) == (
        "65",
        "990.00",
        "1000.00",
    )
    assert decision["command"] == {"topic": "account.commands", "partition": 3, "offset": 7}
    assert decision["event"] == {"topic": "payment.events", "partition": 3, "offset": 12}
