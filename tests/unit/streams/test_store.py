"""RocksDB under a partition's tables."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from mini_visa.streams.store import (
    Applied,
    Identity,
    Progress,
    RocksStore,
    decode_progress,
    encode_progress,
)

IDENTITY = Identity("cluster", b"s" * 16, b"c" * 16)
APPLIED = Applied(1, 2, IDENTITY)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RocksStore]:
    store = RocksStore(tmp_path / "0", 16 << 20)
    yield store
    store.close()


def test_a_write_is_all_of_it(store: RocksStore) -> None:
    progress = encode_progress(Progress(2, 5, 6, IDENTITY, 4))
    store.write([(b"a\0x", b"1"), (b"a\0y", b"2"), (b"a\0x", None)], progress, APPLIED)
    assert store.get(b"a\0x") is None and store.get(b"a\0y") == b"2"
    assert store.progress() == Progress(2, 5, 6, IDENTITY, 4) and store.applied() == APPLIED


def test_a_scan_is_ordered_bounded_and_a_snapshot(store: RocksStore) -> None:
    store.write([(b"a\0%03d" % number, b"old") for number in range(100)], None, APPLIED)
    scan = store.scan(b"a\x00010", b"a\x00020")
    store.write([(b"a\0%03d" % number, b"new") for number in range(100)], None, APPLIED)
    assert list(scan) == [(b"a\0%03d" % number, b"old") for number in range(10, 20)]
    assert next(iter(store.scan(b"a\x00010", b"a\x00020")))[1] == b"new"


def test_it_is_all_there_after_closing_and_opening(tmp_path: Path) -> None:
    store = RocksStore(tmp_path / "0", 16 << 20)
    store.write([(b"a\0x", b"1")], None, APPLIED)
    store.close()
    again = RocksStore(tmp_path / "0", 16 << 20)
    assert again.get(b"a\0x") == b"1" and again.applied() == APPLIED
    again.wipe()
    assert again.get(b"a\0x") is None and again.applied() is None and again.progress() is None
    again.close()


def test_its_options_hold_also_when_it_is_opened_again(tmp_path: Path) -> None:
    for _ in range(2):
        store = RocksStore(tmp_path / "0", 16 << 20)
        assert store._database.property_int_value("rocksdb.block-cache-capacity") == 16 << 20
        store.close()
        newest = max((tmp_path / "0").glob("OPTIONS-*"))
        assert "filter_policy=bloomfilter" in newest.read_text()


def test_progress_of_a_newer_program_is_refused() -> None:
    with pytest.raises(ValueError, match="version 3"):
        decode_progress(encode_progress(Progress(3, 5, 6, IDENTITY)))


def test_progress_of_the_first_version_is_read() -> None:
    """Its transactions all carried the group's offset: what it says is next is what the group was told."""
    first = msgspec.msgpack.encode([1, 5, 6, IDENTITY])
    assert decode_progress(first) == Progress(2, 5, 6, IDENTITY, 5)
