"""Authorization: every command on a card account, decided in the one order of its partition."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from mini_visa import topics
from mini_visa.domain import response_codes
from mini_visa.domain.account import InvalidCommand, decide, expire_holds
from mini_visa.domain.answers import Answer
from mini_visa.domain.commands import (
    NO_REPLY,
    AccountCommand,
    Command,
    PaymentOutcome,
    Tick,
)
from mini_visa.domain.events import TimePassed
from mini_visa.domain.terms import DAY_MS, DEFAULT_TERMS, HOUR_MS, FeeRate, InvalidFees, Terms, fees_of
from mini_visa.settings import settings
from mini_visa.streams import Context, Impossible
from mini_visa.streams.app import create_app
from mini_visa.streams.poison import Fatal
from tables.accounts import TABLES, AccountRecords

EXPIRED_PER_TICK_MAX: Final = 1_000
"""Holds that one tick ends; the next tick goes on. Commands do not wait for it: they look themselves."""


DECLINES: Final = frozenset(response_codes.TEXTS) - {
    response_codes.APPROVED,
    response_codes.PARTIAL_APPROVAL,
    response_codes.RESPONSE_TOO_LATE,
    response_codes.INVALID_AMOUNT,
}
"""What risk is told of, to count it. It has seen the request itself, and approvals are nearly all."""


def _fees(file: Path | None) -> tuple[FeeRate, ...]:
    """Of the setting `fees_file`. Raises `Fatal` with what is wrong with it."""
    if file is None:
        return DEFAULT_TERMS.fees
    try:
        return fees_of(file.read_bytes())
    except (OSError, InvalidFees) as error:
        raise Fatal(f"MINI_VISA_FEES_FILE: {file} cannot be used: {error}") from None


TERMS: Final = Terms(
    hold_ms=settings().hold_days * DAY_MS,
    hold_travel_ms=settings().hold_days_travel * DAY_MS,
    hold_fuel_ms=round(settings().hold_fuel_s * 1_000),
    request_window_ms=settings().request_window_h * HOUR_MS,
    mirror_refund_fees=settings().refund_fees == "mirrored",
    fees=_fees(settings().fees_file),
)

app = create_app("authorization")


@app.processor(
    source=topics.ACCOUNT_COMMANDS,
    tables=TABLES,
    sinks=[topics.PAYMENT_EVENTS, topics.GATEWAY_REPLIES, topics.CARD_REQUESTS],
    tick=Tick,
    name="decide",
)
def authorization(command: AccountCommand, context: Context) -> None:
    if isinstance(command, Tick):
        pass_time(context)
    else:
        answer(command, context)


def answer(command: Command, context: Context) -> None:
    """Decide the command; tell everyone what came of it, and the one who waits for the answer."""
    key = context.key
    if key != command.account.encode():
        raise Impossible("its key is not its account")
    if command.reply_partition >= context.partitions(topics.GATEWAY_REPLIES):
        raise Impossible("reply_partition is beyond those of gateway.replies")
    try:
        outcome, events, replayed = decide(
            AccountRecords(context.tables), command, context.timestamp, context.offset, TERMS
        )
    except InvalidCommand as error:
        raise Impossible(str(error)) from None
    for event in events:
        context.emit(topics.PAYMENT_EVENTS, event)
    if command.reply_partition > NO_REPLY:
        context.emit(
            topics.GATEWAY_REPLIES,
            Answer(
                attempt=command.attempt,
                outcome=outcome,
                replayed=replayed,
                partition=context.partition,
                position=context.offset,
            ),
            partition=command.reply_partition,
        )
    payment = outcome.payment
    if outcome.response_code in DECLINES and events and payment is not None:
        context.emit(
            topics.CARD_REQUESTS,
            PaymentOutcome(
                account=command.account,
                payment_id=payment.payment_id,
                request_id=command.request_id,
                response_code=outcome.response_code,
                amount=payment.amount,
                merchant_id=payment.merchant.id,
            ),
        )


def pass_time(context: Context) -> None:
    """End holds whose time has come and forget old requests, some of them: then tell that time passed."""
    now, left = context.timestamp, EXPIRED_PER_TICK_MAX
    records = AccountRecords(context.tables)
    for account in records.due_accounts(now, EXPIRED_PER_TICK_MAX):
        events = expire_holds(records, account, now, context.offset, left, TERMS)
        for event in events:
            context.emit(topics.PAYMENT_EVENTS, event, key=account.encode(), partition=context.partition)
        left -= len(events)
        if left <= 0:
            break
    records.forget_requests(now, TERMS.request_window_ms)
    context.emit(
        topics.PAYMENT_EVENTS, TimePassed(at=now, position=context.offset), partition=context.partition
    )
