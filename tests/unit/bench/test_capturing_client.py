"""The client of the pipeline's benchmark captures what was approved, and the right payment."""

from __future__ import annotations

import time
from pathlib import Path

from mini_visa import topics
from mini_visa.domain.commands import CapturePayment
from mini_visa.domain.events import PaymentAuthorized, PaymentCaptured
from mini_visa.streams.worker import find
from tests.bench.capturing import _decode, approved_payment
from tests.bench.parts import Pass, fetched
from tests.bench.services import EVENT_TIME_BACK_MS
from tests.bench.topiclog import Entry
from tests.bench.workload import CAPTURE_REPLY_PARTITION, REPLY_PARTITIONS, Workload

RECORDS = 500


def test_every_approved_payment_is_captured_once_and_no_other(tmp_path: Path):
    start_ms = int(time.time() * 1_000) - EVENT_TIME_BACK_MS
    load = Workload(series="test", accounts=250, start_ms=start_ms)
    (processor,) = find("authorization").app.processors.values()
    partition = Pass(processor, tmp_path)

    def put(entries: list[Entry], base: int) -> dict[str, list[tuple[int, bytes]]]:
        found: dict[str, list[tuple[int, bytes]]] = {}
        for topic, to, _, value, *_ in partition.run(fetched(entries, base), base, measured=False).outputs:
            found.setdefault(topic, []).append((to, value or b""))
        return found

    put(list(load.open_accounts()), 0)
    requests = list(load.authorizations(RECORDS, step_ms=1, evenly=True))
    approved = RECORDS - load.blocked
    told = put(requests, 250)
    assert {to for to, _ in told["gateway.replies"]} == set(REPLY_PARTITIONS)
    payments = [approved_payment(_decode(value)) for _, value in told["gateway.replies"]]
    captures = [
        (payment.account.encode(), load.capture(payment.account, payment.payment_id), load.now)
        for payment in payments
        if payment is not None
    ]
    assert len(captures) == approved == RECORDS * 24 // 25
    assert isinstance(topics.ACCOUNT_COMMANDS.decode(captures[0][1]), CapturePayment)
    done = put(captures, 250 + RECORDS)
    assert {to for to, _ in done["gateway.replies"]} == {CAPTURE_REPLY_PARTITION}
    events = [topics.PAYMENT_EVENTS.decode(value) for _, value in done["payment.events"]]
    captured = {event.payment.payment_id for event in events if isinstance(event, PaymentCaptured)}
    held = [topics.PAYMENT_EVENTS.decode(value) for _, value in told["payment.events"]]
    assert captured == {event.payment.payment_id for event in held if isinstance(event, PaymentAuthorized)}
    assert len(captured) == len(events) == approved
    partition.close()
