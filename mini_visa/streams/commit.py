"""One partition's transactional producer: the commit of a batch, all of it or nothing."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from typing import Any, Final

import aiokafka.producer.sender
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaConnectionError
from aiokafka.structs import TopicPartition

from mini_visa.streams import faults
from mini_visa.streams.poison import Fatal
from mini_visa.streams.processor import RawOutput
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


_NO_HEADERS: Final[list[tuple[str, bytes]]] = []


class _Pack:
    """Records for one partition, in as few of Kafka's record batches as they fit in.

    aiokafka's `BatchBuilder.append` costs twice what it calls, so what it calls is called here, and the
    number of records is set at the end. A test notices when that moves.
    """

    __slots__ = ("_append", "_producer", "batches", "count", "partition", "topic")

    def __init__(self, producer: AIOKafkaProducer, topic: str, partition: int) -> None:
        self.topic = topic
        self.partition = partition
        self.batches: list[Any] = []
        self._producer = producer
        self._open()

    def _open(self) -> None:
        batch = self._producer.create_batch()
        self.batches.append(batch)
        self._append = batch._builder.append
        self.count = 0
        """Of records in the last batch."""

    def append(
        self, key: bytes | None, value: bytes | None, timestamp: int | None, headers: list[tuple[str, bytes]]
    ) -> None:
        if self._append(self.count, timestamp, key, value, headers) is None:
            self.close()
            self._open()
            if self._append(0, timestamp, key, value, headers) is None:
                raise Fatal(f"{self.topic}: a record of {len(value or b'')} bytes fits into no batch")
        self.count += 1

    def close(self) -> None:
        batch = self.batches[-1]
        batch._relative_offset = self.count
        batch.close()


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
        except KafkaConnectionError as error:
            raise Fatal(f"{self._id}: no broker answers ({error}). Check MINI_VISA_BROKER") from None

    async def commit(
        self, outputs: Sequence[RawOutput], changes: Sequence[Change], progress: bytes, next_offset: int
    ) -> int:
        """Commit a batch; return the offset of its last changelog record, -1 when the broker did not tell.

        1. pack the records into Kafka's record batches; 2. begin; 3. hand them over; 4. send the source
        offset while they are on their way; 5. wait for EVERY acknowledgement: aiokafka would commit without
        a batch that was refused; 6. commit. An error before 6 aborts; after any error the producer is not
        to be used again. Raises `OutcomeUnknown` when 6 was sent and its answer did not come.
        """
        packs = self._pack(outputs, changes, progress)
        producer = self._producer
        sent = False
        try:
            async with asyncio.timeout(self._timeout_s * 0.8):
                await producer.begin_transaction()
                if faults.ARMED:
                    await faults.reach("begin")
                waiting = [
                    await producer.send_batch(batch, pack.topic, partition=pack.partition)
                    for pack in packs
                    for batch in pack.batches
                ]
                offset_sent = asyncio.ensure_future(
                    producer.send_offsets_to_transaction({self._source: next_offset}, self._group)
                )
                for result in await asyncio.gather(*waiting, offset_sent, return_exceptions=True):
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
        changelog, base = packs[-1], waiting[-1].result().offset
        assert (changelog.topic, changelog.partition) == self._changelog
        return -1 if base < 0 else base + changelog.count - 1

    def _pack(self, outputs: Sequence[RawOutput], changes: Sequence[Change], progress: bytes) -> list[_Pack]:
        """The outputs, a pack for each partition they go to; last the changelog's: the rows, then the
        progress record, which is there even when no table changed."""
        packs: dict[tuple[str, int], _Pack] = {}
        pack: _Pack | None = None
        for topic, partition, key, value, timestamp, headers in outputs:
            if pack is None or pack.partition != partition or pack.topic != topic:
                pack = packs.get((topic, partition))
                if pack is None:
                    pack = packs[topic, partition] = _Pack(self._producer, topic, partition)
            pack.append(key, value, timestamp, list(headers) if headers else _NO_HEADERS)
        changelog = _Pack(self._producer, *self._changelog)
        for key, row in changes:
            changelog.append(key, row, None, _NO_HEADERS)
        changelog.append(PROGRESS_KEY, progress, None, _NO_HEADERS)
        done = [*packs.values(), changelog]
        for pack in done:
            pack.close()
        return done

    async def _abort(self) -> None:
        """Best effort: what stays open is aborted by the next owner's fence, or by its time-out."""
        with contextlib.suppress(BaseException):
            async with asyncio.timeout(ABORT_S):
                await self._producer.abort_transaction()

    async def stop(self) -> None:
        with contextlib.suppress(Exception):
            async with asyncio.timeout(ABORT_S):
                await self._producer.stop()
