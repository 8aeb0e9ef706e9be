"""Reversal: a capture that fails to clear is undone, and one that nobody answers is called back."""

from __future__ import annotations

from typing import Final

from mini_visa import topics
from mini_visa.domain.commands import ReversePayment
from mini_visa.domain.events import PaymentEvent, PaymentFact, TimePassed
from mini_visa.domain.ids import account_of
from mini_visa.domain.saga import Progress, Saga, SagaTerms, follow, pass_deadline
from mini_visa.settings import settings
from mini_visa.streams import Context
from mini_visa.streams.app import create_app
from tables.sagas import DEADLINES, SAGAS, keep
from tables.schedule import Schedule

TERMS: Final = SagaTerms(
    clearing_deadline_ms=round(settings().clearing_deadline_s * 1_000),
    retry_ms=round(settings().compensation_retry_s * 1_000),
)
PER_TICK_MAX: Final = 1_000
"""Sagas past their deadline that one tick looks at; the next tick goes on."""

app = create_app("reversal")


@app.processor(
    source=topics.PAYMENT_EVENTS,
    tables=[SAGAS, DEADLINES],
    sinks=[topics.ACCOUNT_COMMANDS, topics.CLEARING_SUBMISSIONS, topics.PAYMENT_SAGAS],
    rest_s=settings().rest_s,
)
def compensate(event: PaymentFact, context: Context) -> None:
    sagas = context.table(SAGAS)
    if isinstance(event, PaymentEvent):
        payment_id = event.payment.payment_id
        saga: Saga | None = sagas.get(payment_id) if event.payment.captures else None
        act(payment_id, saga, follow(saga, event, context.timestamp, TERMS), context)
    elif isinstance(event, TimePassed):
        for payment_id in Schedule(context.table(DEADLINES)).take(context.timestamp, PER_TICK_MAX):
            saga = sagas[payment_id]
            step = pass_deadline(payment_id, account_of(payment_id), saga, context.timestamp, TERMS)
            act(payment_id, saga, step, context)


def act(payment_id: str, former: Saga | None, progress: Progress, context: Context) -> None:
    """Store where the saga is now, and send what it asks for."""
    keep(context.table(SAGAS), Schedule(context.table(DEADLINES)), payment_id, former, progress.saga)
    account = account_of(payment_id).encode()
    for told in progress.events:
        context.emit(topics.PAYMENT_SAGAS, told, key=account, partition=context.partition)
    for sent in progress.sends:
        if isinstance(sent, ReversePayment):
            context.emit(topics.ACCOUNT_COMMANDS, sent, key=account, partition=context.partition)
        else:
            context.emit(topics.CLEARING_SUBMISSIONS, sent, key=account, partition=context.partition)
