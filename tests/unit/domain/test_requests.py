"""Idempotency: one request, one outcome, whatever is sent again, in whatever order."""

import pytest

from mini_visa.domain.account import Decision
from mini_visa.domain.events import PaymentReversed, PaymentUnknownCard, RequestCancelled, RequestRefused
from mini_visa.domain.testing import Host

DAY_S = 86_400


def ask(
    host: Host, attempt: str, *, amount: str = "60.00", fingerprint: str = "f", **fields: object
) -> Decision:
    return host.authorize(amount, request_id="r", attempt=attempt, fingerprint=fingerprint, **fields)


def give_up(host: Host, attempt: str, *, fingerprint: str = "f") -> Decision:
    return host.time_out("r", attempt, fingerprint=fingerprint)


def stands(host: Host) -> bool:
    """Whether the request's hold is there."""
    return host.account.held > 0


# -- the same request again ------------------------------------------------------------------------


def test_a_request_sent_again_gets_the_first_answer_and_does_nothing() -> None:
    host = Host()
    first = ask(host, "a1")
    host.capture(first.outcome.payment)
    again = ask(host, "a2")
    assert again.replayed and not again.events and again.outcome == first.outcome
    assert host.account.held == 0 and host.account.posted == 6000


def test_declines_and_refusals_are_as_sticky_as_approvals() -> None:
    host = Host(limit="10.00")
    first = ask(host, "a1")
    missing = host.capture(first.outcome.payment, request_id="c")
    host.change(limit="1000.00")
    assert ask(host, "a2").outcome == first.outcome and first.outcome.response_code == "51"
    again = host.capture(first.outcome.payment, request_id="c")
    assert again.replayed and again.outcome == missing.outcome and missing.outcome.status == 409


def test_the_same_id_with_another_body_is_a_conflict_and_the_first_answer_stays() -> None:
    host = Host()
    first = ask(host, "a1")
    other = ask(host, "a2", amount="61.00", fingerprint="g")
    assert other.outcome.status == 422 and [type(event) for event in other.events] == [RequestRefused]
    assert ask(host, "a3").outcome == first.outcome
    assert host.account.held == 6000


def test_all_operations_share_one_namespace() -> None:
    host = Host()
    payment = ask(host, "a1").outcome.payment
    assert host.capture(payment, request_id="r", fingerprint="f").outcome.status == 422
    assert host.pay("1.00", request_id="r", fingerprint="f").outcome.status == 422
    assert host.account.held == 6000


def test_another_client_or_another_account_is_another_request() -> None:
    host = Host()
    ask(host, "a1")
    assert not ask(host, "a2", client="other").replayed
    assert host.account.held == 12_000


def test_a_request_id_is_new_again_after_24_hours_of_event_time() -> None:
    host = Host()
    first = ask(host, "a1").outcome.payment
    host.pass_time(DAY_S - 0.001)
    assert ask(host, "a2").replayed
    host.pass_time(0.001)
    second = ask(host, "a3")
    assert not second.replayed and second.outcome.payment.payment_id != first.payment_id
    assert host.account.held == 12_000


# -- reversals that know only the request --------------------------------------------------------------


def test_a_reversal_by_request_releases_the_hold() -> None:
    host = Host()
    payment = ask(host, "a1").outcome.payment
    outcome = host.reverse_request("r").outcome
    assert outcome.payment.payment_id == payment.payment_id and outcome.payment.status == "reversed"
    assert host.account.held == 0


def test_a_reversal_before_its_request_cancels_it() -> None:
    host = Host()
    before = host.reverse_request("r")
    assert before.outcome.status == 200 and before.outcome.payment is None
    assert [type(event) for event in before.events] == [RequestCancelled]
    late = ask(host, "a1")
    assert (late.outcome.status, late.outcome.response_code) == (200, "68")
    assert late.outcome.payment.status == "reversed" and not stands(host)
    assert [type(event) for event in late.events] == [PaymentReversed] and late.events[0].amount == 0
    assert ask(host, "a2").replayed
    assert host.records.payments[late.outcome.payment.payment_id] == late.outcome.payment


def test_a_request_is_cancelled_for_a_day_and_its_answer_stands_for_one() -> None:
    host = Host()
    host.reverse_request("r")
    host.pass_time(DAY_S - 0.001)
    assert ask(host, "a1").outcome.response_code == "68"
    host.pass_time(DAY_S - 0.001)
    assert ask(host, "a2").outcome.response_code == "68"
    host.pass_time(0.001)
    assert ask(host, "a3").outcome.response_code == "00"


def test_a_cancellation_is_over_after_a_day() -> None:
    host = Host()
    host.reverse_request("r")
    host.pass_time(DAY_S)
    assert ask(host, "a1").outcome.response_code == "00"


def test_a_cancelled_request_of_an_unknown_card_leaves_a_reversed_payment() -> None:
    host = Host(opened=False)
    host.reverse_request("r")
    late = ask(host, "a1")
    assert [type(event) for event in late.events] == [PaymentUnknownCard]
    assert late.outcome.payment.status == "reversed"


def test_the_id_of_a_cancelled_request_cannot_be_used_for_something_else() -> None:
    host = Host()
    host.reverse_request("r")
    assert host.pay("1.00", request_id="r").outcome.status == 422


def test_a_reversal_by_the_request_of_something_else_is_refused() -> None:
    host = Host()
    host.pay("1.00", request_id="p")
    assert host.reverse_request("p").outcome.status == 409
    ask(host, "a1", amount="5000.00")
    assert host.reverse_request("r").outcome.status == 409  # declined: nothing is held


# -- time-outs: a1, a2 are attempts at one request ----------------------------------------------------------


def test_a_time_out_reverses_the_hold_and_replaces_the_answer() -> None:
    host = Host()
    payment = ask(host, "a1").outcome.payment
    undone = give_up(host, "a1")
    assert [type(event) for event in undone.events] == [PaymentReversed]
    assert (undone.events[0].response_code, undone.events[0].amount) == ("68", 6000)
    retry = ask(host, "a2")
    assert retry.replayed and (retry.outcome.status, retry.outcome.response_code) == (200, "68")
    assert (retry.outcome.payment.payment_id, retry.outcome.payment.status) == (
        payment.payment_id,
        "reversed",
    )
    assert retry.outcome.payment.response_code == "68" and not stands(host)


def test_a_time_out_before_its_request_cancels_every_attempt() -> None:
    host = Host()
    assert [type(event) for event in give_up(host, "a1").events] == [RequestCancelled]
    late = ask(host, "a1")
    assert (late.outcome.response_code, late.outcome.payment.status) == ("68", "reversed")
    assert ask(host, "a2").outcome == late.outcome and not stands(host)


def test_a_time_out_whose_request_never_comes_cancels_the_retry() -> None:
    host = Host()
    give_up(host, "a1")
    retry = ask(host, "a2")
    assert retry.outcome.payment.status == "reversed" and not retry.replayed and not stands(host)


def test_a_time_out_is_ignored_when_a_later_attempt_was_answered() -> None:
    host = Host()
    first = ask(host, "a1")
    ask(host, "a2")
    ignored = give_up(host, "a1")
    assert [type(event) for event in ignored.events] == [RequestRefused] and stands(host)
    assert ask(host, "a3").outcome == first.outcome


def test_a_time_out_is_ignored_when_an_earlier_attempt_was_answered_and_stands_by_it() -> None:
    host = Host()
    ask(host, "a1")
    ask(host, "a2")
    give_up(host, "a2")
    assert stands(host)


@pytest.mark.parametrize("order", [("a1", "a2"), ("a2", "a1")])
def test_when_both_attempts_time_out_no_hold_remains(order: tuple[str, str]) -> None:
    host = Host()
    ask(host, "a1")
    ask(host, "a2")
    for attempt in order:
        give_up(host, attempt)
    assert not stands(host) and ask(host, "a3").outcome.response_code == "68"


def test_a_time_out_that_overtakes_its_own_retry_counts_when_the_retry_comes() -> None:
    """The retry goes through risk, its time-out does not: it may come first."""
    host = Host()
    ask(host, "a1")
    give_up(host, "a2")
    assert stands(host)
    ask(host, "a2")
    give_up(host, "a1")
    assert not stands(host)


def test_a_retry_that_was_answered_before_any_time_out_came_stands() -> None:
    host = Host()
    ask(host, "a1")
    ask(host, "a2")
    ask(host, "a3")
    give_up(host, "a1")
    give_up(host, "a2")
    assert stands(host)
    give_up(host, "a3")
    assert not stands(host)


def test_a_time_out_that_comes_twice_counts_once() -> None:
    host = Host()
    ask(host, "a1")
    give_up(host, "a1")
    again = give_up(host, "a1")
    assert again.replayed and not again.events and again.outcome.response_code == "68"
    other = Host()
    give_up(other, "a1")
    assert give_up(other, "a1").replayed


def test_a_time_out_of_another_body_with_the_same_id_touches_nothing() -> None:
    host = Host()
    ask(host, "a1")
    ask(host, "a2", fingerprint="g")
    assert give_up(host, "a2", fingerprint="g").outcome.status == 422
    assert stands(host)


def test_a_time_out_of_a_request_id_that_something_else_has_touches_nothing() -> None:
    host = Host()
    host.pay("1.00", request_id="r", fingerprint="f")
    assert give_up(host, "a1").outcome.status == 422 and host.account.posted == -100


def test_a_declined_request_that_timed_out_is_answered_as_reversed() -> None:
    host = Host(limit="10.00")
    ask(host, "a1")
    give_up(host, "a1")
    assert ask(host, "a2").outcome.response_code == "68"
    assert host.payment(ask(host, "a3").outcome.payment).status == "reversed"


def test_a_time_out_of_an_unknown_card_is_answered_as_reversed() -> None:
    host = Host(opened=False)
    ask(host, "a1")
    assert [type(event) for event in give_up(host, "a1").events] == [PaymentUnknownCard]
    assert ask(host, "a2").outcome.payment.status == "reversed"


def test_a_sale_that_timed_out_is_refunded() -> None:
    host = Host()
    payment = ask(host, "a1", capture=True).outcome.payment
    outcome = give_up(host, "a1").outcome
    assert (outcome.response_code, outcome.payment.refund_reserved) == ("68", 6000)
    assert ask(host, "a2").outcome == outcome
    host.clear(payment)
    assert host.account.posted == 0 and host.payment(payment).refunded == 6000


def test_a_sale_that_timed_out_after_its_clearing_was_rejected_needs_no_refund() -> None:
    host = Host()
    payment = ask(host, "a1", capture=True).outcome.payment
    host.clear(payment, accepted=False)
    assert give_up(host, "a1").outcome.response_code == "68"
    assert host.account.posted == 0 and not host.payment(payment).refunds


def test_a_payment_that_was_captured_by_somebody_stands() -> None:
    host = Host()
    payment = ask(host, "a1").outcome.payment
    host.capture(payment, "10.00", final=False)
    assert give_up(host, "a1").outcome.status == 409
    assert host.account.held == 5000


def test_after_the_window_a_time_out_finds_nothing_to_undo() -> None:
    host = Host()
    ask(host, "a1")
    host.pass_time(DAY_S)
    assert [type(event) for event in give_up(host, "a1").events] == [RequestCancelled]
    assert stands(host)


def test_endless_retries_keep_the_stored_request_small() -> None:
    host = Host()
    for number in range(100):
        ask(host, f"a{number}")
        if number:
            give_up(host, f"a{number}")
    [row] = [row for key, row in host.records.requests.items() if key[2] == "r"]
    assert len(row.answered) <= 16 and len(row.given_up) <= 16 and stands(host)
