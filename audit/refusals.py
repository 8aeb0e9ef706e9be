"""Why a command is refused, from docs/domain.md: with which status, or not at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from audit.accounts import Account, Command, Payment, name_of
from audit.rules import NEXT, PARTS_MAX, decimals_of, tolerance

INVALID: Final = 400
MISSING: Final = 404
FORBIDDEN: Final = 409
DONE: Final = 0

MAKES: Final = {
    "increment": "payment_incremented", "capture": "payment_captured", "reverse": "payment_reversed",
    "refund": "payment_refunded", "open_chargeback": "chargeback_opened",
    "represent_chargeback": "chargeback_represented", "accept_chargeback": "chargeback_accepted",
    "record_clearing": "capture_cleared",
}  # fmt: skip
"""Command on a payment -> an event that it makes where it is not refused."""


def refusal_of(command: Command, payment: Payment | None, account: Account | None) -> int:
    """The status with which a command is refused that comes when its payment and account are as they are
    here; DONE: it is not."""
    kind = name_of(command)
    if kind == "authorize":
        return DONE if command.get("currency_given") else _misread(command, account)
    if kind == "open_account":
        return DONE if account is None else FORBIDDEN
    if kind in ("change_account", "pay_account"):
        return _of_account(command, account)
    return _of_payment(command, payment, account, kind)


def _misread(command: Command, account: Account | None) -> int:
    """An amount was read with the decimals of another currency."""
    read_in = command.get("currency")
    if account is None or read_in is None or decimals_of(read_in) == decimals_of(account.currency):
        return DONE
    return INVALID


def _is_foreign(command: Command, client: str) -> bool:
    """What others have made is not there for a key that is for its own client's only."""
    return bool(command.get("own")) and command.get("client", "local") != client


def _of_account(command: Command, account: Account | None) -> int:
    if account is None or _is_foreign(command, account.shown.get("client", "")):
        return MISSING
    if "limit" in command or "amount" in command:
        return INVALID if command.get("amount") == 0 else _misread(command, account)
    return DONE


def _of_payment(command: Command, payment: Payment | None, account: Account | None, kind: str) -> int:
    if payment is None or payment.account != command["account"] or _is_foreign(command, payment.client):
        return MISSING
    if account is None:
        return FORBIDDEN  # the card had none: the payment was declined
    if "amount" in command:
        decimals = decimals_of(payment.currency)
        if command["amount"] == 0 or command.get("exponent", decimals) != decimals:
            return INVALID
    if (payment.status, MAKES[kind]) not in NEXT or _FORBIDS[kind](command, payment):
        return FORBIDDEN
    return DONE


def _is_too_much(command: Command, whole: int, left: int) -> bool:
    """`whole` is what a command without an amount asks for."""
    return not 0 < command.get("amount", whole) <= left


def _no_capture(command: Command, payment: Payment) -> bool:
    if (payment.ended and not payment.expired) or len(payment.captures) == PARTS_MAX:
        return True
    whole = payment.authorized - payment.reversed
    due = whole - payment.captured if payment.expired else payment.held
    return _is_too_much(command, due, due + tolerance(payment.mcc, whole))


def _no_increment(command: Command, payment: Payment) -> bool:
    return not payment.held


def _no_reversal(command: Command, payment: Payment) -> bool:
    return _is_too_much(command, payment.held, payment.held)


def _no_refund(command: Command, payment: Payment) -> bool:
    left = payment.refundable
    return _is_too_much(command, left, left) or len(payment.refunds) == PARTS_MAX


def _no_chargeback(command: Command, payment: Payment) -> bool:
    left = payment.cleared - payment.refunded - payment.charged_back
    return _is_too_much(command, left, left) or len(payment.chargebacks) == PARTS_MAX


def _no_dispute(command: Command, payment: Payment) -> bool:
    n = command["n"]
    return not (0 < n <= len(payment.chargebacks) and payment.chargebacks[n - 1].state == "open")


def _no_outcome(command: Command, payment: Payment) -> bool:
    n = command["n"]
    return not (0 < n <= len(payment.captures) and payment.captures[n - 1].state == "submitted")


_FORBIDS: Final[dict[str, Callable[[Command, Payment], bool]]] = {
    "increment": _no_increment,
    "capture": _no_capture,
    "reverse": _no_reversal,
    "refund": _no_refund,
    "open_chargeback": _no_chargeback,
    "represent_chargeback": _no_dispute,
    "accept_chargeback": _no_dispute,
    "record_clearing": _no_outcome,
}
