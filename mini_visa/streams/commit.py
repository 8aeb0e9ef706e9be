"""One partition's transactional producer: the commit of a batch, all of it or nothing."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import aiokafka.producer.sender
from aiokafka import AIOKafkaProducer
from aiokafka.structs import TopicPartition

from mini_visa.streams import faults
from mini_visa.streams.poison import Fatal
from mini_visa.streams.processor import Output
from mini_visa.streams.store import PROGRESS_KEY, Change

log = logging.getLogger(__name__)

RECORD_BATCH_BYTES_MAX: Final = 900_000
"""Of one Kafka record batch; below the brokers' default `message.max.bytes`."""
RETRY_MS: Final = 5
"""Brokers answer the first request of a transaction with a retriable error while the markers of the one
before it are being written; aiokafka's default back-off of 100 ms would be most of a commit's time."""
FENCE_S: Final = 60.0
"""InitProducerId waits for the former owner's transaction to end; a coordinator may be restarting."""
ABORT_S: Final = 2.0

aiokafka.producer.sender.BACKOFF_OVERRIDE = 0.002
"""The same, where aiokafka waits for the markers of the transaction before: 20 ms otherwise."""


_Record = tuple[bytes | None, bytes | None, int | None, list[tuple[str, bytes]]]
_NO_HEADERS: Final[list[tuple[str, bytes]]] = []


def _changelog_records(changes: Sequence[Change], progress: bytes) -> Iterator[_Record]:
    """The rows, then the progress record: there is one even when no table changed."""
    for key, value in changes:
        yield key, value, None, _NO_HEADERS
    yield PROGRESS_KEY, progress, None, _NO_HEADERS


class OutcomeUnknown(Fatal):
    """The commit was sent and its answer is unknown: it may stand or not. Only a restart can tell."""


class Transactions:
    """The producer that owns a partition. There is one for as long as the ownership lasts: starting it
    fences every former one, and it is never used again after an error."""

    def __init__(
        self,
        transactional_id: str,
        group: str,
        source: TopicPartition,
        changelog: TopicPartition,
        timeout_s: float,
        options: dict[str, Any],
    ) -> None:
        self._id = transactional_id
        self._group = group
        self._source = source
        self._changelog = changelog
        self._timeout_s = timeout_s
        self._producer = AIOKafkaProducer(
            client_id=transactional_id,
            transactional_id=transactional_id,
            transaction_timeout_ms=int(timeout_s * 1000),
            max_batch_size=RECORD_BATCH_BYTES_MAX,
            linger_ms=0,
            retry_backoff_ms=RETRY_MS,
            **options,
        )

    async def fence(self) -> None:
        """InitProducerId: whoever had this partition can commit nothing more, and what it left open is
        aborted, once this returns."""
        try:
            async with asyncio.timeout(FENCE_S):
                await self._producer.start()
        except TimeoutError:
            raise Fatal(
                f"{self._id}: the transaction coordinator did not answer for {FENCE_S:.0f} s"
            ) from None

    async def commit(
        self, outputs: Sequence[Output], changes: Sequence[Change], progress: bytes, next_offset: int
    ) -> int:
        """Commit a batch; return the offset of its last changelog record, -1 when the broker did not tell.

        1. begin; 2. hand over every record; 3. send the source offset while they are on their way;
        4. wait for EVERY acknowledgement: aiokafka would commit without a batch that was refused;
        5. commit. An error before 5 aborts; after any error the producer is not to be used again.
        Raises `OutcomeUnknown` when 5 was sent and its answer did not come.
        """
        producer = self._producer
        sent = False
        try:
            async with asyncio.timeout(self._timeout_s * 0.8):
                await producer.begin_transaction()
                if faults.ARMED:
                    await faults.reach("begin")
                waiting = await self._send_outputs(outputs)
                rows = await self._send(self._changelog, _changelog_records(changes, progress))
                offset_sent = asyncio.ensure_future(
                    producer.send_offsets_to_transaction({self._source: next_offset}, self._group)
                )
                results = await asyncio.gather(
                    offset_sent, *waiting, *(future for future, _ in rows), return_exceptions=True
                )
                for result in results:
                    if isinstance(result, BaseException):
                        raise result
                if faults.ARMED:
                    await faults.reach("produced")
                    await faults.reach("offsets")
                sent = True
                if "commit_sent" in faults.ARMED:
                    answer = asyncio.ensure_future(producer.commit_transaction())
                    await asyncio.sleep(0)
                    await faults.reach("commit_sent")
                    await answer
                else:
                    await producer.commit_transaction()
        except BaseException as error:
            if sent:
                raise OutcomeUnknown(
                    f"{self._id}: the commit up to offset {next_offset} was sent and its outcome is unknown "
                    f"({type(error).__name__}: {error})"
                ) from error
            await self._abort()
            raise
        future, count = rows[-1]
        base: int = future.result().offset
        return -1 if base < 0 else base + count - 1

    async def _send_outputs(self, outputs: Sequence[Output]) -> list[asyncio.Future[Any]]:
        by_partition: dict[tuple[str, int], list[_Record]] = defaultdict(list)
        for topic, partition, key, value, timestamp, headers in outputs:
            by_partition[topic, partition].append(
                (key, value, timestamp, list(headers) if headers else _NO_HEADERS)
            )
        waiting: list[asyncio.Future[Any]] = []
        for (topic, partition), records in by_partition.items():
            sent = await self._send(TopicPartition(topic, partition), records)
            waiting.extend(future for future, _ in sent)
        return waiting

    async def _send(
        self, target: TopicPartition, records: Iterable[_Record]
    ) -> list[tuple[asyncio.Future[Any], int]]:
        """Hand `records` over in as few record batches as they fit in: (acknowledgement, count) each."""
        producer = self._producer
        sent = []
        batch = producer.create_batch()
        append = batch.append
        for key, value, timestamp, headers in records:
            if append(key=key, value=value, timestamp=timestamp, headers=headers) is None:
                batch.close()
                future = await producer.send_batch(batch, target.topic, partition=target.partition)
                sent.append((future, batch.record_count()))
                batch = producer.create_batch()
                append = batch.append
                accepted = append(key=key, value=value, timestamp=timestamp, headers=headers)
                if accepted is None:
                    raise Fatal(f"{target}: a record of {len(value or b'')} bytes fits into no batch")
        batch.close()
        future = await producer.send_batch(batch, target.topic, partition=target.partition)
        sent.append((future, batch.record_count()))
        return sent

    async def _abort(self) -> None:
        """Best effort: what stays open is aborted by the next owner's fence, or by its time-out."""
        with contextlib.suppress(BaseException):
            async with asyncio.timeout(ABORT_S):
                await self._producer.abort_transaction()

    async def stop(self) -> None:
        with contextlib.suppress(Exception):
            async with asyncio.timeout(ABORT_S):
                await self._producer.stop()
