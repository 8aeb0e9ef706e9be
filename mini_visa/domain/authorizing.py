"""Authorizing: holds placed, increased and released. What an issuer's authorization host decides."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache
from typing import Final

from msgspec.structs import replace

from mini_visa.domain import response_codes as code
from mini_visa.domain.answers import Outcome
from mini_visa.domain.capturing import capture_at_once, left_to_refund, refund_rest
from mini_visa.domain.commands import Authorize, Increment, ReversePayment
from mini_visa.domain.events import (
    PaymentAuthorized,
    PaymentDeclined,
    PaymentIncremented,
    PaymentReversed,
    PaymentUnknownCard,
)
from mini_visa.domain.ids import authorization_code, payment_id
from mini_visa.domain.lifecycle import Operation, allows
from mini_visa.domain.payment import (
    NO_TIME,
    Account,
    AccountStatus,
    Payment,
    PaymentStatus,
    Verdict,
    held_of,
)
from mini_visa.domain.terms import DAY_MS
from mini_visa.domain.turn import Turn

_NO_OPINION: Final = Verdict()

# Members of an enum are looked up in Python code, once a use; a name of the module is not.
_ACTIVE: Final = AccountStatus.ACTIVE
_AUTHORIZED: Final = PaymentStatus.AUTHORIZED
_PARTLY: Final = PaymentStatus.PARTIALLY_AUTHORIZED
_AUTHORIZE: Final = Operation.AUTHORIZE

_STATUS_DECLINES: Final[dict[AccountStatus, str]] = {
    AccountStatus.CLOSED: code.INVALID_CARD,
    AccountStatus.LOST: code.LOST_CARD,
    AccountStatus.STOLEN: code.STOLEN_CARD,
    AccountStatus.BLOCKED: code.RESTRICTED_CARD,
}


@lru_cache(maxsize=64)
def _month_of_day(day: int) -> str:
    return datetime.fromtimestamp(day * 86_400, UTC).strftime("%Y-%m")


def month_of(at: int) -> str:
    """ "YYYY-MM" of event time `at` (ms), UTC."""
    return _month_of_day(at // DAY_MS)


def _decline_of(account: Account, command: Authorize, at: int) -> str:
    """The response code that declines `command` before money is looked at; "" when none does. The order
    is part of the contract."""
    if account.status is not _ACTIVE:
        return _STATUS_DECLINES[account.status]
    if account.expiry or command.expiry:
        month = month_of(at)
        if (account.expiry and account.expiry < month) or (command.expiry and command.expiry < month):
            return code.EXPIRED_CARD
        if account.expiry and command.expiry and account.expiry != command.expiry:
            return code.EXPIRED_CARD
    if command.currency_given and command.currency != account.currency:
        return code.NOT_PERMITTED
    if command.cvv_match is False:
        return code.DO_NOT_HONOR
    if command.verdict is not None:
        return command.verdict.response_code
    return ""


def authorize(turn: Turn, command: Authorize) -> Outcome:
    """Place a hold, for all of the amount or (asked for, code 10) for what is available; or decline. With
    `capture` that is captured at once and never on hold: one event. Every request leaves a payment, also when
    it is declined."""
    account = turn.account
    if account is None:
        return _decline_unknown_card(turn, command)
    if not command.currency_given and (refused := turn.check_decimals(account, command.currency)):
        return refused
    response_code = _decline_of(account, command, turn.at)
    approved = command.amount
    if command.advice_until and command.currency == account.currency:
        response_code = code.APPROVED
    elif not response_code:
        available = account.limit - account.posted - account.held
        if approved <= available or approved == 0:
            response_code = code.APPROVED
        elif command.partial_approval and available > 0:
            approved, response_code = available, code.PARTIAL_APPROVAL
        else:
            response_code = code.INSUFFICIENT_FUNDS

    new_id = payment_id(account.account_id, turn.position)
    currency = command.currency if command.currency_given else account.currency
    if response_code not in (code.APPROVED, code.PARTIAL_APPROVAL):
        payment = _payment_of(command, new_id, currency, PaymentStatus.DECLINED, response_code, turn.at)
        turn.keep(_AUTHORIZE, None, payment)
        turn.tell(PaymentDeclined, payment, 0, response_code=response_code)
        return turn.answer(payment, response_code)

    # Fifteen arguments: from the sixteenth on, Python passes them as a dict, at four times the cost.
    payment = Payment(
        payment_id=new_id,
        account=account.account_id,
        client=command.client,
        request_id=command.request_id,
        card=command.card,
        currency=currency,
        amount=command.amount,
        status=_AUTHORIZED if response_code == code.APPROVED else _PARTLY,
        response_code=response_code,
        created_at=turn.at,
        authorized=approved,
        authorization_code=authorization_code(new_id),
        expires_at=_expiry_of(turn, command) if approved else NO_TIME,
        merchant=command.merchant,
        verdict=command.verdict or _NO_OPINION,
    )
    if command.metadata or not approved:
        payment = replace(payment, metadata=command.metadata, hold_ended=not approved)
    if command.capture and approved:
        payment = capture_at_once(turn, payment, response_code)
        turn.keep(_AUTHORIZE, None, payment)
    else:
        turn.keep(_AUTHORIZE, None, payment)
        turn.tell(PaymentAuthorized, payment, approved, held_by=approved, response_code=response_code)
    return turn.answer(payment, response_code)


def _expiry_of(turn: Turn, command: Authorize) -> int:
    return command.advice_until or turn.at + turn.terms.hold_ms_of(command.merchant)


def cancelled(turn: Turn, command: Authorize) -> Outcome:
    """The request comes after its reversal: a payment that was reversed before it began."""
    account = turn.account
    currency = command.currency if account is None or command.currency_given else account.currency
    new_id = payment_id(command.account, turn.position)
    payment = _payment_of(command, new_id, currency, PaymentStatus.REVERSED, code.RESPONSE_TOO_LATE, turn.at)
    turn.keep(_AUTHORIZE, None, payment)
    _tell_reversed(turn, payment, 0, code.RESPONSE_TOO_LATE)
    return turn.answer(payment, code.RESPONSE_TOO_LATE)


def increment(turn: Turn, payment: Payment, command: Increment) -> Outcome:
    """Raise an open hold, or decline and leave it as it is. Mapped to codes like an authorization."""
    account = turn.account
    assert account is not None
    refusal = turn.check(Operation.INCREMENT, payment, command.amount, command.exponent)
    if refusal is not None:
        return refusal
    if not held_of(payment):
        return turn.refuse(
            409, f"the hold has ended: the payment is {payment.status.value}", payment=payment, left=0
        )
    if account.status is not _ACTIVE:
        response_code = _STATUS_DECLINES[account.status]
    elif account.expiry and account.expiry < month_of(turn.at):
        response_code = code.EXPIRED_CARD
    elif command.verdict is not None and command.verdict.response_code:
        response_code = command.verdict.response_code
    elif command.amount > account.available:
        response_code = code.INSUFFICIENT_FUNDS
    else:
        response_code = code.APPROVED
    if response_code != code.APPROVED:
        turn.tell(PaymentIncremented, payment, 0, response_code=response_code)
        return turn.answer(payment, response_code)
    after = replace(payment, authorized=payment.authorized + command.amount)
    turn.keep(Operation.INCREMENT, payment, after)
    turn.tell(PaymentIncremented, after, command.amount, held_by=command.amount)
    return turn.answer(after)


def reverse(turn: Turn, payment: Payment, command: ReversePayment) -> Outcome:
    """Release what is held, or the part asked for."""
    refusal = turn.check(Operation.REVERSE, payment, command.amount, command.exponent)
    if refusal is not None:
        return refusal
    held = held_of(payment)
    amount = held if command.amount is None else command.amount
    if not held:
        return turn.refuse(
            409, f"nothing is held: the payment is {payment.status.value}", payment=payment, left=0
        )
    if amount > held:
        return turn.refuse(409, "more than is held", payment=payment, left=held)
    after = _released(payment, amount, held)
    turn.keep(Operation.REVERSE, payment, after)
    turn.tell(PaymentReversed, after, amount, held_by=-amount)
    return turn.answer(after)


def _released(payment: Payment, amount: int, held: int) -> Payment:
    if amount < held:
        status = payment.status
    elif payment.captured:
        status = PaymentStatus.CAPTURED
    else:
        status = PaymentStatus.REVERSED
    return replace(
        payment,
        status=status,
        released=payment.released + amount,
        reversed=payment.reversed + amount,
        hold_ended=amount == held,
    )


def time_out(turn: Turn, payment: Payment, *, sale: bool) -> Outcome | None:
    """Undo an authorization whose answer nobody got: the stored answer becomes `reversed`, 68. A sale
    (`sale`: captured in one) cannot be taken back from clearing: it is refunded in full.

    None when it was captured by a command of its own, whose sender must have had the answer.
    """
    if payment.captures:
        if not sale:
            return None
        after = replace(payment, response_code=code.RESPONSE_TOO_LATE)
        if left_to_refund(payment):
            after = refund_rest(turn, after, code.RESPONSE_TOO_LATE)
        else:
            turn.keep(Operation.TIME_OUT, payment, after)
            turn.tell(PaymentReversed, after, 0, response_code=code.RESPONSE_TOO_LATE)
        return turn.answer(after, code.RESPONSE_TOO_LATE)
    if not allows(payment.status, Operation.TIME_OUT):
        return None
    held = held_of(payment)
    after = replace(
        payment,
        status=PaymentStatus.REVERSED,
        response_code=code.RESPONSE_TOO_LATE,
        released=payment.released + held,
        reversed=payment.reversed + held,
        hold_ended=True,
    )
    turn.keep(Operation.TIME_OUT, payment, after)
    _tell_reversed(turn, after, held, code.RESPONSE_TOO_LATE)
    return turn.answer(after, code.RESPONSE_TOO_LATE)


def _decline_unknown_card(turn: Turn, command: Authorize) -> Outcome:
    new_id = payment_id(command.account, turn.position)
    payment = _payment_of(
        command, new_id, command.currency, PaymentStatus.DECLINED, code.INVALID_CARD, turn.at
    )
    turn.keep(_AUTHORIZE, None, payment)
    _tell_unknown_card(turn, payment)
    return turn.answer(payment, code.INVALID_CARD)


def _tell_reversed(turn: Turn, payment: Payment, amount: int, response_code: str) -> None:
    if turn.account is None:
        _tell_unknown_card(turn, payment)
    else:
        turn.tell(PaymentReversed, payment, amount, held_by=-amount, response_code=response_code)


def _tell_unknown_card(turn: Turn, payment: Payment) -> None:
    turn.events.append(
        PaymentUnknownCard(
            at=turn.at,
            position=turn.position,
            payment=payment,
            client=turn.client,
            request_id=turn.request_id,
        )
    )


def _payment_of(
    command: Authorize, new_id: str, currency: str, status: PaymentStatus, response_code: str, at: int
) -> Payment:
    """A payment that holds nothing and never will."""
    return Payment(
        payment_id=new_id,
        account=command.account,
        client=command.client,
        request_id=command.request_id,
        card=command.card,
        currency=currency,
        amount=command.amount,
        status=status,
        response_code=response_code,
        created_at=at,
        hold_ended=True,
        merchant=command.merchant,
        metadata=command.metadata,
        verdict=command.verdict or _NO_OPINION,
    )
