"""A client that captures each payment as soon as it is told that it is approved."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from types import TracebackType

import msgspec
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from mini_visa import topics
from mini_visa.domain.response_codes import APPROVED
from tests.bench.topiclog import BATCH_BYTES, reader
from tests.bench.workload import REPLY_PARTITIONS, Workload

PAUSE_S = 0.05
"""Between two looks at the answers, so that captures go in batches. To the same end the broker is asked for
`FETCH_BYTES` at a time, or what there is after `FETCH_WAIT_MS`."""
FETCH_BYTES = 256 << 10
FETCH_WAIT_MS = 100
BATCH_RECORDS_MAX = 2_000


class _Payment(msgspec.Struct, gc=False):
    payment_id: str
    account: str


class _Outcome(msgspec.Struct, gc=False):
    response_code: str = ""
    payment: _Payment | None = None


class _Answer(msgspec.Struct, gc=False):
    """What is needed of an answer: to read no more keeps this client cheap."""

    outcome: _Outcome
    partition: int
    """Of account.commands: that of the payment's account."""


_decode = msgspec.json.Decoder(_Answer).decode


def approved_payment(answer: _Answer) -> _Payment | None:
    """What an answer leaves to capture; None when it was declined."""
    return answer.outcome.payment if answer.outcome.response_code == APPROVED else None


class Capturing:
    """`async with Capturing(...) as client:` captures what is approved from now on."""

    def __init__(self, bootstrap: str, load: Workload, *, partitions: int) -> None:
        self._load, self._partitions = load, partitions
        self._consumer: AIOKafkaConsumer = reader(
            bootstrap, fetch_min_bytes=FETCH_BYTES, fetch_max_wait_ms=FETCH_WAIT_MS
        )
        self._producer = AIOKafkaProducer(
            bootstrap_servers=bootstrap, acks="all", max_batch_size=BATCH_BYTES, linger_ms=0
        )
        self._answered = 0
        self._captured = 0

    async def __aenter__(self) -> Capturing:
        await self._consumer.start()
        await self._producer.start()
        replies = [TopicPartition(topics.GATEWAY_REPLIES.name, partition) for partition in REPLY_PARTITIONS]
        self._consumer.assign(replies)
        for partition, end in (await self._consumer.end_offsets(replies)).items():
            self._consumer.seek(partition, end)
        self._task = asyncio.create_task(self._capture())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        await self._producer.stop()
        await self._consumer.stop()

    def answered(self) -> int:
        """Authorizations that were answered so far. Raises what ended this client, if anything did."""
        if self._task.done():
            self._task.result()
        return self._answered

    @property
    def captured(self) -> int:
        """Captures that the broker has."""
        return self._captured

    async def _capture(self) -> None:
        while True:
            await asyncio.sleep(PAUSE_S)
            found = await self._consumer.getmany(max_records=BATCH_RECORDS_MAX)
            batches = [self._producer.create_batch() for _ in range(self._partitions)]
            now_ms = int(time.time() * 1_000)
            answers = [_decode(record.value) for records in found.values() for record in records]
            for answer in answers:
                payment = approved_payment(answer)
                if payment is not None:
                    command = self._load.capture(payment.account, payment.payment_id)
                    added = batches[answer.partition].append(
                        key=payment.account.encode(), value=command, timestamp=now_ms
                    )
                    assert added is not None, f"more than {BATCH_BYTES} bytes of {BATCH_RECORDS_MAX} captures"
            for partition, batch in enumerate(batches):
                if count := batch.record_count():
                    batch.close()
                    name = topics.ACCOUNT_COMMANDS.name
                    await (await self._producer.send_batch(batch, name, partition=partition))
                    self._captured += count
            self._answered += len(answers)
