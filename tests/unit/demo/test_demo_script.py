"""What the demo sends."""

from __future__ import annotations

from collections import Counter

import pytest

from mini_visa.demo.model import VELOCITY_COUNT
from mini_visa.demo.script import ASKED_PER_CARD_MAX, Script, text_of, write, write_aftermath

SEEDS = range(3)


@pytest.fixture(params=SEEDS)
def script(request: pytest.FixtureRequest) -> Script:
    return write(request.param, 1_000, "run")


def test_there_are_as_many_payments_as_were_asked_for():
    for payments in (1, 7, 300, 1_001):
        steps = [step for lane in write(1, payments, "run").lanes for step in lane.steps]
        assert sum(step.kind == "authorize" for step in steps) == payments


def test_a_seed_gives_the_same_script_again(script):
    assert write(script.seed, 1_000, "run") == script


def test_at_least_nine_in_ten_payments_are_approved(script):
    codes = Counter(step.code for lane in script.lanes for step in lane.steps if step.kind == "authorize")
    assert codes["00"] + codes["10"] >= 0.9 * codes.total()


def test_every_way_to_decline_and_every_kind_of_request_is_in_it(script):
    steps = [step for lane in script.lanes for step in lane.steps]
    assert {step.code for step in steps if step.kind == "authorize"} == {
        "00", "05", "10", "14", "41", "43", "51", "54", "57", "61", "62", "65", "68",
    }  # fmt: skip
    assert {step.kind for step in steps} == {
        "authorize", "increment", "capture", "reversal", "early reversal", "replay", "reused id",
        "account change", "cardholder payment", "refund",
    }  # fmt: skip


def outcomes(script: Script) -> None:
    """As the clearing house would: the sandbox as it is, of the others each tenth is rejected."""
    number = 0
    for lane in script.lanes:
        merchants = {
            step.request_id: step.body["merchant_id"] for step in lane.steps if step.kind == "authorize"
        }
        for request_id, payment in lane.account.payments.items():
            for n in range(1, len(payment.captures) + 1):
                number += 1
                always = {"sandbox-accepted": True, "sandbox-rejected": False, "sandbox-silent": False}
                accepted = always.get(merchants[request_id], number % 10 > 0)
                lane.account.clear(payment, n, accepted=accepted)


def test_the_aftermath_gives_back_no_more_than_was_captured_and_is_refused_where_it_would(script):
    outcomes(script)
    before = script.requests
    assert write_aftermath(script, "run") == script.requests - before > 50
    kinds = Counter((step.kind, step.status) for lane in script.lanes for step in lane.steps)
    for kind in ("refund", "chargeback"):
        assert kinds[kind, 200] and kinds[kind, 409]
    assert kinds["representment", 200] and kinds["acceptance", 200]
    for lane in script.lanes:
        for payment in lane.account.payments.values():
            assert 0 <= payment.refunded + payment.refund_reserved + payment.charged_back <= payment.captured
            if payment.compensated:
                assert (payment.captured, payment.refunded, payment.charged_back, payment.held) == (
                    0,
                    0,
                    0,
                    0,
                )


def test_nothing_that_a_rejection_changes_is_asked_after_a_capture_that_may_be_rejected(script):
    for lane in script.lanes:
        captured: dict[str, bool] = {}
        safe = {step.request_id for step in lane.steps if step.body.get("merchant_id") == "sandbox-accepted"}
        for step in lane.steps:
            if any(captured.values()):
                assert step.code not in ("10", "51"), "it depends on what is available"
            about = step.about or step.request_id
            if (step.kind == "capture" or step.body.get("capture")) and about not in safe:
                captured[about] = True
            if step.kind == "refund":
                captured[about] = True


def test_as_many_holds_as_were_asked_for_expire_before_their_capture():
    script = write(1, 5_000, "run", late=0.01, fuel_hold_s=2.0)
    late = [step for lane in script.lanes for step in lane.steps if step.wait_s]
    assert 30 <= len(late) <= 70 and all(step.kind == "capture" and step.wait_s > 2.0 for step in late)
    expired = sum(payment.expired for lane in script.lanes for payment in lane.account.payments.values())
    assert expired == len(late)


def test_request_ids_come_twice_in_replays_and_reused_ids_only(script):
    ids = [lane.opening["request_id"] for lane in script.lanes if lane.opening]
    ids += [
        step.request_id
        for lane in script.lanes
        for step in lane.steps
        if step.kind not in ("replay", "reused id")
    ]
    assert len(ids) == len(set(ids))
    assert all(request_id.startswith("run-") for request_id in ids)


def test_only_the_lanes_that_are_meant_to_come_near_the_velocity_rules(script):
    for lane in script.lanes:
        if not lane.burst:
            assert lane.account.count <= VELOCITY_COUNT
            assert lane.account.asked <= max(ASKED_PER_CARD_MAX[lane.account.currency], 200_000_00)
            assert not {step.code for step in lane.steps} & {"61", "65"}


def test_a_balance_is_what_its_payments_hold_and_have_captured(script):
    for lane in script.lanes:
        payments = lane.account.payments.values()
        amounts = [step.body["amount"] for step in lane.steps if step.kind == "cardholder payment"]
        paid = sum(int(amount.replace(".", "")) for amount in amounts)
        assert lane.account.held == sum(payment.held for payment in payments)
        assert lane.account.posted == sum(payment.captured for payment in payments) - paid
        for payment in payments:
            assert payment.held >= 0 and payment.captured + payment.reversed <= payment.authorized


def test_a_replay_repeats_an_earlier_request_of_its_lane(script):
    for lane in script.lanes:
        for place, step in enumerate(lane.steps):
            if step.replays is not None:
                former = lane.steps[step.replays]
                assert step.replays < place
                assert (former.path, former.body) == (step.path, step.body)


@pytest.mark.parametrize(
    ("amount", "currency", "text"),
    [
        (1000, "USD", "10.00"),
        (5, "USD", "0.05"),
        (10, "JPY", "10"),
        (12_345, "KWD", "12.345"),
        (0, "EUR", "0.00"),
        (-7_69, "USD", "-7.69"),
        (-5, "JPY", "-5"),
    ],
)
def test_amounts_are_written_in_the_currencys_own_decimals(amount, currency, text):
    assert text_of(amount, currency) == text
