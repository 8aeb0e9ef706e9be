"""The reversal service: what fails is undone, what is late is called back, nothing is stuck in silence."""

from __future__ import annotations

from agents.testing import ACCOUNT, DAY, HOUR, MIDNIGHT, Pipeline
from mini_visa import topics
from mini_visa.domain.commands import ReversePayment
from mini_visa.domain.payment import PaymentStatus
from mini_visa.domain.saga import is_over
from tables.sagas import DEADLINES, SAGAS


def sagas(flow: Pipeline) -> dict:
    return flow.drivers["compensate"].rows(SAGAS)


def compensations(flow: Pipeline) -> list:
    return flow.drivers["compensate"].sent(topics.ACCOUNT_COMMANDS)


def told(flow: Pipeline) -> list[tuple[str, str]]:
    return [(event.state, event.step) for event in flow.saga_events]


def test_a_payment_that_clears_has_a_saga_from_capture_to_clearing_and_says_nothing():
    flow = Pipeline()
    payment = flow.authorize("100.00")
    assert sagas(flow) == {}
    flow.capture(payment, "40.00", final=False)
    saga = sagas(flow)[payment]
    assert (saga.step, saga.waiting, saga.deadline) == ("clearing", (1,), MIDNIGHT + DAY)
    flow.at += HOUR
    flow.capture(payment, "60.00")
    assert sagas(flow)[payment].waiting == (1, 2)
    flow.clear(payment, 1)
    saga = sagas(flow)[payment]
    assert (saga.waiting, saga.since, saga.deadline) == ((2,), MIDNIGHT + HOUR, MIDNIGHT + HOUR + DAY)
    flow.clear(payment, 2)
    assert sagas(flow) == {} and told(flow) == [] and compensations(flow) == []
    assert flow.drivers["compensate"].rows(DEADLINES) == {}


def test_a_rejected_capture_is_compensated_and_nothing_of_the_payment_is_left():
    flow = Pipeline()
    payment = flow.authorize("123.45")
    flow.capture(payment)
    flow.clear(payment, accepted=False)
    assert told(flow) == [("compensated", "clearing")]
    assert flow.postings_of(payment) == {} == flow.ledger
    assert is_over(flow.payments[payment]) and sagas(flow) == {}


def test_what_is_still_held_is_released_when_all_captures_were_rejected():
    flow = Pipeline()
    payment = flow.authorize("100.00")
    flow.capture(payment, "40.00", final=False)
    flow.clear(payment, accepted=False)
    (release,) = compensations(flow)
    assert isinstance(release, ReversePayment)
    assert (release.payment_id, release.client, release.account) == (payment, "reversal", ACCOUNT)
    assert told(flow) == [("compensating", "releasing"), ("compensated", "releasing")]
    assert flow.postings_of(payment) == {} == flow.ledger
    assert (flow.account.held, flow.account.posted) == (0, 0)


def test_the_hold_stays_while_another_capture_stands():
    flow = Pipeline()
    payment = flow.authorize("100.00")
    flow.capture(payment, "40.00", final=False)
    flow.capture(payment, "10.00", final=False)
    flow.clear(payment, 1, accepted=False)
    assert compensations(flow) == [] and told(flow) == []
    flow.clear(payment, 2)
    assert told(flow) == [("completed", "clearing")]
    assert flow.account.held == 50_00
    assert sagas(flow) == {}


def test_the_last_rejection_of_several_releases_the_hold():
    flow = Pipeline()
    payment = flow.authorize("100.00")
    flow.capture(payment, "40.00", final=False)
    flow.capture(payment, "10.00", final=False)
    flow.clear(payment, 1, accepted=False)
    flow.clear(payment, 2, accepted=False)
    assert flow.ledger == {} and flow.payments[payment].status is PaymentStatus.REVERSED


def test_a_refund_that_waits_for_a_rejected_clearing_leaves_nothing_behind():
    flow = Pipeline()
    payment = flow.authorize("100.00")
    flow.capture(payment)
    flow.refund(payment, "30.00")
    flow.clear(payment, accepted=False)
    assert flow.ledger == {} == flow.postings_of(payment)


def test_without_an_outcome_by_the_deadline_the_presentment_is_called_back_and_everyone_is_told():
    flow = Pipeline()
    payment = flow.authorize("100.00")
    flow.capture(payment)
    flow.tick(DAY / 1000 - 1)
    assert flow.cancelled == [] and told(flow) == []
    flow.tick(1)
    assert flow.cancelled == [f"{payment}-1"]
    (event,) = flow.saga_events
    assert (event.payment_id, event.account, event.state, event.step) == (
        payment, ACCOUNT, "overdue", "clearing",
    )  # fmt: skip
    assert (event.since, event.at, event.tries, event.waiting) == (MIDNIGHT, MIDNIGHT + DAY, 1, (1,))


def test_calling_back_is_tried_again_each_time_later_and_said_each_time():
    flow = Pipeline()
    payment = flow.authorize("100.00")
    flow.capture(payment)
    flow.tick(DAY / 1000)
    seconds = []
    for second in range(1, 2_200):
        before = len(flow.cancelled)
        flow.tick(1)
        if len(flow.cancelled) > before:
            seconds.append(second)
    assert seconds == [300, 900, 2_100]
    assert [event.tries for event in flow.saga_events] == [1, 2, 3, 4]


def test_an_overdue_saga_stays_overdue_for_the_captures_that_still_wait():
    flow = Pipeline()
    payment = flow.authorize("100.00")
    flow.capture(payment, "40.00", final=False)
    flow.capture(payment, "60.00")
    flow.tick(DAY / 1000)
    flow.clear(payment, 1)
    saga = sagas(flow)[payment]
    assert (saga.waiting, saga.tries, saga.deadline) == ((2,), 1, flow.at + 300_000)
    flow.tick(300)
    assert flow.cancelled == [f"{payment}-1", f"{payment}-2", f"{payment}-2"]


def test_a_late_acceptance_completes_the_saga_and_says_so():
    flow = Pipeline()
    payment = flow.authorize("100.00")
    flow.capture(payment)
    flow.tick(DAY / 1000)
    flow.clear(payment)
    assert told(flow) == [("overdue", "clearing"), ("completed", "clearing")]
    flow.tick(DAY / 1000)
    assert len(flow.saga_events) == 2 and sagas(flow) == {}


def test_a_presentment_that_was_called_back_in_time_is_compensated():
    flow = Pipeline()
    payment = flow.authorize("100.00")
    flow.capture(payment, "70.00", final=False)
    flow.tick(DAY / 1000)
    flow.clear(payment, accepted=False)
    assert told(flow) == [
        ("overdue", "clearing"), ("compensating", "releasing"), ("compensated", "releasing"),
    ]  # fmt: skip
    assert flow.ledger == {}


def test_a_release_that_has_no_effect_is_tried_again_as_a_new_request():
    flow = Pipeline()
    payment = flow.authorize("100.00")
    flow.capture(payment, "40.00", final=False)
    decide = flow.drivers.pop("decide")  # authorization is away: commands wait
    rejected = _rejection(decide, payment, flow.at)
    flow.put(topics.PAYMENT_EVENTS, rejected, ACCOUNT.encode())
    driver = flow.drivers["compensate"]
    from mini_visa.domain.events import TimePassed

    for second in (299, 300, 899, 900):
        driver.send(TimePassed(at=flow.at + second * 1000, position=0), at=flow.at + second * 1000)
    ids = [command.request_id for command in compensations(flow)]
    assert len(ids) == len(set(ids)) == 3
    assert told(flow) == [("compensating", "releasing"), ("overdue", "releasing"), ("overdue", "releasing")]


def _rejection(decide, payment: str, at: int):
    """The event of a rejection, as authorization would write it; nobody else has seen it."""
    from mini_visa.domain.commands import RecordClearing

    command = RecordClearing(account=ACCOUNT, request_id="c", payment_id=payment, n=1, accepted=False)
    decide.send(command, key=ACCOUNT.encode(), at=at)
    return decide.sent(topics.PAYMENT_EVENTS)[-1]


def test_a_hold_that_expires_while_it_is_being_released_ends_the_saga_too():
    flow = Pipeline()
    payment = flow.authorize("100.00")
    flow.capture(payment, "40.00", final=False)
    flow.at += 7 * DAY
    flow.tick()
    flow.clear(payment, accepted=False)
    assert flow.ledger == {} and sagas(flow) == {}
    assert told(flow)[-1] == ("compensated", "clearing")


def test_a_payment_that_was_never_captured_has_no_saga():
    flow = Pipeline()
    flow.reverse(flow.authorize("10.00"))
    flow.authorize("20.00")
    flow.tick(8 * DAY / 1000)
    assert sagas(flow) == {} and told(flow) == [] and flow.ledger == {}
