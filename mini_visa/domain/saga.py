"""The saga of a payment: from its first capture until each of its captures has cleared, or until nothing
of the payment is left.

A hold needs no saga: it ends by itself. A capture does: it waits for the clearing house, which may reject
it, or say nothing. What then happens:

| step | fails when | compensation |
|---|---|---|
| hold | the captures it was for are rejected | the rest of the hold is reversed |
| capture | its clearing is rejected | taken back by the event that records the rejection |
| clearing | no outcome by the deadline | the presentment is called back; the answer is the outcome |

A saga that is past a deadline says so each time it tries again, so it is never stuck in silence.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal, NamedTuple, TypeAlias

import msgspec
from msgspec.structs import replace

from mini_visa.domain.clearing import CancelPresentment, key_of
from mini_visa.domain.commands import REVERSAL_CLIENT, ReversePayment
from mini_visa.domain.events import CaptureRejected, PaymentEvent
from mini_visa.domain.messages import Message
from mini_visa.domain.payment import CaptureState, Payment, held_of
from mini_visa.domain.terms import DAY_MS

RETRY_DOUBLINGS_MAX: Final = 6

Step: TypeAlias = Literal["clearing", "releasing"]
SagaState: TypeAlias = Literal["overdue", "compensating", "completed", "compensated"]


class SagaTerms(msgspec.Struct, frozen=True):
    clearing_deadline_ms: int = DAY_MS
    """An outcome of clearing comes within this, or the presentment is called back."""
    retry_ms: int = 300_000
    """A compensation takes effect within this, or is tried again: twice as late each time."""

    def retry_after(self, tries: int) -> int:
        return self.retry_ms << min(tries, RETRY_DOUBLINGS_MAX)


class Saga(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A payment some step of which has still to take place."""

    since: int
    """Event time of the first step that is open, ms."""
    deadline: int
    """When something must have happened."""
    step: Step
    waiting: tuple[int, ...] = ()
    """Numbers of the captures without an outcome."""
    tries: int = 0
    """Times that a deadline of this step passed or a compensation was sent."""
    failed: bool = False
    """A capture of it was rejected."""


class SagaEvent(Message, frozen=True, kw_only=True, omit_defaults=True, tag="saga_event/1"):
    """Something that must be seen: a saga is late, has to undo a step, or is over after either."""

    payment_id: str
    account: str
    state: SagaState
    step: Step
    at: int
    since: int
    tries: int = 0
    waiting: tuple[int, ...] = ()


Compensation: TypeAlias = ReversePayment | CancelPresentment


class Progress(NamedTuple):
    """What a step of the saga changes and asks for."""

    saga: Saga | None
    """None: over."""
    events: tuple[SagaEvent, ...] = ()
    sends: tuple[Compensation, ...] = ()


def follow(saga: Saga | None, event: PaymentEvent, now: int, terms: SagaTerms) -> Progress:
    """After `event`, which shows the payment as it is now. Asks for nothing twice."""
    payment = event.payment
    waiting = tuple(one.n for one in payment.captures if one.state is CaptureState.SUBMITTED)
    failed = isinstance(event, CaptureRejected) or (saga is not None and saga.failed)
    if waiting:
        if saga is not None and saga.step == "clearing" and waiting == saga.waiting:
            return Progress(saga if saga.failed == failed else replace(saga, failed=failed))
        since = min(payment.captures[n - 1].at for n in waiting)
        if saga is not None and saga.step == "clearing" and saga.tries:
            return Progress(replace(saga, since=since, waiting=waiting, failed=failed))
        deadline = max(since + terms.clearing_deadline_ms, now + 1)
        return Progress(Saga(since, deadline, "clearing", waiting, 0, failed))
    if saga is None:
        return Progress(None)
    if failed and payment.captured == 0 and held_of(payment):
        if saga.step == "releasing":
            return Progress(saga)
        releasing = Saga(now, now, "releasing", (), 0, True)
        return pass_deadline(payment.payment_id, payment.account, releasing, now, terms)
    state: SagaState = "compensated" if failed and payment.captured == 0 else "completed"
    if not (failed or saga.tries):
        return Progress(None)
    return Progress(None, (_event(payment.payment_id, payment.account, saga, state, event.at),))


def pass_deadline(payment_id: str, account: str, saga: Saga, now: int, terms: SagaTerms) -> Progress:
    """`saga.deadline` has passed and nothing has happened: say so, and do once more what `REMEDIES` says.
    Each time twice as late."""
    assert now >= saga.deadline
    remedy = REMEDIES[saga.step]
    later = replace(saga, deadline=now + terms.retry_after(saga.tries), tries=saga.tries + 1)
    state: SagaState = "overdue" if saga.tries else remedy.first_said
    return Progress(
        later, (_event(payment_id, account, later, state, now),), remedy.sends(payment_id, account, saga)
    )


def _call_back(payment_id: str, account: str, saga: Saga) -> tuple[Compensation, ...]:
    """Every capture without an outcome. The answer is the outcome, whichever it is."""
    return tuple(
        CancelPresentment(key=key_of(payment_id, n), payment_id=payment_id, n=n) for n in saga.waiting
    )


def _release(payment_id: str, account: str, saga: Saga) -> tuple[Compensation, ...]:
    """What is still held. Each try is a request of its own: its number is in its id."""
    release = ReversePayment(
        account=account,
        client=REVERSAL_CLIENT,
        request_id=f"release-{payment_id}-{saga.since}-{saga.tries}",
        payment_id=payment_id,
        reason="clearing rejected",
    )
    return (release,)


class Remedy(NamedTuple):
    """What is done about a step whose deadline has passed."""

    first_said: SagaState
    """What is told the first time; each later time `overdue`."""
    sends: Callable[[str, str, Saga], tuple[Compensation, ...]]
    """(payment id, account, saga): the compensations."""


REMEDIES: Final[dict[Step, Remedy]] = {
    "clearing": Remedy("overdue", _call_back),
    "releasing": Remedy("compensating", _release),
}
"""Step that is open -> its compensation."""


def _event(payment_id: str, account: str, saga: Saga, state: SagaState, at: int) -> SagaEvent:
    return SagaEvent(
        payment_id=payment_id,
        account=account,
        state=state,
        step=saga.step,
        at=at,
        since=saga.since,
        tries=saga.tries,
        waiting=saga.waiting,
    )


def is_over(payment: Payment) -> bool:
    """Nothing of the payment is left: its postings sum to zero on each ledger account."""
    return held_of(payment) == 0 and payment.captured == 0
