"""Which records of a fetch response are committed, and where to go on."""

from __future__ import annotations

import struct

import pytest
from aiokafka.errors import CorruptRecordException
from aiokafka.record._crecords import DefaultRecordBatchBuilder

from mini_visa.streams.wire import unpack

ABORT, COMMIT = 0, 1


def batch(
    base: int, values: list[bytes], *, producer: int = -1, transactional: bool = False, gap: int = 0
) -> bytes:
    """A record batch at `base`; `gap`: offsets at its end that compaction has emptied."""
    builder = DefaultRecordBatchBuilder(2, 0, int(transactional), producer, 0, 0, 1 << 20)
    for number, value in enumerate(values):
        builder.append(number, 1_000, b"k", value, [])
    return _placed(bytearray(builder.build()), base, gap)


def marker(base: int, producer: int, kind: int) -> bytes:
    builder = DefaultRecordBatchBuilder(2, 0, 1, producer, 0, 0, 1 << 20)
    builder.append(0, 1_000, struct.pack(">hh", 0, kind), b"\0" * 6, [])
    data = bytearray(builder.build())
    data[22] |= 0x20  # the control bit of the attributes
    return _placed(data, base, 0)


def cleaned(data: bytes) -> bytes:
    """`data` as the log cleaner keeps a producer's last batch: its header alone, and no record in it."""
    header = bytearray(data[:61])
    header[8:12] = struct.pack(">i", 61 - 12)
    header[57:61] = struct.pack(">i", 0)
    return _placed(header, *struct.unpack(">q", data[:8]), 0)


def _placed(data: bytearray, base: int, gap: int) -> bytes:
    from aiokafka.record._crc32c import crc as crc32c

    data[0:8] = struct.pack(">q", base)
    (last,) = struct.unpack(">i", data[23:27])
    data[23:27] = struct.pack(">i", last + gap)
    data[17:21] = struct.pack(">I", crc32c(bytes(data[21:])) & 0xFFFFFFFF)
    return bytes(data)


def values(chunk: object) -> list[bytes]:
    return [record.value for record in chunk.records]  # type: ignore[attr-defined]


def test_committed_records_come_and_markers_are_passed_over() -> None:
    data = batch(0, [b"a", b"b"], producer=7, transactional=True) + marker(2, 7, COMMIT) + batch(3, [b"c"])
    chunk = unpack(data, None, 0, 4, "t")
    assert values(chunk) == [b"a", b"b", b"c"]
    assert (chunk.start, chunk.next_offset) == (0, 4)
    assert [record.offset for record in chunk.records] == [0, 1, 3]


def test_aborted_records_are_left_out_and_the_producer_lives_on() -> None:
    data = (
        batch(0, [b"dead"], producer=7, transactional=True)
        + batch(1, [b"other"], producer=8, transactional=True)
        + marker(2, 7, ABORT)
        + marker(3, 8, COMMIT)
        + batch(4, [b"alive"], producer=7, transactional=True)
        + marker(5, 7, COMMIT)
    )
    chunk = unpack(data, [(7, 0)], 0, 6, "t")
    assert values(chunk) == [b"other", b"alive"]
    assert chunk.next_offset == 6


def test_two_aborted_transactions_of_one_producer_are_both_left_out() -> None:
    data = (
        batch(0, [b"dead"], producer=7, transactional=True)
        + marker(1, 7, ABORT)
        + batch(2, [b"alive"], producer=7, transactional=True)
        + marker(3, 7, COMMIT)
        + batch(4, [b"dead"], producer=7, transactional=True)
        + marker(5, 7, ABORT)
    )
    assert values(unpack(data, [(7, 4), (7, 0)], 0, 6, "t")) == [b"alive"]


def test_records_before_the_position_are_left_out() -> None:
    chunk = unpack(batch(10, [b"a", b"b", b"c"]), None, 11, 13, "t")
    assert values(chunk) == [b"b", b"c"] and chunk.next_offset == 13


def test_a_gap_of_compaction_moves_the_position() -> None:
    chunk = unpack(batch(0, [b"a"], gap=9), None, 0, 10, "t")
    assert values(chunk) == [b"a"] and chunk.next_offset == 10


@pytest.mark.parametrize("kind", [ABORT, COMMIT])
def test_what_the_cleaner_has_emptied_is_passed_over(kind: int) -> None:
    data = (
        cleaned(batch(0, [b"gone"], producer=7, transactional=True))
        + cleaned(marker(1, 7, kind))
        + batch(2, [b"a"], producer=8, transactional=True)
        + marker(3, 8, COMMIT)
        + cleaned(marker(4, 9, kind))
    )
    chunk = unpack(data, None, 0, 5, "t")
    assert values(chunk) == [b"a"] and chunk.next_offset == 5


def test_a_batch_that_is_cut_off_is_left_for_the_next_fetch() -> None:
    data = batch(0, [b"a"]) + batch(1, [b"b"])[:-3]
    chunk = unpack(data, None, 0, 2, "t")
    assert values(chunk) == [b"a"] and chunk.next_offset == 1


def test_a_wrong_checksum_is_an_error() -> None:
    data = bytearray(batch(0, [b"a"]))
    data[-1] ^= 1
    with pytest.raises(CorruptRecordException, match="bad checksum"):
        unpack(bytes(data), None, 0, 1, "t")


def test_nothing_leaves_the_position() -> None:
    assert unpack(b"", None, 5, 5, "t").next_offset == 5
