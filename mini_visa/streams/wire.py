"""Reading from Kafka without a consumer: fetch a partition, ask for offsets, topics and their identities.

The kernel owns its positions, so it asks for records at an offset and gets exactly the committed records
from there on. aiokafka's consumer would keep positions, caches and prefetches of its own beside that.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, NamedTuple, TypeVar

from aiokafka import errors
from aiokafka.client import AIOKafkaClient, CoordinationType
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.commit import OffsetFetchRequest
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.protocol.offset import OffsetRequest
from aiokafka.protocol.types import Boolean, CompactArray, CompactString, Int16, Int32, Schema, TaggedFields
from aiokafka.record.control_record import ABORT_MARKER, ControlRecord
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.structs import TopicPartition

from mini_visa.streams import transaction_wire
from mini_visa.streams.poison import Fatal
from mini_visa.streams.store import Identity

log = logging.getLogger(__name__)

T = TypeVar("T")

READ_COMMITTED: Final = 1
BACKOFF_S: Final = 0.05
GIVE_UP_S: Final = 60.0
"""How long a moved leader, a restarting broker or a lost connection is waited for."""

EARLIEST: Final = -2
LATEST: Final = -1


class Chunk(NamedTuple):
    """Consecutive committed records of one partition."""

    records: list[Any]
    """aiokafka's DefaultRecord: offset, timestamp, key, value, headers."""
    start: int
    next_offset: int
    """Where to go on: past the last record, past markers and gaps of compaction."""
    size_bytes: int
    end: int
    """The last stable offset when the broker answered."""


def unpack(
    data: bytes, aborted: Sequence[tuple[int, int]] | None, start: int, end: int, partition: object
) -> Chunk:
    """The committed records with offset >= `start` in a fetch response's `data`.

    `aborted`: (producer id, first offset) of each aborted transaction in it. Raises
    `CorruptRecordException` when a batch's checksum is wrong.
    """
    records: list[Any] = []
    position = start
    pending = sorted(aborted or (), key=lambda item: item[1], reverse=True)
    dead: set[int] = set()
    memory = MemoryRecords(data)
    while memory.has_next():
        batch = memory.next_batch()
        assert batch is not None
        if not batch.validate_crc():
            raise errors.CorruptRecordException(f"{partition}: bad checksum at offset {batch.base_offset}")
        while pending and pending[-1][1] <= batch.base_offset:
            dead.add(pending.pop()[0])
        if batch.is_control_batch:
            marker = next(iter(batch), None)  # None: the cleaner keeps a producer's last batch, but empty
            if marker is not None and ControlRecord.parse(marker.key) == ABORT_MARKER:
                dead.discard(batch.producer_id)
        elif not (batch.is_transactional and batch.producer_id in dead):
            if batch.base_offset >= position:
                records.extend(batch)
            else:
                records.extend(record for record in batch if record.offset >= position)
        position = max(position, batch.next_offset)
    return Chunk(records, start, position, len(data), end)


class _Uuid:
    """Kafka's 16 byte topic id, as bytes."""

    @classmethod
    def encode(cls, value: bytes) -> bytes:
        assert len(value) == 16
        return value

    @classmethod
    def decode(cls, data: Any) -> bytes:
        return bytes(data.read(16))


class _TopicsResponse(Response):  # type: ignore[misc]
    API_KEY: ClassVar[int] = 3
    API_VERSION: ClassVar[int] = 10
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            CompactArray(
                ("node_id", Int32),
                ("host", CompactString("utf-8")),
                ("port", Int32),
                ("rack", CompactString("utf-8")),
                ("tags", TaggedFields),
            ),
        ),
        ("cluster_id", CompactString("utf-8")),
        ("controller_id", Int32),
        (
            "topics",
            CompactArray(
                ("error_code", Int16),
                ("name", CompactString("utf-8")),
                ("topic_id", _Uuid),
                ("is_internal", Boolean),
                (
                    "partitions",
                    CompactArray(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", CompactArray(Int32)),
                        ("isr", CompactArray(Int32)),
                        ("offline", CompactArray(Int32)),
                        ("tags", TaggedFields),
                    ),
                ),
                ("operations", Int32),
                ("tags", TaggedFields),
            ),
        ),
        ("operations", Int32),
        ("tags", TaggedFields),
    )


class _TopicsRequestStruct(RequestStruct):  # type: ignore[misc]
    API_KEY = 3
    API_VERSION = 10
    RESPONSE_TYPE = _TopicsResponse
    FLEXIBLE_VERSION = True
    SCHEMA = Schema(
        (
            "topics",
            CompactArray(("topic_id", _Uuid), ("name", CompactString("utf-8")), ("tags", TaggedFields)),
        ),
        ("allow_auto_topic_creation", Boolean),
        ("include_cluster_operations", Boolean),
        ("include_topic_operations", Boolean),
        ("tags", TaggedFields),
    )


class _TopicsRequest(Request[_TopicsRequestStruct]):  # type: ignore[misc]
    """Metadata, version 10: the first one that tells topic ids, which aiokafka does not know."""

    API_KEY = 3

    def __init__(self, topics: Sequence[str]) -> None:
        self._topics: list[tuple[bytes, str, dict[int, bytes]]] = [(bytes(16), topic, {}) for topic in topics]

    def build(self, request_struct_class: Any) -> Any:
        return request_struct_class(self._topics, False, False, False, {})


@dataclass(frozen=True, slots=True)
class TopicIdentity:
    """A topic that was deleted and made again has the same name and another id."""

    id: bytes
    partitions: int


class Wire:
    """A connection of its own to the cluster, for one reader."""

    def __init__(self, client_id: str, options: dict[str, Any]) -> None:
        self._client = AIOKafkaClient(
            client_id=client_id, retry_backoff_ms=20, metadata_max_age_ms=60_000, **options
        )

    async def start(self) -> None:
        """Connect. Raises `Fatal` when no broker answers."""
        try:
            await self._client.bootstrap()
        except errors.KafkaConnectionError as error:
            raise Fatal(f"no broker answers: {error}. Check MINI_VISA_BROKER") from None

    async def stop(self) -> None:
        await self._client.close()

    async def features(self) -> dict[str, int]:
        """The features that the cluster has agreed on: level by name."""

        async def ask() -> dict[str, int]:
            answer = await self._client.send(self._any_node(), transaction_wire.features())
            return dict(answer.levels)

        return await self._persist("features", ask)

    async def topics(self, names: Sequence[str]) -> tuple[str, dict[str, TopicIdentity]]:
        """The cluster's id, and those of the topics `names` that exist."""

        async def ask() -> tuple[str, dict[str, TopicIdentity]]:
            response = await self._client.send(self._any_node(), _TopicsRequest(names))
            found = {}
            for code, name, topic_id, _, partitions, *_ in response.topics:
                if code == errors.UnknownTopicOrPartitionError.errno:
                    continue
                _check(code, f"topic {name}")
                found[name] = TopicIdentity(topic_id, len(partitions))
            return str(response.cluster_id), found

        return await self._persist("describe topics", ask)

    async def identity(self, source: str, changelog: str) -> Identity:
        """Which logs these names mean now. A topic that is not known is waited for, as a leader is."""

        async def ask() -> Identity:
            cluster, found = await self.topics([source, changelog])
            for name in (source, changelog):
                if name not in found:
                    raise errors.UnknownTopicOrPartitionError(name)
            return Identity(cluster, found[source].id, found[changelog].id)

        return await self._persist("identities", ask)

    async def bounds(self, partition: TopicPartition) -> tuple[int, int]:
        """First offset and end (the next record's) of a partition's log, uncommitted records included."""
        return await self._offset(partition, EARLIEST), await self._offset(partition, LATEST)

    async def _offset(self, partition: TopicPartition, when: int) -> int:
        async def ask() -> int:
            request = OffsetRequest(-1, 0, [(partition.topic, [(partition.partition, when)])])
            response = await self._client.send(self._leader(partition), request)
            ((_, ((_, code, _, offset, *_),)),) = response.topics
            _check(code, f"offsets of {partition}")
            return int(offset)

        return await self._persist(f"offsets of {partition}", ask)

    async def committed(self, group: str, partition: TopicPartition) -> int | None:
        """The group's committed offset as its coordinator has it now, or None."""

        async def ask() -> int | None:
            node = await self._client.coordinator_lookup(CoordinationType.GROUP, group)
            request = OffsetFetchRequest(group, [(partition.topic, [partition.partition])])
            response = await self._client.send(node, request)
            _check(getattr(response, "error_code", 0), f"committed offset of {group}")
            ((_, ((_, offset, _, code),)),) = response.topics
            _check(code, f"committed offset of {group} on {partition}")
            return None if offset < 0 else int(offset)

        return await self._persist(f"committed offset of {group}", ask)

    async def fetch(
        self,
        partition: TopicPartition,
        offset: int,
        *,
        bytes_max: int,
        wait_ms: int,
        interrupted: Callable[[], Awaitable[None]] | None = None,
    ) -> Chunk:
        """Committed records from `offset` on, as soon as there is one, or none after `wait_ms`.

        `interrupted` is called before an answer that had to be asked for again is given: meanwhile the name
        may have become another log's. Raises `OffsetOutOfRangeError` when the log does not hold `offset`:
        never jumps.
        """

        async def ask() -> Chunk:
            request = FetchRequest(
                wait_ms,
                1,
                bytes_max,
                READ_COMMITTED,
                [(partition.topic, [(partition.partition, offset, bytes_max)])],
            )
            response = await self._client.send(self._leader(partition), request)
            ((_, (answer,)),) = response.topics
            _check(answer[1], f"fetch {partition} at {offset}")
            # partition, error, high watermark, last stable offset[, log start], aborted[, replica], data
            aborted = answer[5] if response.API_VERSION >= 5 else answer[4]
            return unpack(answer[-1] or b"", aborted, offset, answer[3], partition)

        return await self._persist(f"fetch {partition}", ask, interrupted)

    def _any_node(self) -> int:
        node = self._client.get_random_node()
        if node is None:
            raise errors.NodeNotReadyError("no broker is known")
        return int(node)

    def _leader(self, partition: TopicPartition) -> int:
        leader = self._client.cluster.leader_for_partition(partition)
        if leader is None or leader < 0:
            self._client.add_topic(partition.topic)
            raise errors.LeaderNotAvailableError(str(partition))
        return int(leader)

    async def _persist(
        self,
        what: str,
        ask: Callable[[], Awaitable[T]],
        interrupted: Callable[[], Awaitable[None]] | None = None,
    ) -> T:
        """Ask until there is an answer: brokers restart and leaders move. Raises after `GIVE_UP_S`."""
        deadline = time.monotonic() + GIVE_UP_S
        again, complained = False, False
        while True:
            try:
                answer = await ask()
                if again and interrupted is not None:
                    await interrupted()
                return answer
            except errors.KafkaError as error:
                passing = (
                    error.retriable
                    or error.invalid_metadata
                    or isinstance(error, (errors.KafkaConnectionError, errors.NodeNotReadyError))
                )
                if not passing or time.monotonic() > deadline:
                    raise
                again = True
                if not complained and not isinstance(error, errors.LeaderNotAvailableError):
                    log.warning("%s: %r, trying again for %d s", what, error, GIVE_UP_S)
                    complained = True
                await self._client.force_metadata_update()
                await asyncio.sleep(BACKOFF_S)


def _check(code: int, what: str) -> None:
    if code:
        raise errors.for_code(code)(what)
