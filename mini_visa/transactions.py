"""Transactions that hang in a partition: found, and ended as they were decided.

A transaction is decided in its coordinator's log, and then a marker is written into each of its partitions.
A marker that is lost on the way (a single Kafka that is shut down while it writes them can lose some) leaves
the transaction open in that partition for ever: readers wait before it, and no service can go on. The
partition's leader takes it for open, its coordinator has ended it. What was decided is read from the
coordinator's own log, `__transaction_state`, and the marker that is missing is written.
"""

from __future__ import annotations

import struct
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from io import BytesIO
from typing import Any, ClassVar, Final, NamedTuple

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import for_code
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import (
    Array,
    Boolean,
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Int64,
    Schema,
    String,
    TaggedFields,
)

from mini_visa.errors import UserError
from mini_visa.kafka import admin, client_options
from mini_visa.settings import Settings

COORDINATOR_LOG: Final = "__transaction_state"
GRACE_S: Final = 5.0
"""A transaction may be open for its time-out; then its coordinator ends it, within this."""


class Decision(StrEnum):
    """What a transaction's coordinator knows of it."""

    COMMIT = "commit"
    ABORT = "abort"
    OPEN = "open"
    """Not decided, or decided and its markers are being written: its coordinator will end it."""
    UNKNOWN = "unknown"
    """The coordinator's log does not go back so far."""


class Open(NamedTuple):
    """A transaction that a partition's leader takes for open."""

    partition: TopicPartition
    producer_id: int
    epoch: int
    coordinator_epoch: int
    start_offset: int
    last_ms: int
    """Timestamp of its last record there."""


class State(NamedTuple):
    """A record of the coordinator's log."""

    status: int
    producer_id: int
    epoch: int
    partitions: frozenset[tuple[str, int]]
    updated_ms: int
    version: int = 0
    """Transaction version of the client, as far as it had shown one."""


EMPTY, ONGOING, PREPARE_COMMIT, PREPARE_ABORT = range(4)
"""Values of `State.status` (Kafka's TransactionState); the others follow from these."""


class Verdict(NamedTuple):
    decision: Decision
    epoch: int
    """The producer's, that its marker has to have."""


@dataclass(frozen=True)
class Hanging:
    open: Open
    decision: Decision
    epoch: int
    """Of the marker that is missing, see `Verdict`."""

    def __str__(self) -> str:
        at = f"{self.open.partition.topic}/{self.open.partition.partition}"
        decided = {
            Decision.COMMIT: "was committed, its marker is missing",
            Decision.ABORT: "was aborted, its marker is missing",
            Decision.UNKNOWN: "has ended, and how is not known any more",
        }[self.decision]
        return f"{at} cannot be read beyond offset {self.open.start_offset - 1}: a transaction {decided}"


class NotFinished(UserError):
    """The cluster did not take a marker."""


# -- decide --------------------------------------------------------------------------------------------


def decide(transaction: Open, history: Sequence[State]) -> Verdict:
    """What became of `transaction`. `history`: its producer's records in the coordinator's log, in order.

    The marker has the epoch of the decision, as the coordinator's own would: under transaction version 2, and
    when a producer was fenced, that is the one after the transaction's. With the transaction's own a
    partition would take a record of it that comes late, and with it a new transaction that nobody ends.
    """
    place = (transaction.partition.topic, transaction.partition.partition)
    under_way = (ONGOING, PREPARE_COMMIT, PREPARE_ABORT)
    if history and history[-1].status in under_way and place in history[-1].partitions:
        return Verdict(Decision.OPEN, transaction.epoch)
    decisions = {PREPARE_COMMIT: Decision.COMMIT, PREPARE_ABORT: Decision.ABORT}
    found, begun = None, None
    for state in history:
        if state.status == ONGOING:
            begun = state.epoch
        elif state.status in decisions and place in state.partitions:
            # One about a transaction before it says nothing of this one. Since transaction version 2 each has
            # an epoch of its own and is decided under the next: what tells them apart is how it began.
            about_it = transaction.epoch < state.epoch if begun is None else transaction.epoch == begun
            if about_it:
                found = Verdict(decisions[state.status], state.epoch)
        elif state.status not in under_way:
            begun = None
    if found is not None:
        return found
    # Not a word of this partition. Before version 2 a client announced a partition, or it did not: if the log
    # still holds the beginning of the producer's epoch, and so all that followed, then its coordinator was
    # never told, and no commit that anybody was promised covers it. Since version 2 it is the partition's
    # leader that tells the coordinator, before it takes the first record. So a coordinator that knows nothing
    # has lost the end of its log, with whatever it had decided: that is not to be guessed.
    untold = any(state.status == EMPTY and state.epoch == transaction.epoch for state in history)
    if untold and not any(state.version >= 2 for state in history):
        return Verdict(Decision.ABORT, transaction.epoch)
    return Verdict(Decision.UNKNOWN, transaction.epoch)


# -- look ----------------------------------------------------------------------------------------------


async def hanging(settings: Settings, *, after_s: float | None = None) -> list[Hanging]:
    """Every transaction that is open in a partition although its coordinator has ended it, or has never
    heard of it. `after_s`: only those whose last record is older; default: the services' time-out for
    transactions and a grace."""
    if after_s is None:
        after_s = settings.transaction_timeout_s + GRACE_S
    before_ms = (time.time() - after_s) * 1000
    async with admin(settings) as client:
        old = [found for found in await _open(client) if found.last_ms < before_ms]
    if not old:
        return []
    history: dict[int, list[State]] = defaultdict(list)
    wanted = {found.producer_id for found in old}
    async for state in _coordinator_log(settings):
        if state.producer_id in wanted:
            history[state.producer_id].append(state)
    decided = [Hanging(found, *decide(found, history[found.producer_id])) for found in old]
    ended = [found for found in decided if found.decision is not Decision.OPEN]
    if not ended:
        return []
    # A coordinator writes that a transaction is ended when all its markers are there. One that it ended
    # between our two looks was open in the first: what counts is what is open still.
    async with admin(settings) as client:
        still = {(found.partition, found.producer_id, found.start_offset) for found in await _open(client)}
    return [
        found
        for found in ended
        if (found.open.partition, found.open.producer_id, found.open.start_offset) in still
    ]


async def _open(client: AIOKafkaAdminClient) -> list[Open]:
    """Open transactions of all partitions, as their leaders know them."""
    led: dict[int, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for topic in await client.describe_topics():
        for partition in topic["partitions"]:
            if topic["topic"] != COORDINATOR_LOG and partition["leader"] >= 0:
                led[partition["leader"]][topic["topic"]].append(partition["partition"])
    found = []
    for leader, topics in led.items():
        response = await client._send_request(_DescribeProducers(list(topics.items())), leader)
        for topic, partitions, _ in response.topics:
            for number, code, _, producers, _ in partitions:
                if code:
                    continue  # its leader has moved: the next look finds it
                found += [
                    Open(TopicPartition(topic, number), id_, epoch, coordinator_epoch, start, last_ms)
                    for id_, epoch, _, last_ms, coordinator_epoch, start, _ in producers
                    if start >= 0
                ]
    return found


async def _coordinator_log(settings: Settings) -> AsyncIterator[State]:
    """Every state in the coordinators' log, of each transactional id in order."""
    consumer = AIOKafkaConsumer(
        **client_options(settings), enable_auto_commit=False, auto_offset_reset="earliest"
    )
    await consumer.start()
    try:
        await consumer._client.set_topics([COORDINATOR_LOG])
        partitions = [
            TopicPartition(COORDINATOR_LOG, number)
            for number in consumer.partitions_for_topic(COORDINATOR_LOG) or ()
        ]
        if not partitions:
            return
        consumer.assign(partitions)
        await consumer.seek_to_beginning()
        ends = await consumer.end_offsets(partitions)
        while any([await consumer.position(partition) < ends[partition] for partition in partitions]):
            for records in (await consumer.getmany(timeout_ms=100)).values():
                for record in records:
                    if record.value is not None and (state := parse(record.value)) is not None:
                        yield state
    finally:
        await consumer.stop()


def parse(value: bytes) -> State | None:
    """A value of the coordinator's log (TransactionLogValue, versions 0 and 1); None for other versions."""
    data = BytesIO(value)
    (version,) = struct.unpack(">h", data.read(2))
    if version not in (0, 1):
        return None
    producer_id, epoch, _, status = struct.unpack(">qhib", data.read(15))
    topics = (_TOPICS if version == 0 else _COMPACT_TOPICS).decode(data) or []
    (updated_ms, _) = struct.unpack(">qq", data.read(16))
    tags = TaggedFields.decode(data) if version else {}
    client = struct.unpack(">h", tags[_CLIENT_VERSION])[0] if _CLIENT_VERSION in tags else 0
    partitions = frozenset((topic, number) for topic, numbers, *_ in topics for number in numbers)
    return State(status, producer_id, epoch, partitions, updated_ms, client)


# -- mend ----------------------------------------------------------------------------------------------


async def finish(settings: Settings, found: Iterable[Hanging]) -> list[Hanging]:
    """Write the missing markers of those whose decision is known; returns these. Raises NotFinished."""
    done = []
    async with admin(settings) as client:
        leaders = {
            TopicPartition(topic["topic"], partition["partition"]): partition["leader"]
            for topic in await client.describe_topics()
            for partition in topic["partitions"]
        }
        for hung in found:
            if hung.decision is Decision.UNKNOWN:
                continue
            response = await client._send_request(_WriteMarker(hung), leaders[hung.open.partition])
            for _, topics, _ in response.markers:
                for topic, partitions, _ in topics:
                    for number, code, _ in partitions:
                        if code:
                            raise NotFinished(
                                f"{topic}/{number}: the cluster refused the marker: {for_code(code).__name__}"
                            )
            done.append(hung)
    return done


# -- Kafka's requests that aiokafka does not have ------------------------------------------------------

_TAGS: Final = ("tags", TaggedFields)
_CLIENT_VERSION: Final = 2
"""A tag of TransactionLogValue: ClientTransactionVersion."""
_TOPICS: Final = Array(("topic", String("utf-8")), ("partitions", Array(Int32)))
_COMPACT_TOPICS: Final = CompactArray(
    ("topic", CompactString("utf-8")), ("partitions", CompactArray(Int32)), _TAGS
)


class _DescribeProducersResponse(Response):  # type: ignore[misc]
    API_KEY: ClassVar[int] = 61
    API_VERSION: ClassVar[int] = 0
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "topics",
            CompactArray(
                ("name", CompactString("utf-8")),
                (
                    "partitions",
                    CompactArray(
                        ("partition", Int32),
                        ("error_code", Int16),
                        ("error_message", CompactString("utf-8")),
                        (
                            "producers",
                            CompactArray(
                                ("producer_id", Int64),
                                ("epoch", Int32),
                                ("last_sequence", Int32),
                                ("last_timestamp", Int64),
                                ("coordinator_epoch", Int32),
                                ("start_offset", Int64),
                                _TAGS,
                            ),
                        ),
                        _TAGS,
                    ),
                ),
                _TAGS,
            ),
        ),
        _TAGS,
    )


class _DescribeProducersStruct(RequestStruct):  # type: ignore[misc]
    API_KEY = 61
    API_VERSION = 0
    RESPONSE_TYPE = _DescribeProducersResponse
    FLEXIBLE_VERSION = True
    SCHEMA = Schema(("topics", _COMPACT_TOPICS), _TAGS)


class _DescribeProducers(Request[_DescribeProducersStruct]):  # type: ignore[misc]
    """Producers that a partition's leader knows, with the start of each one's open transaction."""

    API_KEY = 61

    def __init__(self, topics: Sequence[tuple[str, list[int]]]) -> None:
        self._topics: list[tuple[str, list[int], dict[int, bytes]]] = [(*topic, {}) for topic in topics]

    def build(self, request_struct_class: Any) -> Any:
        return request_struct_class(self._topics, {})


class _WriteMarkerResponse(Response):  # type: ignore[misc]
    API_KEY: ClassVar[int] = 27
    API_VERSION: ClassVar[int] = 1
    SCHEMA = Schema(
        (
            "markers",
            CompactArray(
                ("producer_id", Int64),
                (
                    "topics",
                    CompactArray(
                        ("name", CompactString("utf-8")),
                        ("partitions", CompactArray(("partition", Int32), ("error_code", Int16), _TAGS)),
                        _TAGS,
                    ),
                ),
                _TAGS,
            ),
        ),
        _TAGS,
    )


class _WriteMarkerStruct(RequestStruct):  # type: ignore[misc]
    API_KEY = 27
    API_VERSION = 1
    RESPONSE_TYPE = _WriteMarkerResponse
    FLEXIBLE_VERSION = True
    SCHEMA = Schema(
        (
            "markers",
            CompactArray(
                ("producer_id", Int64),
                ("epoch", Int16),
                ("committed", Boolean),
                ("topics", _COMPACT_TOPICS),
                ("coordinator_epoch", Int32),
                _TAGS,
            ),
        ),
        _TAGS,
    )


class _WriteMarker(Request[_WriteMarkerStruct]):  # type: ignore[misc]
    """What a coordinator sends to a partition's leader to end a transaction there."""

    API_KEY = 27

    def __init__(self, hung: Hanging) -> None:
        self._hung = hung

    def build(self, request_struct_class: Any) -> Any:
        found = self._hung.open
        topic: tuple[str, list[int], dict[int, bytes]] = (
            found.partition.topic,
            [found.partition.partition],
            {},
        )
        committed = self._hung.decision is Decision.COMMIT
        # A leader that has had no marker of this producer yet knows no epoch of its coordinator: -1.
        coordinator_epoch = max(0, found.coordinator_epoch)
        return request_struct_class(
            [(found.producer_id, self._hung.epoch, committed, [topic], coordinator_epoch, {})], {}
        )
