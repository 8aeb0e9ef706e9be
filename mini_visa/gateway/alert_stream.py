"""GET /alerts/stream: fraud alerts as they are written, as server-sent events (HTML standard, 9.2).

A stream reads fraud.alerts itself, from its end, or from where the event that the client saw last stands:
an event's id is the position of every partition, so a client that comes back misses none and gets none twice.
So a stream may end at any time: when it is `STREAM_S_MAX` old, or its key is not good for it any more.
"""

from __future__ import annotations

import re
import time
from collections.abc import AsyncGenerator
from typing import Final

import orjson
from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaError

from mini_visa import topics
from mini_visa.domain.messages import Undecodable
from mini_visa.errors import UserError
from mini_visa.gateway import views
from mini_visa.gateway.endpoints import Call
from mini_visa.gateway.problems import FieldError, Problem, bad_input, busy
from mini_visa.kafka import client_options, end_offsets
from mini_visa.settings import Settings

STREAMS_MAX: Final = 32
"""Of one gateway: each is a consumer."""
STREAMS_PER_CLIENT_MAX: Final = 4
"""Where keys tell clients apart: one of them cannot have all there are."""
STREAM_S_MAX: Final = 3_600.0
POLL_MS: Final = 500
BEAT_S: Final = 15.0
"""A comment after so long without an alert: who is between knows that the line lives."""
RETRY_MS: Final = 2_000
"""A client that lost the stream comes back after this."""
LAST_EVENT_ID: Final = "Last-Event-ID"

_ID: Final = re.compile(r"[0-9]{1,18}(\.[0-9]{1,18})*", re.ASCII)


async def alerts(call: Call) -> AsyncGenerator[bytes, None]:
    """The stream's bytes. Raises `Problem` before the first of them."""
    gateway = call.gateway
    if gateway.streams.total() >= STREAMS_MAX:
        raise busy("busy", f"This gateway has {STREAMS_MAX} streams already.")
    if gateway.access.required and gateway.streams[call.client] >= STREAMS_PER_CLIENT_MAX:
        raise busy("busy", f"This client has {STREAMS_PER_CLIENT_MAX} streams already.", status=429)
    last = call.headers.get(LAST_EVENT_ID, "").strip()
    if last and _ID.fullmatch(last) is None:
        raise bad_input(FieldError(LAST_EVENT_ID, "is not the id of an event of this stream"))
    consumer = AIOKafkaConsumer(
        **client_options(gateway.settings),
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        isolation_level="read_committed",
        fetch_max_wait_ms=POLL_MS,
    )
    gateway.streams[call.client] += 1
    try:
        await consumer.start()
        offsets = await _begin(gateway.settings, consumer, last)
        yield f"retry: {RETRY_MS}\n: from here on\n\n".encode()
        beat_at = time.monotonic() + BEAT_S
        end_at = time.monotonic() + STREAM_S_MAX
        while not gateway.draining and time.monotonic() < end_at and _may_go_on(call):
            fetched = await consumer.getmany(timeout_ms=POLL_MS)
            for place, records in fetched.items():
                for record in records:
                    offsets[place.partition] = record.offset + 1
                    try:
                        alert = topics.FRAUD_ALERTS.decode(record.value)
                    except Undecodable:
                        continue  # the projection has it among its dead letters
                    data = orjson.dumps(views.alert_view(alert)).decode()
                    yield f"id: {'.'.join(map(str, offsets))}\nevent: alert\ndata: {data}\n\n".encode()
                    beat_at = time.monotonic() + BEAT_S
            if time.monotonic() > beat_at:
                yield b": still here\n\n"
                beat_at = time.monotonic() + BEAT_S
    except (KafkaError, UserError) as error:
        raise busy("no-log", f"The log does not answer ({type(error).__name__}).") from None
    finally:
        gateway.streams[call.client] -= 1
        if not gateway.streams[call.client]:
            del gateway.streams[call.client]
        await consumer.stop()


def _may_go_on(call: Call) -> bool:
    """The key that the stream began with is good for it still."""
    try:
        call.gateway.access.client(call.headers.get("Authorization"), call.route.scope)
    except Problem:
        return False
    return True


async def _begin(settings: Settings, consumer: AIOKafkaConsumer, last: str) -> list[int]:
    """Where the stream begins, by partition; the consumer is there."""
    ends = await end_offsets(settings, [topics.FRAUD_ALERTS.name])
    places = sorted(ends)
    offsets = [ends[place] for place in places]
    if last:
        seen = [int(offset) for offset in last.split(".")]
        if len(seen) != len(places):
            raise bad_input(FieldError(LAST_EVENT_ID, "is not the id of an event of this stream"))
        offsets = [min(offset, end) for offset, end in zip(seen, offsets, strict=True)]
    consumer.assign(places)
    for place, offset in zip(places, offsets, strict=True):
        consumer.seek(place, offset)
    return offsets
