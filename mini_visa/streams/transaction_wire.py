"""Kafka's requests of a transaction, in the versions that aiokafka does not speak: KIP-890's.

Since Kafka 4.0 (feature `transaction.version` 2) a partition joins a transaction with its first records and
a group with its first offset: nothing is announced beforehand, and every transaction has a producer epoch
of its own, so that a request that was late for its own cannot get into the next. It is two round trips where
the protocol before took four and more. Each function below makes one request; its answer is a dataclass.

Sources: the message definitions in Kafka's `clients/src/main/resources/common/message`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Final, Self

from aiokafka.protocol.api import Request, RequestStruct, ResponseHeader_v0
from aiokafka.structs import TopicPartition

TRANSACTION_VERSION: Final = "transaction.version"
ACKS_ALL: Final = -1
_NO_TAGS: Final = b"\x00"
_NULL: Final = b"\x00"

_int16 = struct.Struct(">h")
_int32 = struct.Struct(">i")
_int64 = struct.Struct(">q")
_producer = struct.Struct(">qh")


def _varint(value: int) -> bytes:
    """Unsigned, seven bits a byte, the lowest first."""
    if value < 0x80:
        return value.to_bytes(1, "big")
    data = bytearray()
    while value >= 0x80:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    data.append(value)
    return bytes(data)


def _string(text: str) -> bytes:
    data = text.encode()
    return _varint(len(data) + 1) + data


class _Answer:
    """The bytes of an answer, read from the front."""

    __slots__ = ("_at", "_data")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def _number(self, form: struct.Struct) -> int:
        (value,) = form.unpack_from(self._data, self._at)
        self._at += form.size
        return int(value)

    def int16(self) -> int:
        return self._number(_int16)

    def int32(self) -> int:
        return self._number(_int32)

    def int64(self) -> int:
        return self._number(_int64)

    def varint(self) -> int:
        value, shift = 0, 0
        while True:
            byte = self._data[self._at]
            self._at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7

    def string(self) -> str:
        """A null is an empty one: nobody here tells them apart."""
        length = max(0, self.varint() - 1)
        self._at += length
        return self._data[self._at - length : self._at].decode()

    def skip(self, size: int) -> None:
        self._at += size

    def array(self) -> range:
        """To iterate as often as the array has elements."""
        return range(max(0, self.varint() - 1))

    def tags(self) -> dict[int, bytes]:
        found = {}
        for _ in range(self.varint()):
            tag, size = self.varint(), self.varint()
            found[tag] = self._data[self._at : self._at + size]
            self._at += size
        return found


@dataclass(frozen=True, slots=True)
class Producer:
    """Who writes: an id of the transactional id's, and the epoch that tells its owners, and since
    transaction version 2 its transactions, apart."""

    id: int
    epoch: int


@dataclass(frozen=True, slots=True)
class Opened:
    """Of InitProducerId and of EndTxn: the producer that the next transaction is written by."""

    error_code: int
    producer: Producer

    @classmethod
    def decode(cls, data: BytesIO) -> Self:
        answer = _Answer(data.read())
        answer.skip(4)  # throttle time
        return cls(answer.int16(), Producer(answer.int64(), answer.int16()))


@dataclass(frozen=True, slots=True)
class Produced:
    """Error code and first offset by partition."""

    partitions: dict[TopicPartition, tuple[int, int]]

    @classmethod
    def decode(cls, data: BytesIO) -> Self:
        answer = _Answer(data.read())
        found = {}
        for _ in answer.array():
            topic = answer.string()
            for _ in answer.array():
                partition, code, offset = answer.int32(), answer.int16(), answer.int64()
                answer.skip(16)  # append time, first offset of the log
                for _ in answer.array():  # records that are at fault
                    answer.skip(4)
                    answer.string()
                    answer.tags()
                answer.string()
                answer.tags()
                found[TopicPartition(topic, partition)] = (code, offset)
            answer.tags()
        return cls(found)


@dataclass(frozen=True, slots=True)
class OffsetTaken:
    """Of TxnOffsetCommit, for the one partition that was asked for."""

    error_code: int

    @classmethod
    def decode(cls, data: BytesIO) -> Self:
        answer = _Answer(data.read())
        answer.skip(4)  # throttle time
        code = 0
        for _ in answer.array():
            answer.string()
            for _ in answer.array():
                answer.skip(4)  # partition
                code = answer.int16() or code
                answer.tags()
            answer.tags()
        return cls(code)


@dataclass(frozen=True, slots=True)
class Features:
    """The cluster's finalized features: level by name."""

    levels: dict[str, int]

    @classmethod
    def decode(cls, data: BytesIO) -> Self:
        answer = _Answer(data.read())
        answer.skip(2)  # error
        for _ in answer.array():
            answer.skip(6)  # a request's key, its first and last version
            answer.tags()
        answer.skip(4)  # throttle time
        levels = {}
        finalized = answer.tags().get(2)
        if finalized is not None:
            features = _Answer(finalized)
            for _ in features.array():
                name = features.string()
                levels[name] = features.int16()
                features.skip(2)  # the least level
                features.tags()
        return cls(levels)


class _Raw(RequestStruct):  # type: ignore[misc]
    """A request whose body is made already."""

    API_KEY = -1
    API_VERSION = -1
    RESPONSE_TYPE: Any = None
    SCHEMA: Any = None
    FLEXIBLE_VERSION = True

    def __init__(self, body: bytes) -> None:
        self._body = body

    def encode(self) -> bytes:
        return self._body

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self._body)} bytes)"


class _ProduceStruct(_Raw):
    API_KEY = 0
    API_VERSION = 12
    RESPONSE_TYPE = Produced


class _InitProducerIdStruct(_Raw):
    API_KEY = 22
    API_VERSION = 5
    RESPONSE_TYPE = Opened


class _EndTxnStruct(_Raw):
    API_KEY = 26
    API_VERSION = 5
    RESPONSE_TYPE = Opened


class _TxnOffsetCommitStruct(_Raw):
    API_KEY = 28
    API_VERSION = 5
    RESPONSE_TYPE = OffsetTaken


class _ApiVersionsStruct(_Raw):
    API_KEY = 18
    API_VERSION = 3
    RESPONSE_TYPE = Features

    def parse_response_header(self, read_buffer: Any) -> Any:
        """The one answer that has the old header whatever its version: it comes before versions are known."""
        return ResponseHeader_v0.decode(read_buffer)


class _RawRequest(Request[_Raw]):  # type: ignore[misc]
    """aiokafka checks that the broker speaks the version, and sends."""

    API_KEY = -1

    def __init__(self, form: type[_Raw], body: bytes) -> None:
        self.API_KEY = form.API_KEY
        self._CLASSES = (form,)
        self._body = body

    def build(self, request_struct_class: Any) -> Any:
        return request_struct_class(self._body)


def init_producer_id(transactional_id: str, timeout_ms: int) -> Request[Any]:
    """Fence every former producer of the id, abort what it left open. Answered by `Opened`."""
    body = _string(transactional_id) + _int32.pack(timeout_ms) + _producer.pack(-1, -1) + _NO_TAGS
    return _RawRequest(_InitProducerIdStruct, body)


def end_transaction(transactional_id: str, producer: Producer, *, commit: bool) -> Request[Any]:
    """Commit or abort. Sent again by the same producer it has the same answer, `Opened`."""
    body = (
        _string(transactional_id)
        + _producer.pack(producer.id, producer.epoch)
        + (b"\x01" if commit else b"\x00")
        + _NO_TAGS
    )
    return _RawRequest(_EndTxnStruct, body)


def produce(
    transactional_id: str, timeout_ms: int, batches: Iterable[tuple[TopicPartition, bytes | bytearray]]
) -> Request[Any]:
    """One record batch for each of some partitions of one leader. Answered by `Produced`."""
    topics: dict[str, list[bytes | bytearray]] = {}
    for (topic, partition), data in batches:
        parts = topics.setdefault(topic, [])
        parts += (_int32.pack(partition), _varint(len(data) + 1), data, _NO_TAGS)
    body: list[bytes | bytearray] = [
        _string(transactional_id),
        _int16.pack(ACKS_ALL),
        _int32.pack(timeout_ms),
        _varint(len(topics) + 1),
    ]
    for topic, parts in topics.items():
        body += (_string(topic), _varint(len(parts) // 4 + 1), *parts, _NO_TAGS)
    body.append(_NO_TAGS)
    return _RawRequest(_ProduceStruct, b"".join(body))


def offset_commit(
    transactional_id: str, group: str, producer: Producer, source: TopicPartition, next_offset: int
) -> Request[Any]:
    """The group's offset of one partition, as a part of the transaction. Answered by `OffsetTaken`.

    Without a member and a generation: the epoch is the one fence.
    """
    body = b"".join(
        (
            _string(transactional_id),
            _string(group),
            _producer.pack(producer.id, producer.epoch),
            _int32.pack(-1),
            _string(""),
            _NULL,
            _varint(2),
            _string(source.topic),
            _varint(2),
            _int32.pack(source.partition),
            _int64.pack(next_offset),
            _int32.pack(-1),
            _string(""),
            _NO_TAGS * 3,
        )
    )
    return _RawRequest(_TxnOffsetCommitStruct, body)


def features() -> Request[Any]:
    """What the cluster has agreed on. Answered by `Features`."""
    return _RawRequest(_ApiVersionsStruct, _string("mini-visa") + _string("1") + _NO_TAGS)
