"""The life of a payment: one table of what may follow what, read by the code, the docs and the tests;
and the statuses that are derived from captures, refunds and chargebacks.
"""

from __future__ import annotations

from collections.abc import Container
from enum import StrEnum
from typing import Final

from msgspec.structs import replace

from mini_visa.domain.payment import (
    CaptureState,
    DisputeState,
    Payment,
    PaymentStatus,
    RefundState,
    held_of,
)

_AUTHORIZED = PaymentStatus.AUTHORIZED
_PARTLY = PaymentStatus.PARTIALLY_AUTHORIZED
_DECLINED = PaymentStatus.DECLINED
_REVERSED = PaymentStatus.REVERSED
_EXPIRED = PaymentStatus.EXPIRED
_PART_CAPTURED = PaymentStatus.PARTIALLY_CAPTURED
_CAPTURED = PaymentStatus.CAPTURED


class Operation(StrEnum):
    """What can happen to a payment."""

    __hash__ = str.__hash__  # As that of PaymentStatus.

    AUTHORIZE = "authorize"
    INCREMENT = "increment"
    CAPTURE = "capture"
    REVERSE = "reverse"
    TIME_OUT = "time_out"
    EXPIRE = "expire"
    CLEAR = "clear"
    REJECT = "reject"
    REFUND = "refund"
    CHARGE_BACK = "charge_back"
    REPRESENT = "represent"
    ACCEPT = "accept"


_AFTER_CAPTURE = (
    Operation.CLEAR,
    Operation.REJECT,
    Operation.REFUND,
    Operation.CHARGE_BACK,
    Operation.REPRESENT,
    Operation.ACCEPT,
)

TRANSITIONS: Final[dict[PaymentStatus | None, dict[Operation, frozenset[PaymentStatus]]]] = {
    None: {
        Operation.AUTHORIZE: frozenset({_AUTHORIZED, _PARTLY, _CAPTURED, _DECLINED, _REVERSED}),
    },
    _AUTHORIZED: {
        Operation.INCREMENT: frozenset({_AUTHORIZED}),
        Operation.CAPTURE: frozenset({_PART_CAPTURED, _CAPTURED}),
        Operation.REVERSE: frozenset({_AUTHORIZED, _REVERSED}),
        Operation.TIME_OUT: frozenset({_REVERSED}),
        Operation.EXPIRE: frozenset({_EXPIRED}),
    },
    _PARTLY: {
        Operation.INCREMENT: frozenset({_PARTLY}),
        Operation.CAPTURE: frozenset({_PART_CAPTURED, _CAPTURED}),
        Operation.REVERSE: frozenset({_PARTLY, _REVERSED}),
        Operation.TIME_OUT: frozenset({_REVERSED}),
        Operation.EXPIRE: frozenset({_EXPIRED}),
    },
    _DECLINED: {
        Operation.TIME_OUT: frozenset({_REVERSED}),
    },
    _REVERSED: {
        Operation.TIME_OUT: frozenset({_REVERSED}),
    },
    _EXPIRED: {
        Operation.CAPTURE: frozenset({_PART_CAPTURED, _CAPTURED}),
        Operation.TIME_OUT: frozenset({_REVERSED}),
    },
    _PART_CAPTURED: {
        Operation.INCREMENT: frozenset({_PART_CAPTURED}),
        Operation.CAPTURE: frozenset({_PART_CAPTURED, _CAPTURED}),
        Operation.REVERSE: frozenset({_PART_CAPTURED, _CAPTURED, _REVERSED}),
        Operation.EXPIRE: frozenset({_PART_CAPTURED}),
        **{operation: frozenset({_PART_CAPTURED}) for operation in _AFTER_CAPTURE},
    },
    _CAPTURED: {
        Operation.TIME_OUT: frozenset({_CAPTURED}),
        **{operation: frozenset({_CAPTURED}) for operation in _AFTER_CAPTURE},
    },
}
"""Status before (None: there is no payment yet) -> operation -> statuses after. An operation that is not
there is refused with 409 and the state. One that is may still be refused for its amount."""


def allows(status: PaymentStatus, operation: Operation) -> bool:
    return operation in TRANSITIONS[status]


def clearing_status(payment: Payment) -> CaptureState | None:
    """Of the least advanced capture that stands; `rejected` when none does; None before a capture."""
    states = {capture.state for capture in payment.captures}
    for state in (
        CaptureState.SUBMITTED,
        CaptureState.CLEARED,
        CaptureState.SETTLED,
        CaptureState.REJECTED,
        CaptureState.COMPENSATED,
    ):
        if state in states:
            return state
    return None


def as_shown(payment: Payment, settled: Container[int] = ()) -> Payment:
    """The payment as a reader sees it, who knows more than its account does: a cleared capture is `settled`
    when the cycle it is in has been closed (`settled`: their numbers), and a rejected one `compensated` when
    nothing that has to be undone because of it is left."""
    undone = payment.captured > 0 or held_of(payment) == 0
    captures = tuple(
        replace(capture, state=CaptureState.SETTLED)
        if capture.state is CaptureState.CLEARED and capture.n in settled
        else replace(capture, state=CaptureState.COMPENSATED)
        if capture.state is CaptureState.REJECTED and undone
        else capture
        for capture in payment.captures
    )
    return payment if captures == payment.captures else replace(payment, captures=captures)


def refund_status(payment: Payment) -> RefundState | None:
    """`reserved` while any refund waits for clearing, else `posted` when one is, else `cancelled`."""
    states = {refund.state for refund in payment.refunds}
    for state in (RefundState.RESERVED, RefundState.POSTED, RefundState.CANCELLED):
        if state in states:
            return state
    return None


def dispute_status(payment: Payment) -> DisputeState | None:
    """`open` while any chargeback is, else that of the latest one; None when there is none."""
    if any(chargeback.state is DisputeState.OPEN for chargeback in payment.chargebacks):
        return DisputeState.OPEN
    return payment.chargebacks[-1].state if payment.chargebacks else None
