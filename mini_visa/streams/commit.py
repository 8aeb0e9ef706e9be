"""One partition's transactional producer: the commit of a batch, all of it or nothing."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from typing import Any, Final

from aiokafka import errors
from aiokafka.client import AIOKafkaClient, CoordinationType
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.structs import TopicPartition

from mini_visa.streams import faults
from mini_visa.streams import transaction_wire as wire
from mini_visa.streams.poison import Fatal
from mini_visa.streams.processor import RawOutput
from mini_visa.streams.store import PROGRESS_KEY, Change
from mini_visa.streams.transaction_wire import Producer

log = logging.getLogger(__name__)

RECORD_BATCH_BYTES_MAX: Final = 900_000
"""Of one Kafka record batch; below the brokers' default `message.max.bytes`."""
RETRY_S: Final = 0.002
"""A transaction that begins while the markers of the one before it are being written is told to come again:
that takes about this long."""
RETRY_S_MAX: Final = 0.1
"""A broker that restarts, a leader or a coordinator that moves: asked again so often, until time is up."""
FENCE_S: Final = 60.0
"""InitProducerId waits for the former owner's transaction to end; a coordinator may be restarting."""
ABORT_S: Final = 2.0

DUPLICATE: Final = errors.DuplicateSequenceNumber.errno
_PASSING: Final = frozenset(
    {
        2,  # CORRUPT_MESSAGE: damaged on its way
        3,  # UNKNOWN_TOPIC_OR_PARTITION: a broker that has just started does not know it yet
        5,  # LEADER_NOT_AVAILABLE
        6,  # NOT_LEADER_OR_FOLLOWER
        7,  # REQUEST_TIMED_OUT
        13,  # NETWORK_EXCEPTION
        14,  # COORDINATOR_LOAD_IN_PROGRESS
        15,  # COORDINATOR_NOT_AVAILABLE
        16,  # NOT_COORDINATOR
        19,  # NOT_ENOUGH_REPLICAS
        20,  # NOT_ENOUGH_REPLICAS_AFTER_APPEND
        51,  # CONCURRENT_TRANSACTIONS: the one before is not finished
        56,  # KAFKA_STORAGE_ERROR
        74,  # FENCED_LEADER_EPOCH
    }
)
"""Error codes after which the same request may be sent again, and must have the same effect."""
_AT_ONCE: Final = errors.ConcurrentTransactions.errno
"""The one of them that nothing has to be looked up for."""
_UNREACHED: Final = 13
_FENCED: Final = {
    47: "another worker owns the partition now, or the transaction took too long",
    90: "another worker owns the partition now, or the transaction took too long",
    120: "the broker wants the transaction aborted",
}
"""INVALID_PRODUCER_EPOCH, PRODUCER_FENCED, TRANSACTION_ABORTABLE: not all of them are known to aiokafka."""

_NO_HEADERS: Final[list[tuple[str, bytes]]] = []


class _Pack:
    """Records for one partition, in as few of Kafka's record batches as they fit in."""

    __slots__ = ("_append", "_built", "_counts", "builders", "count", "partition", "sent", "sequence")

    def __init__(self, partition: TopicPartition) -> None:
        self.partition = partition
        self.builders: list[Any] = []
        self.sent = 0
        """Batches that are acknowledged."""
        self.sequence = 0
        """Of the first record of the next batch: each transaction has an epoch, and counts from 0."""
        self._counts: list[int] = []
        self._built: bytearray | None = None
        self._open()

    def _open(self) -> None:
        builder = DefaultRecordBatchBuilder(
            magic=2,
            compression_type=0,
            is_transactional=1,
            producer_id=-1,
            producer_epoch=-1,
            base_sequence=0,
            batch_size=RECORD_BATCH_BYTES_MAX,
        )
        self.builders.append(builder)
        self._append = builder.append
        self.count = 0
        """Of records in the last batch."""

    def append(
        self, key: bytes | None, value: bytes | None, timestamp: int | None, headers: list[tuple[str, bytes]]
    ) -> None:
        if self._append(self.count, timestamp, key, value, headers) is None:
            self._counts.append(self.count)
            self._open()
            if self._append(0, timestamp, key, value, headers) is None:
                raise Fatal(
                    f"{self.partition.topic}: a record of {len(value or b'')} bytes fits into no batch"
                )
        self.count += 1

    def next_batch(self, producer: Producer) -> bytearray:
        """The first batch that is not acknowledged, as `producer` writes it: the same bytes each time."""
        if self._built is None:
            builder = self.builders[self.sent]
            builder.set_producer_state(producer.id, producer.epoch, self.sequence)
            self._built = builder.build()
        return self._built

    def acknowledged(self) -> bool:
        """The batch is in the log. Whether it was the last one."""
        if self.sent < len(self._counts):
            self.sequence += self._counts[self.sent]
        self.sent += 1
        self._built = None
        return self.sent == len(self.builders)


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
        self._options = options
        self._client: AIOKafkaClient | None = None
        self._producer = Producer(-1, -1)
        self._coordinators: dict[int, int] = {}
        """Node by kind: of the transactional id, of the group."""

    async def fence(self) -> None:
        """InitProducerId: whoever had this partition can commit nothing more, and what it left open is
        aborted, once this returns."""
        self._client = AIOKafkaClient(client_id=self._id, retry_backoff_ms=20, **self._options)
        request = wire.init_producer_id(self._id, int(self._timeout_s * 1000))
        try:
            async with asyncio.timeout(FENCE_S):
                await self._client.bootstrap()
                await self._client.set_topics([self._source.topic, self._changelog.topic])
                opened = await self._coordinated(CoordinationType.TRANSACTION, self._id, request)
        except TimeoutError:
            raise Fatal(
                f"{self._id}: the transaction coordinator did not answer for {FENCE_S:.0f} s"
            ) from None
        except errors.KafkaConnectionError as error:
            raise Fatal(f"{self._id}: no broker answers ({error}). Check MINI_VISA_BROKER") from None
        self._producer = opened.producer

    async def commit(
        self, outputs: Sequence[RawOutput], changes: Sequence[Change], progress: bytes, offset: int | None
    ) -> int:
        """Commit a batch; return the offset of its last changelog record, -1 when the broker did not tell.

        1. pack the records into Kafka's record batches; 2. send them: the first ones begin the transaction;
        3. send the source `offset` behind them, unless it is None: how far the partition is says `progress`,
        the group's offset tells everybody else; 4. wait for EVERY acknowledgement; 5. commit. An error
        before 5 aborts; after any error this object is not to be used again. Raises `OutcomeUnknown` when 5
        was sent and its answer did not come.
        """
        packs = self.pack(outputs, changes, progress)
        sent = False
        try:
            async with asyncio.timeout(self._timeout_s * 0.8):
                if faults.ARMED:
                    await faults.reach("begin")
                # On a connection the broker answers one request after the other: what goes to the same broker
                # is done in this order, and only the first of it has to begin the transaction.
                produced = asyncio.ensure_future(self._produce(packs))
                requests: list[asyncio.Future[Any]] = [produced]
                if offset is not None:
                    requests.append(asyncio.ensure_future(self._send_offset(offset)))
                for result in await asyncio.gather(*requests, return_exceptions=True):
                    if isinstance(result, BaseException):
                        raise result
                if faults.ARMED:
                    await faults.reach("produced")
                    await faults.reach("offsets")
                sent = True
                if "commit_sent" in faults.ARMED:
                    answer = asyncio.ensure_future(self._end(commit=True))
                    await asyncio.sleep(0)
                    await faults.reach("commit_sent")
                    await answer
                else:
                    await self._end(commit=True)
        except BaseException as error:
            if sent:
                raise OutcomeUnknown(
                    f"{self._id}: the commit was sent and its outcome is unknown "
                    f"({type(error).__name__}: {error})"
                ) from error
            await self._abort()
            raise
        base = produced.result()[self._changelog]
        return -1 if base < 0 else base + packs[-1].count - 1

    def pack(self, outputs: Sequence[RawOutput], changes: Sequence[Change], progress: bytes) -> list[_Pack]:
        """The outputs, a pack for each partition they go to; last the changelog's: the rows, then the
        progress record, which is there even when no table changed."""
        packs: dict[tuple[str, int], _Pack] = {}
        pack: _Pack | None = None
        at: tuple[str, int] | None = None
        for topic, partition, key, value, timestamp, headers in outputs:
            to = (topic, partition)
            if pack is None or to != at:
                at = to
                pack = packs.get(to)
                if pack is None:
                    pack = packs[to] = _Pack(TopicPartition(topic, partition))
            pack.append(key, value, timestamp, list(headers) if headers else _NO_HEADERS)
        changelog = _Pack(self._changelog)
        for key, row in changes:
            changelog.append(key, row, None, _NO_HEADERS)
        changelog.append(PROGRESS_KEY, progress, None, _NO_HEADERS)
        return [*packs.values(), changelog]

    # -- the requests ----------------------------------------------------------------------------

    async def _produce(self, packs: Sequence[_Pack]) -> dict[TopicPartition, int]:
        """Until every batch of `packs` is acknowledged. The last batch's first offset by partition, -1 where
        the broker did not tell. Kafka takes one batch of a partition in a request."""
        bases: dict[TopicPartition, int] = {}
        left = list(packs)
        retry = _Retry()
        while left:
            by_leader: dict[int, list[_Pack]] = {}
            answers: list[Any]
            try:
                for pack in left:
                    by_leader.setdefault(self._leader(pack.partition), []).append(pack)
                if len(by_leader) == 1:
                    ((node, own),) = by_leader.items()
                    answers = [await self._produce_to(node, own)]
                else:
                    answers = await asyncio.gather(
                        *(self._produce_to(node, own) for node, own in by_leader.items()),
                        return_exceptions=True,
                    )
            except (errors.KafkaError, OSError) as error:
                answers = [error]
            codes = []
            for answer in answers:
                if isinstance(answer, BaseException):
                    codes.append(retry.passing(answer))
                    continue
                for pack, (code, base) in answer:
                    if code and code != DUPLICATE:
                        if code not in _PASSING:
                            raise _refused(code, f"{pack.partition.topic}/{pack.partition.partition}")
                        codes.append(code)
                        continue
                    if pack.acknowledged():
                        bases[pack.partition] = -1 if code else base
                        left.remove(pack)
            if codes:
                await self._pause(retry, codes)
        return bases

    async def _produce_to(self, node: int, packs: Sequence[_Pack]) -> list[tuple[_Pack, tuple[int, int]]]:
        producer = self._producer
        request = wire.produce(
            self._id,
            int(self._timeout_s * 800),
            [(pack.partition, pack.next_batch(producer)) for pack in packs],
        )
        answer = await self._sender.send(node, request)
        return [(pack, answer.partitions[pack.partition]) for pack in packs]

    async def _send_offset(self, next_offset: int) -> None:
        await self._coordinated(
            CoordinationType.GROUP,
            self._group,
            wire.offset_commit(self._id, self._group, self._producer, self._source, next_offset),
        )

    async def _end(self, *, commit: bool) -> None:
        request = wire.end_transaction(self._id, self._producer, commit=commit)
        opened = await self._coordinated(CoordinationType.TRANSACTION, self._id, request)
        self._producer = opened.producer

    async def _coordinated(self, kind: CoordinationType, key: str, request: Any) -> Any:
        """The answer of the coordinator of `key`, whoever that is, asked until there is one."""
        retry = _Retry()
        while True:
            try:
                node = self._coordinators.get(kind)
                if node is None:
                    node = self._coordinators[kind] = await self._sender.coordinator_lookup(kind, key)
                answer = await self._sender.send(node, request)
                code = answer.error_code
            except (errors.KafkaError, OSError) as error:
                code = retry.passing(error)
            if not code:
                return answer
            if code not in _PASSING:
                raise _refused(code, key)
            if code != _AT_ONCE:
                self._coordinators.pop(kind, None)
            await self._pause(retry, [code])

    async def _abort(self) -> None:
        """Best effort: what stays open is aborted by the next owner's fence, or by its time-out."""
        with contextlib.suppress(BaseException):
            async with asyncio.timeout(ABORT_S):
                await self._end(commit=False)

    async def stop(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            with contextlib.suppress(Exception):
                async with asyncio.timeout(ABORT_S):
                    await client.close()

    # -- the cluster -----------------------------------------------------------------------------

    @property
    def _sender(self) -> AIOKafkaClient:
        assert self._client is not None, f"{self._id}: not fenced, or stopped"
        return self._client

    def _leader(self, partition: TopicPartition) -> int:
        leader = self._sender.cluster.leader_for_partition(partition)
        if leader is None or leader < 0:
            self._sender.add_topic(partition.topic)
            raise errors.LeaderNotAvailableError(str(partition))
        return int(leader)

    async def _pause(self, retry: _Retry, codes: Sequence[int]) -> None:
        """Before the same is sent again: as long as it takes, the whole transaction is bounded."""
        if any(code != _AT_ONCE for code in codes):
            await self._sender.force_metadata_update()
        await retry.pause()


class _Retry:
    """The waits between attempts at one thing: each twice the one before, up to a bound."""

    __slots__ = ("_seconds",)

    def __init__(self) -> None:
        self._seconds = RETRY_S

    @staticmethod
    def passing(error: BaseException) -> int:
        """`error` as a code of `_PASSING`: the broker could not be asked. Raises it when it is no such."""
        code = getattr(error, "errno", None)
        if isinstance(error, errors.KafkaError) and code in _PASSING:
            return int(code)
        unreached = (errors.KafkaConnectionError, errors.NodeNotReadyError, errors.StaleMetadata, OSError)
        if isinstance(error, unreached) and not isinstance(error, asyncio.TimeoutError):
            return _UNREACHED
        raise error

    async def pause(self) -> None:
        await asyncio.sleep(self._seconds)
        self._seconds = min(self._seconds * 2, RETRY_S_MAX)


def _refused(code: int, what: str) -> errors.KafkaError:
    meaning = _FENCED.get(code)
    return errors.for_code(code)(f"{what}: {meaning} (error {code})" if meaning else what)
