"""Clearing: captures are presented until there is an outcome; what it changes is netted per cycle."""

from __future__ import annotations

from itertools import islice
from typing import Final

from msgspec.structs import replace

from mini_visa import topics
from mini_visa.domain.clearing import ClearingItem, item_of, key_of, presentment_of
from mini_visa.domain.commands import Tick
from mini_visa.domain.events import CaptureCleared, CaptureRejected, PaymentCaptured, PaymentFact, TimePassed
from mini_visa.domain.settlement import CycleClosed, OpenPosition, SettlementPosition, cycle_name
from mini_visa.settings import settings
from mini_visa.streams import Context
from mini_visa.streams.app import create_app
from tables.clearing import (
    CYCLE,
    OPEN,
    POSITIONS,
    PRESENTMENTS,
    PRESENTMENTS_DUE,
    NumberedCycle,
    OpenCycle,
    OpenPresentment,
    merchant_of,
    position_key,
    take_over,
)
from tables.schedule import Schedule

CYCLE_MS: Final = round(settings().clearing_cycle_s * 1_000)
PRESENT_AGAIN_MS: Final = round(settings().clearing_present_again_s * 1_000)
DOUBLINGS_MAX: Final = 6
PER_TICK_MAX: Final = 5_000
"""Presentments that one tick sends again, and positions that it tells; the next tick goes on."""

app = create_app("clearing")


@app.processor(
    source=topics.PAYMENT_EVENTS,
    tables=[PRESENTMENTS, PRESENTMENTS_DUE],
    sinks=[topics.CLEARING_SUBMISSIONS, topics.CLEARING_ITEMS],
    rest_s=settings().rest_s,
)
def present(event: PaymentFact, context: Context) -> None:
    if isinstance(event, PaymentCaptured):
        submit(OpenPresentment(presentment_of(event), context.timestamp, 0), context)
    elif isinstance(event, CaptureCleared | CaptureRejected):
        close(key_of(event.payment.payment_id, event.n), context)
    elif isinstance(event, TimePassed):
        for key in Schedule(context.table(PRESENTMENTS_DUE)).take(context.timestamp, PER_TICK_MAX):
            submit(context.table(PRESENTMENTS)[key], context)
        return
    item = item_of(event)
    if item is not None:
        context.emit(topics.CLEARING_ITEMS, item, key=item.merchant_id.encode())


def submit(former: OpenPresentment, context: Context) -> None:
    """Present it, and once more later unless there is an outcome by then: each time twice as late."""
    presentment = former.presentment
    later = context.timestamp + (PRESENT_AGAIN_MS << min(former.times, DOUBLINGS_MAX))
    context.table(PRESENTMENTS)[presentment.key] = OpenPresentment(presentment, later, former.times + 1)
    Schedule(context.table(PRESENTMENTS_DUE)).add(later, presentment.key)
    context.emit(
        topics.CLEARING_SUBMISSIONS,
        presentment,
        key=presentment.account.encode(),
        partition=context.partition,
    )


def close(key: str, context: Context) -> None:
    """It has an outcome."""
    row: OpenPresentment | None = context.table(PRESENTMENTS).get(key)
    if row is not None:
        del context.table(PRESENTMENTS)[key]
        Schedule(context.table(PRESENTMENTS_DUE)).remove(row.due, key)


@app.processor(
    source=topics.CLEARING_ITEMS,
    tables=[POSITIONS, CYCLE],
    sinks=[topics.SETTLEMENT_POSITIONS],
    tick=Tick,
    rest_s=settings().rest_s,
)
def net(message: ClearingItem | Tick, context: Context) -> None:
    """Add up the items of the open cycle. It closes with the first tick after its end, once; from that
    tick on items belong to the next."""
    now = context.timestamp // CYCLE_MS * CYCLE_MS
    cycle: OpenCycle = context.table(CYCLE).get(OPEN) or OpenCycle(now, context.offset)
    if isinstance(cycle, NumberedCycle):
        cycle = take_over(cycle, context.table(POSITIONS), CYCLE_MS)
    if isinstance(message, ClearingItem):
        key = position_key(cycle.begins, message.merchant_id, message.currency)
        positions = context.table(POSITIONS)
        positions[key] = positions.get(key, OpenPosition()).plus(message)
    elif cycle.closing >= 0:
        cycle = tell_positions(cycle, context)
    elif now > cycle.begins:
        closing = replace(
            cycle, begins=now, first_item=context.offset, closing=cycle.begins,
            closing_first_item=cycle.first_item, closing_end_item=context.offset, closing_positions=0,
            closed_at=context.timestamp,
        )  # fmt: skip
        cycle = tell_positions(closing, context)
    context.table(CYCLE)[OPEN] = cycle


def tell_positions(cycle: OpenCycle, context: Context) -> OpenCycle:
    """Tell the positions of the closing cycle, some of them; after the last one, that it is closed."""
    positions, name = context.table(POSITIONS), cycle_name(cycle.closing)
    told = 0
    start, end = f"{cycle.closing:015d}/", f"{cycle.closing:015d}0"
    for key, position in islice(positions.range(start, end), PER_TICK_MAX):
        merchant_id, currency = merchant_of(key)
        told += 1
        del positions[key]
        context.emit(
            topics.SETTLEMENT_POSITIONS,
            SettlementPosition(
                cycle=name, merchant_id=merchant_id, currency=currency, items=position.items,
                sales=position.sales, returns=position.returns, interchange=position.interchange,
                scheme_fees=position.scheme_fees, closed_at=cycle.closed_at,
            ),
            key=merchant_id.encode(),
            partition=context.partition,
        )  # fmt: skip
    cycle = replace(cycle, closing_positions=cycle.closing_positions + told)
    if told == PER_TICK_MAX:
        return cycle
    if cycle.closing_positions:
        closed = CycleClosed(
            cycle=name, partition=context.partition, positions=cycle.closing_positions,
            first_item=cycle.closing_first_item, end_item=cycle.closing_end_item, closed_at=cycle.closed_at,
        )  # fmt: skip
        context.emit(topics.SETTLEMENT_POSITIONS, closed, key=b"", partition=context.partition)
    return replace(cycle, closing=-1)
