from pathlib import Path

import pytest

from mini_visa.domain.commands import CapturePayment, RecordClearing
from mini_visa.domain.lifecycle import TRANSITIONS, Operation, allows
from mini_visa.domain.payment import Payment, PaymentStatus
from mini_visa.domain.testing import Host

DAY_S = 86_400
DOCS = Path(__file__).parents[3] / "docs" / "domain.md"


def in_status(host: Host, status: PaymentStatus) -> Payment:
    """A payment in that status, with nothing cleared."""
    match status:
        case PaymentStatus.DECLINED:
            return host.authorize("5000.00").outcome.payment
        case PaymentStatus.PARTIALLY_AUTHORIZED:
            return host.authorize("1500.00", partial_approval=True).outcome.payment
    payment = host.authorize("100.00", request_id="r", attempt="a1").outcome.payment
    match status:
        case PaymentStatus.AUTHORIZED:
            pass
        case PaymentStatus.REVERSED:
            host.reverse(payment)
        case PaymentStatus.EXPIRED:
            host.pass_time(7 * DAY_S)
            host.tick()
        case PaymentStatus.PARTIALLY_CAPTURED:
            host.capture(payment, "40.00", final=False)
        case PaymentStatus.CAPTURED:
            host.capture(payment)
    assert host.payment(payment).status is status
    return payment


def attempt(host: Host, operation: Operation, payment: Payment) -> int:
    """Tries the operation; returns the status it is answered with."""
    who = {"account": host.account_id, "request_id": f"x{host.position}", "payment_id": payment.payment_id}
    match operation:
        case Operation.INCREMENT:
            return host.increment(payment, "0.01").outcome.status
        case Operation.CAPTURE:
            return host.send(CapturePayment(**who, amount=100, exponent=2)).outcome.status
        case Operation.REVERSE:
            return host.reverse(payment).outcome.status
        case Operation.CLEAR | Operation.REJECT:
            return host.send(RecordClearing(**who, n=1, accepted=operation is Operation.CLEAR)).outcome.status
        case Operation.REFUND:
            return host.refund(payment, "0.01").outcome.status
        case Operation.CHARGE_BACK:
            host.clear(payment)
            return host.charge_back(payment, "0.01").outcome.status
    raise AssertionError(operation)


TRIED = [Operation.INCREMENT, Operation.CAPTURE, Operation.REVERSE, Operation.CLEAR, Operation.REJECT,
         Operation.REFUND, Operation.CHARGE_BACK]  # fmt: skip


@pytest.mark.parametrize("status", list(PaymentStatus))
@pytest.mark.parametrize("operation", TRIED)
def test_a_payment_takes_exactly_the_operations_of_the_table(
    status: PaymentStatus, operation: Operation
) -> None:
    host = Host(limit="1000.00")
    payment = in_status(host, status)
    if status is PaymentStatus.PARTIALLY_AUTHORIZED:
        host.change(limit="5000.00")  # or an increment would be declined for want of money
    answered = attempt(host, operation, payment)
    allowed = allows(status, operation)
    assert answered == (200 if allowed else 409)
    assert not allowed or host.payment(payment).status in TRANSITIONS[status][operation]


def test_every_status_can_be_reached_and_every_operation_happens() -> None:
    reached = {after for row in TRANSITIONS.values() for statuses in row.values() for after in statuses}
    assert reached == set(PaymentStatus) and set(TRANSITIONS) == {None, *PaymentStatus}
    assert {operation for row in TRANSITIONS.values() for operation in row} == set(Operation)


def table() -> str:
    """The table as docs/domain.md has it."""
    lines = ["| status | operation | status after |", "|---|---|---|"]
    for status, row in TRANSITIONS.items():
        for operation, after in row.items():
            statuses = ", ".join(one.value for one in PaymentStatus if one in after)
            lines.append(f"| {status.value if status else '(none)'} | {operation.value} | {statuses} |")
    return "\n".join(lines)


def test_the_docs_have_the_table_that_the_code_has() -> None:
    assert table() in DOCS.read_text(), f"put this table into {DOCS.name}:\n\n{table()}"
