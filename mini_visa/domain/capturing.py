"""Capturing, and what follows: clearing, refunds, chargebacks. From capture on the amount is posted."""

from __future__ import annotations

from typing import Final, TypeVar

from msgspec.structs import replace

from mini_visa.domain.answers import Outcome
from mini_visa.domain.commands import (
    AcceptChargeback,
    CapturePayment,
    OpenChargeback,
    RecordClearing,
    RefundPayment,
    RepresentChargeback,
)
from mini_visa.domain.events import (
    CaptureCleared,
    CaptureRejected,
    ChargebackAccepted,
    ChargebackOpened,
    ChargebackRepresented,
    PaymentCaptured,
    PaymentRefunded,
)
from mini_visa.domain.lifecycle import Operation
from mini_visa.domain.payment import (
    Capture,
    CaptureState,
    Chargeback,
    DisputeState,
    Payment,
    PaymentStatus,
    Refund,
    RefundState,
    held_of,
)
from mini_visa.domain.turn import Turn

P = TypeVar("P", Capture, Chargeback)

PARTS_MAX: Final = 100
"""Captures, refunds and chargebacks that one payment may have, each: its row stays small."""


# -- capture -------------------------------------------------------------------------------------


def capture(turn: Turn, payment: Payment, command: CapturePayment) -> Outcome:
    """Post (part of) what is held, and at the final capture let the rest of the hold go. Up to the
    tolerance of the MCC more may be captured. When the hold has expired the capture still posts, forced,
    up to what was authorized and neither captured nor reversed."""
    refusal = turn.check(Operation.CAPTURE, payment, command.amount, command.exponent)
    if refusal is not None:
        return refusal
    state = payment.status.value
    if payment.hold_ended:
        return turn.refuse(409, f"the hold has ended: the payment is {state}", payment=payment, left=0)
    if len(payment.captures) == PARTS_MAX:
        return turn.refuse(409, f"a payment has at most {PARTS_MAX} captures", payment=payment, left=0)
    whole = payment.authorized - payment.reversed
    due = whole - payment.captured if payment.expired else held_of(payment)
    left = max(0, due + turn.terms.tolerance_of(payment.merchant, whole))
    amount = due if command.amount is None else command.amount
    if amount > left or amount <= 0:
        reason = "more than was authorized" if payment.expired else "more than is held"
        return turn.refuse(409, f"{reason}: the payment is {state}", payment=payment, left=left)
    after = capture_hold(turn, payment, amount, final=command.final)
    turn.keep(Operation.CAPTURE, payment, after)
    return turn.answer(after)


def capture_hold(turn: Turn, payment: Payment, amount: int, *, final: bool) -> Payment:
    """The payment after capturing `amount`, which has been checked; to be kept by the caller."""
    held = held_of(payment)
    used = min(amount, held)
    due = payment.authorized - payment.reversed - payment.captured if payment.expired else held
    ends = final or amount >= due
    freed = held - used if ends else 0
    n = len(payment.captures) + 1
    after = replace(
        payment,
        status=PaymentStatus.CAPTURED if ends else PaymentStatus.PARTIALLY_CAPTURED,
        captured=payment.captured + amount,
        released=payment.released + freed,
        hold_ended=ends,
        captures=(*payment.captures, Capture(n=n, amount=amount, at=turn.at, forced=payment.expired)),
        forced=payment.expired,
    )
    turn.tell(
        PaymentCaptured,
        after,
        amount,
        held_by=-(used + freed),
        posted_by=amount,
        facts={"n": n, "hold_used": used, "hold_freed": freed, "forced": payment.expired},
    )
    return after


def capture_at_once(turn: Turn, payment: Payment, response_code: str) -> Payment:
    """A new payment that is captured as it is authorized; to be kept by the caller."""
    amount = payment.authorized
    after = replace(
        payment,
        status=PaymentStatus.CAPTURED,
        captured=amount,
        hold_ended=True,
        captures=(Capture(n=1, amount=amount, at=turn.at),),
    )
    turn.tell(PaymentCaptured, after, amount, posted_by=amount, response_code=response_code, facts={"n": 1})
    return after


# -- clearing ------------------------------------------------------------------------------------


def record_clearing(turn: Turn, payment: Payment, command: RecordClearing) -> Outcome:
    """What the clearing house said of a capture: cleared with its fees, and the refunds that waited for
    it post; or rejected, the capture is taken back, and the refunds it cannot cover are cancelled."""
    operation = Operation.CLEAR if command.accepted else Operation.REJECT
    refusal = turn.check(operation, payment, None, None)
    if refusal is not None:
        return refusal
    if not 1 <= command.n <= len(payment.captures):
        return turn.refuse(409, f"there is no capture {command.n}", payment=payment)
    former = payment.captures[command.n - 1]
    if former.state is not CaptureState.SUBMITTED:
        return turn.refuse(409, f"capture {command.n} is already {former.state.value}", payment=payment)
    amount = former.amount
    if command.accepted:
        interchange, scheme_fee = turn.terms.fees_of(payment.merchant, amount)
        cleared = replace(former, state=CaptureState.CLEARED, interchange=interchange, scheme_fee=scheme_fee)
        after, posts = _post_reserved(
            replace(
                payment,
                captures=_with(payment.captures, cleared),
                cleared=payment.cleared + amount,
            )
        )
        after, returned = _return_fees(turn, payment, after)
        turn.keep(operation, payment, after)
        turn.tell(
            CaptureCleared,
            after,
            amount,
            posted_by=-posts,
            facts={
                "n": command.n,
                "interchange": interchange,
                "scheme_fee": scheme_fee,
                "refund_posted": posts,
                **returned,
            },
        )
        return turn.answer(after)
    rejected = replace(former, state=CaptureState.REJECTED, reason=command.reason)
    hold_open = not (payment.hold_ended or payment.expired)
    after, cancels = _cancel_reserved(
        replace(
            payment,
            captures=_with(payment.captures, rejected),
            captured=payment.captured - amount,
            # The hold that the capture used is gone for good, it does not grow back.
            released=payment.released + (amount if hold_open else 0),
        )
    )
    turn.keep(operation, payment, after)
    turn.tell(
        CaptureRejected,
        after,
        amount,
        posted_by=-amount,
        facts={"n": command.n, "refund_cancelled": cancels, "reason": command.reason},
    )
    return turn.answer(after)


# -- refunds -------------------------------------------------------------------------------------


def refund(turn: Turn, payment: Payment, command: RefundPayment) -> Outcome:
    """Give money back: what is cleared posts now, the rest is reserved until it clears."""
    refusal = turn.check(Operation.REFUND, payment, command.amount, command.exponent)
    if refusal is not None:
        return refusal
    left = left_to_refund(payment)
    amount = left if command.amount is None else command.amount
    if amount > left or amount == 0:
        return turn.refuse(409, "more than is left to refund", payment=payment, left=left)
    if len(payment.refunds) == PARTS_MAX:
        return turn.refuse(409, f"a payment has at most {PARTS_MAX} refunds", payment=payment, left=0)
    return turn.answer(_refund(turn, payment, amount, "00"))


def refund_rest(turn: Turn, payment: Payment, response_code: str) -> Payment:
    """Give back all that is left, because of `response_code`."""
    return _refund(turn, payment, left_to_refund(payment), response_code)


def _refund(turn: Turn, payment: Payment, amount: int, response_code: str) -> Payment:
    n = len(payment.refunds) + 1
    wanted = replace(
        payment,
        refunds=(*payment.refunds, Refund(n=n, amount=amount, at=turn.at)),
        refund_reserved=payment.refund_reserved + amount,
    )
    after, posts = _post_reserved(wanted)
    after, returned = _return_fees(turn, payment, after)
    turn.keep(Operation.REFUND, payment, after)
    turn.tell(
        PaymentRefunded,
        after,
        amount,
        posted_by=-posts,
        response_code=response_code,
        facts={"n": n, "posted": posts, **returned},
    )
    return after


def left_to_refund(payment: Payment) -> int:
    """Minor units captured and not given back in any way: refunds, reserved ones too, and chargebacks
    together never exceed what was captured."""
    return payment.captured - payment.refunded - payment.refund_reserved - payment.charged_back


def _post_reserved(payment: Payment) -> tuple[Payment, int]:
    """Post reserved refunds, oldest first, as far as cleared money reaches; and how much that is. So a
    refund waits only while all that has cleared is already given back."""
    room = min(payment.refund_reserved, payment.cleared - payment.refunded - payment.charged_back)
    if room <= 0:
        return payment, 0
    refunds, rest = [], room
    for refund in payment.refunds:
        part = min(rest, refund.amount - refund.posted - refund.cancelled)
        rest -= part
        refunds.append(_settled(replace(refund, posted=refund.posted + part)) if part else refund)
    assert rest == 0, "more is reserved than the refunds say"
    return (
        replace(
            payment,
            refunds=tuple(refunds),
            refunded=payment.refunded + room,
            refund_reserved=payment.refund_reserved - room,
        ),
        room,
    )


def _return_fees(turn: Turn, before: Payment, after: Payment) -> tuple[Payment, dict[str, int]]:
    """With the fees that go back to the merchant for what has been refunded since `before`, where the terms
    say so: of all fees of what has cleared, the share that is refunded, rounded down. A payment that is
    refunded in full has cost its merchant nothing."""
    if not turn.terms.mirror_refund_fees or after.refunded == before.refunded:
        return after, {}
    cleared = [capture for capture in after.captures if capture.state is CaptureState.CLEARED]
    interchange = sum(capture.interchange for capture in cleared) * after.refunded // after.cleared
    scheme_fee = sum(capture.scheme_fee for capture in cleared) * after.refunded // after.cleared
    # A capture that cleared since may have cost less: what went back stays.
    interchange = max(0, interchange - after.interchange_returned)
    scheme_fee = max(0, scheme_fee - after.scheme_fee_returned)
    return (
        replace(
            after,
            interchange_returned=after.interchange_returned + interchange,
            scheme_fee_returned=after.scheme_fee_returned + scheme_fee,
        ),
        {"interchange_returned": interchange, "scheme_fee_returned": scheme_fee},
    )


def _cancel_reserved(payment: Payment) -> tuple[Payment, int]:
    """Cancel reserved refunds, newest first, that what is still captured cannot cover."""
    excess = -left_to_refund(payment)
    if excess <= 0:
        return payment, 0
    assert excess <= payment.refund_reserved, "more was given back than had cleared"
    refunds, rest = [], excess
    for refund in reversed(payment.refunds):
        part = min(rest, refund.amount - refund.posted - refund.cancelled)
        rest -= part
        refunds.append(_settled(replace(refund, cancelled=refund.cancelled + part)) if part else refund)
    assert rest == 0, "more is reserved than the refunds say"
    return (
        replace(
            payment,
            refunds=tuple(reversed(refunds)),
            refund_reserved=payment.refund_reserved - excess,
        ),
        excess,
    )


def _settled(refund: Refund) -> Refund:
    if refund.posted + refund.cancelled < refund.amount:
        return refund
    return replace(refund, state=RefundState.POSTED if refund.posted else RefundState.CANCELLED)


# -- chargebacks ---------------------------------------------------------------------------------


def open_chargeback(turn: Turn, payment: Payment, command: OpenChargeback) -> Outcome:
    """The cardholder disputes cleared money: it goes back at once, from the merchant."""
    refusal = turn.check(Operation.CHARGE_BACK, payment, command.amount, command.exponent)
    if refusal is not None:
        return refusal
    left = payment.cleared - payment.refunded - payment.charged_back  # 0 while a refund is reserved
    amount = left if command.amount is None else command.amount
    if amount > left or amount == 0:
        return turn.refuse(409, "more than is cleared and left", payment=payment, left=left)
    if len(payment.chargebacks) == PARTS_MAX:
        return turn.refuse(409, f"a payment has at most {PARTS_MAX} chargebacks", payment=payment, left=0)
    n = len(payment.chargebacks) + 1
    chargeback = Chargeback(n=n, amount=amount, at=turn.at, reason_code=command.reason_code)
    after = replace(
        payment,
        chargebacks=(*payment.chargebacks, chargeback),
        charged_back=payment.charged_back + amount,
    )
    turn.keep(Operation.CHARGE_BACK, payment, after)
    turn.tell(
        ChargebackOpened, after, amount, posted_by=-amount, facts={"n": n, "reason_code": command.reason_code}
    )
    return turn.answer(after)


def represent(turn: Turn, payment: Payment, command: RepresentChargeback) -> Outcome:
    """The merchant proves the payment right: the money goes back to it, and may be disputed again."""
    chargeback, refusal = _open_chargeback_of(turn, payment, Operation.REPRESENT, command.n)
    if chargeback is None:
        assert refusal is not None
        return refusal
    after, posts = _post_reserved(
        replace(
            payment,
            chargebacks=_with(payment.chargebacks, replace(chargeback, state=DisputeState.REPRESENTED)),
            charged_back=payment.charged_back - chargeback.amount,
        )
    )
    after, returned = _return_fees(turn, payment, after)
    turn.keep(Operation.REPRESENT, payment, after)
    turn.tell(
        ChargebackRepresented,
        after,
        chargeback.amount,
        posted_by=chargeback.amount - posts,
        facts={"n": command.n, "refund_posted": posts, **returned},
    )
    return turn.answer(after)


def accept(turn: Turn, payment: Payment, command: AcceptChargeback) -> Outcome:
    """The merchant accepts the loss: the money stays with the cardholder."""
    chargeback, refusal = _open_chargeback_of(turn, payment, Operation.ACCEPT, command.n)
    if chargeback is None:
        assert refusal is not None
        return refusal
    after = replace(
        payment,
        chargebacks=_with(payment.chargebacks, replace(chargeback, state=DisputeState.ACCEPTED)),
    )
    turn.keep(Operation.ACCEPT, payment, after)
    turn.tell(ChargebackAccepted, after, chargeback.amount, facts={"n": command.n})
    return turn.answer(after)


def _open_chargeback_of(
    turn: Turn, payment: Payment, operation: Operation, n: int
) -> tuple[Chargeback | None, Outcome | None]:
    refusal = turn.check(operation, payment, None, None)
    if refusal is not None:
        return None, refusal
    if not 1 <= n <= len(payment.chargebacks):
        return None, turn.refuse(409, f"there is no chargeback {n}", payment=payment)
    chargeback = payment.chargebacks[n - 1]
    if chargeback.state is not DisputeState.OPEN:
        reason = f"chargeback {n} is not open: it is {chargeback.state.value}"
        return None, turn.refuse(409, reason, payment=payment)
    return chargeback, None


def _with(parts: tuple[P, ...], part: P) -> tuple[P, ...]:
    """`parts`, numbered from 1, with `part` in its place."""
    return parts[: part.n - 1] + (part,) + parts[part.n :]  # noqa: RUF005 - mypy reads no starred TypeVar
