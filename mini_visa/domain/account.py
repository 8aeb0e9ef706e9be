"""The account aggregate: every command on a card account is decided here, in one place and one order.

Pure: what is remembered comes and goes through `Records`, time and position with the command. The same
log gives the same events, answers and rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from msgspec.structs import replace

from mini_visa.domain import authorizing, capturing
from mini_visa.domain import response_codes as code
from mini_visa.domain.answers import Outcome
from mini_visa.domain.commands import (
    AcceptChargeback,
    Authorize,
    CapturePayment,
    ChangeAccount,
    Command,
    Increment,
    OpenAccount,
    OpenChargeback,
    PayAccount,
    RecordClearing,
    RefundPayment,
    RepresentChargeback,
    ReversePayment,
    TimeOutReversal,
)
from mini_visa.domain.events import (
    AccountChanged,
    AccountOpened,
    AccountPaid,
    PaymentFact,
    RequestCancelled,
)
from mini_visa.domain.ids import InvalidId, check_account_id
from mini_visa.domain.money import EXPONENTS
from mini_visa.domain.payment import Account, Payment
from mini_visa.domain.records import ATTEMPTS_MAX, Records, StoredRequest
from mini_visa.domain.terms import DEFAULT_TERMS, Terms
from mini_visa.domain.turn import Turn


class InvalidCommand(ValueError):
    """A command that no client could have sent through the gateway: garbage put on the topic."""


class Decision(NamedTuple):
    """All that one command does."""

    outcome: Outcome
    events: Sequence[PaymentFact]
    replayed: bool = False
    """The stored answer to a request that was answered before: there are no events."""


def decide(
    records: Records, command: Command, at: int, position: int, terms: Terms = DEFAULT_TERMS
) -> Decision:
    """Decide `command`, the record at offset `position` of its partition, at event time `at` (ms).

    Exactly one outcome, and at least one event unless it is a replay. What changed is in `records`.
    Raises `InvalidCommand` before anything is stored.
    """
    kind = type(command)
    _check(command, kind)
    if kind is TimeOutReversal:
        return _time_out(records, command, at, position, terms)  # type: ignore[arg-type]
    request_id, client = command.request_id, command.client
    row = records.request(command.account, client, request_id, at, terms.request_window_ms)
    if row is not None:
        if (row.fingerprint != command.fingerprint or row.operation != _NAMES[kind]) and not (
            row.outcome is None and not row.fingerprint and kind is Authorize
        ):
            return _conflict(records, command, at, position)
        if row.outcome is not None:
            return _replay(records, command, row)
    account = records.account(command.account)
    if account is None:
        _check_account_id(command.account)
    turn = Turn(records, account, at, position, terms, client, request_id)
    turn.expire_due()
    operation = _OPERATIONS[kind] if row is None else authorizing.cancelled
    outcome = operation(turn, command)  # type: ignore[arg-type]
    turn.finish()
    records.put_request(
        command.account,
        client,
        request_id,
        StoredRequest(
            at=at,
            operation=_NAMES[kind],
            fingerprint=command.fingerprint,
            outcome=outcome,
            answered=(command.attempt,) if kind is Authorize else (),
            given_up=() if row is None else row.given_up,
        ),
    )
    return Decision(outcome, turn.events)


def expire_holds(
    records: Records, account: str, at: int, position: int, limit: int, terms: Terms = DEFAULT_TERMS
) -> Sequence[PaymentFact]:
    """What a tick does to one account: ends at most `limit` holds that are due at `at`."""
    turn = Turn(records, records.account(account), at, position, terms)
    turn.expire_due(limit)
    turn.finish()
    return turn.events


# -- what no client can send -----------------------------------------------------------------------


def _check(command: Command, kind: type[Command]) -> None:
    """What the bounds of the message types leave open."""
    if kind not in _NAMES:
        raise InvalidCommand(f"{kind.__name__} is not a command on an account")
    request_id, client = command.request_id, command.client
    if not request_id or "/" in request_id or not client or "/" in client:
        raise InvalidCommand("request_id and client must be names without a slash")
    currency = getattr(command, "currency", None)
    if currency is not None and currency not in EXPONENTS:
        raise InvalidCommand("currency is not an active ISO 4217 currency code")
    if (getattr(command, "amount", None) or 0) < 0:
        raise InvalidCommand("amount must not be negative")


def _check_account_id(account: str) -> None:
    """An account that is there was checked when it was opened."""
    try:
        check_account_id(account)
    except InvalidId as error:
        raise InvalidCommand(f"account {error}") from None


# -- idempotency -----------------------------------------------------------------------------------


def _replay(records: Records, command: Command, row: StoredRequest) -> Decision:
    """The stored first answer, and a note that this attempt got it too."""
    assert row.outcome is not None
    attempt = command.attempt
    if type(command) is Authorize and attempt not in row.answered and attempt not in row.given_up:
        records.put_request(
            command.account,
            command.client,
            command.request_id,
            replace(row, answered=_one_more(row.answered, attempt)),
        )
    return Decision(row.outcome, (), replayed=True)


def _one_more(attempts: tuple[str, ...], attempt: str) -> tuple[str, ...]:
    """With `attempt`. The first of all stays, however many come: it likeliest had its answer in time."""
    return (*attempts, attempt) if len(attempts) < ATTEMPTS_MAX else (attempts[0], *attempts[2:], attempt)


def _conflict(records: Records, command: Command, at: int, position: int) -> Decision:
    """422, and the first request's answer stays stored."""
    turn = Turn(records, None, at, position, DEFAULT_TERMS, command.client, command.request_id)
    outcome = turn.refuse(
        422,
        "this request_id was used for another request: use a new one",
        account_id=command.account,
        payment_id=getattr(command, "payment_id", ""),
    )
    return Decision(outcome, turn.events)


def _time_out(records: Records, command: TimeOutReversal, at: int, position: int, terms: Terms) -> Decision:
    """A gateway gave up waiting for an attempt at an authorization.

    The hold goes, and the stored answer becomes `reversed`, 68, unless another attempt got that answer
    and still stands by it: then somebody may have shipped the goods. A reversal that comes first cancels
    the request, whichever attempt brings it.
    """
    account, client, request_id, attempt = (
        command.account, command.client, command.request_id, command.attempt,
    )  # fmt: skip
    row = records.request(account, client, request_id, at, terms.request_window_ms)
    if row is not None:
        if row.operation != _NAMES[Authorize] or (row.fingerprint and row.fingerprint != command.fingerprint):
            return _conflict(records, command, at, position)
        if attempt in row.given_up:
            outcome = row.outcome or _cancelled_outcome(request_id, code.RESPONSE_TOO_LATE)
            return Decision(outcome, (), replayed=True)
    known = records.account(account)
    if known is None:
        _check_account_id(account)
    turn = Turn(records, known, at, position, terms, client, request_id)
    turn.expire_due()
    if row is None:
        row = StoredRequest(
            at=at, operation=_NAMES[Authorize], fingerprint=command.fingerprint, given_up=(attempt,)
        )
        outcome = _cancel(turn, account, request_id, code.RESPONSE_TOO_LATE)
    else:
        standing = tuple(other for other in row.answered if other != attempt)
        row = replace(row, answered=standing, given_up=_one_more(row.given_up, attempt))
        stored = row.outcome
        if stored is None:
            outcome = _cancel(turn, account, request_id, code.RESPONSE_TOO_LATE)
        elif stored.response_code == code.RESPONSE_TOO_LATE:
            outcome = stored
            turn.refuse(409, "it was reversed before", payment=stored.payment, account_id=account)
        elif standing:
            outcome = turn.refuse(
                409, "another attempt was answered: the payment stands", payment=stored.payment
            )
        elif stored.payment is None:
            outcome = turn.refuse(
                409, "the request was refused: there is nothing to reverse", account_id=account
            )
        else:
            payment = records.payment(stored.payment.payment_id)
            assert payment is not None, f"a request without its payment: {stored.payment.payment_id}"
            undone = authorizing.time_out(turn, payment, sale=bool(stored.payment.captures))
            if undone is None:
                outcome = turn.refuse(409, "the payment was captured since: it stands", payment=payment)
            else:
                outcome = undone
                row = replace(row, outcome=undone)
    turn.finish()
    records.put_request(account, client, request_id, row)
    return Decision(outcome, turn.events)


def _cancel(turn: Turn, account: str, original_request_id: str, response_code: str) -> Outcome:
    turn.events.append(
        RequestCancelled(
            at=turn.at,
            position=turn.position,
            account_id=account,
            client=turn.client,
            original_request_id=original_request_id,
            request_id=turn.request_id,
        )
    )
    return _cancelled_outcome(turn.request_id, response_code)


def _cancelled_outcome(request_id: str, response_code: str) -> Outcome:
    return Outcome(status=200, request_id=request_id, response_code=response_code)


# -- the account itself ----------------------------------------------------------------------------


def _open(turn: Turn, command: OpenAccount) -> Outcome:
    if turn.account is not None:
        return turn.refuse(409, "the card has an account already", account_id=command.account)
    account = Account(
        account_id=command.account,
        bin=command.bin,
        last4=command.last4,
        currency=command.currency,
        limit=command.limit,
        status=command.status,
        expiry=command.expiry,
        posted=command.posted,
        opened_at=turn.at,
        client=command.client,
        version=1,
    )
    turn.account = account
    turn.events.append(AccountOpened(**_about(turn, account)))
    return _account_answer(turn, account)


def _change(turn: Turn, command: ChangeAccount) -> Outcome:
    before = turn.account
    if before is None or (command.own and before.client != command.client):
        return _no_account(turn, command)
    if command.limit is not None and (refused := turn.check_decimals(before, command.currency, "limit")):
        return refused
    account = replace(
        before,
        limit=before.limit if command.limit is None else command.limit,
        status=before.status if command.status is None else command.status,
        version=before.version + 1,
    )
    turn.account = account
    turn.events.append(AccountChanged(**_about(turn, account)))
    return _account_answer(turn, account)


def _pay(turn: Turn, command: PayAccount) -> Outcome:
    before = turn.account
    if before is None or (command.own and before.client != command.client):
        return _no_account(turn, command)
    if refused := turn.check_decimals(before, command.currency):
        return refused
    if command.amount == 0:
        return turn.refuse(400, "amount must be more than zero", response_code=code.INVALID_AMOUNT)
    account = replace(before, posted=before.posted - command.amount, version=before.version + 1)
    turn.account = account
    turn.events.append(AccountPaid(**_about(turn, account), amount=command.amount))
    return _account_answer(turn, account)


def _about(turn: Turn, account: Account) -> dict[str, Any]:
    return {
        "at": turn.at,
        "seq": account.version,
        "position": turn.position,
        "account": account,
        "client": turn.client,
        "request_id": turn.request_id,
    }


def _account_answer(turn: Turn, account: Account) -> Outcome:
    return Outcome(status=200, request_id=turn.request_id, response_code=code.APPROVED, account=account)


def _no_account(turn: Turn, command: Command) -> Outcome:
    return turn.refuse(404, "there is no such account", account_id=command.account)


# -- commands on a payment -------------------------------------------------------------------------

_OnPayment = Callable[[Turn, Payment, Any], Outcome]


def _on_payment(operation: _OnPayment) -> Callable[[Turn, Any], Outcome]:
    """`operation` on the payment that the command names; 404 when there is none."""

    def find(turn: Turn, command: Any) -> Outcome:
        payment = turn.records.payment(command.payment_id)
        foreign = command.own and payment is not None and payment.client != command.client
        if payment is None or payment.account != command.account or foreign:
            return turn.refuse(
                404, "there is no such payment", account_id=command.account, payment_id=command.payment_id
            )
        if turn.account is None:
            return turn.refuse(
                409, "the card had no account: the payment was declined", payment=payment, left=0
            )
        return operation(turn, payment, command)

    return find


_reverse_payment = _on_payment(authorizing.reverse)


def _reverse(turn: Turn, command: ReversePayment) -> Outcome:
    """By payment id, or by the request id of an authorization, which may not have come yet."""
    original = command.original_request_id
    if not original:
        return _reverse_payment(turn, command)
    row = turn.records.request(
        command.account, command.client, original, turn.at, turn.terms.request_window_ms
    )
    if row is None:
        turn.records.put_request(
            command.account,
            command.client,
            original,
            StoredRequest(at=turn.at, operation=_NAMES[Authorize]),
        )
        return _cancel(turn, command.account, original, code.APPROVED)
    if row.operation != _NAMES[Authorize]:
        return turn.refuse(
            409, "original_request_id is not that of an authorization", account_id=command.account
        )
    if row.outcome is None:
        return _cancel(turn, command.account, original, code.APPROVED)
    if row.outcome.payment is None:
        return turn.refuse(
            409, "the original was refused: there is nothing to reverse", account_id=command.account
        )
    return _reverse_payment(turn, replace(command, payment_id=row.outcome.payment.payment_id))


_OPERATIONS: Final[dict[type[Command], Callable[[Turn, Any], Outcome]]] = {
    Authorize: authorizing.authorize,
    CapturePayment: _on_payment(capturing.capture),
    Increment: _on_payment(authorizing.increment),
    ReversePayment: _reverse,
    RefundPayment: _on_payment(capturing.refund),
    RecordClearing: _on_payment(capturing.record_clearing),
    OpenChargeback: _on_payment(capturing.open_chargeback),
    RepresentChargeback: _on_payment(capturing.represent),
    AcceptChargeback: _on_payment(capturing.accept),
    OpenAccount: _open,
    ChangeAccount: _change,
    PayAccount: _pay,
}

_NAMES: Final[dict[type[Command], str]] = {
    kind: str(kind.__struct_config__.tag).partition("/")[0]
    for kind in (
        Authorize,
        Increment,
        CapturePayment,
        ReversePayment,
        TimeOutReversal,
        RefundPayment,
        OpenChargeback,
        RepresentChargeback,
        AcceptChargeback,
        RecordClearing,
        OpenAccount,
        ChangeAccount,
        PayAccount,
    )
}
"""What a stored request remembers of the command: its tag without the version."""
