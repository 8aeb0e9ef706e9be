"""RocksDB under a partition's tables."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from mini_visa.streams.store import (
    Applied,
    Identity,
    Progress,
    RocksStore,
    StoreUnavailable,
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


DIE_WHILE_WIPING = """
import os, sys
from pathlib import Path
from mini_visa.streams.store import Applied, Identity, RocksStore

for deletions in range(int(sys.argv[2])):
    if os.fork() == 0:
        store = RocksStore(Path(sys.argv[1]) / str(deletions), 16 << 20)
        store.write([(b"a\\0x", b"1")], None, Applied(1, 2, Identity("cluster", b"s" * 16, b"c" * 16)))
        left, unlink = [deletions], os.unlink
        def die(*arguments, **options):
            if not left[0]:
                os._exit(1)
            left[0] -= 1
            unlink(*arguments, **options)
        os.unlink = die
        store.wipe()
        os._exit(0)
    os.wait()
"""


def test_a_process_that_dies_while_it_wipes_leaves_a_store_that_opens_empty(tmp_path: Path) -> None:
    """After each number of files that it has deleted: no half of a database stays under its name."""
    deaths = 10
    subprocess.run([sys.executable, "-c", DIE_WHILE_WIPING, str(tmp_path), str(deaths)], check=True)
    interrupted = list(tmp_path.glob("*.gone"))
    for deletions in range(deaths):
        store = RocksStore(tmp_path / str(deletions), 16 << 20)
        assert store.applied() is None and store.get(b"a\0x") is None
        store.close()
    assert len(interrupted) >= 5 and not any(left.exists() for left in interrupted)


def filled(path: Path) -> Path:
    """A store with one row in a table file."""
    store = RocksStore(path, 16 << 20)
    store.write([(b"a\0x", b"1")], None, APPLIED)
    store._database.flush()
    store.close()
    return path


@pytest.mark.parametrize(
    ("files", "damage"),
    [("MANIFEST-*", Path.unlink), ("*.sst", Path.unlink), ("CURRENT", lambda file: file.write_bytes(b"")),
     ("*.sst", lambda file: file.write_bytes(b"no table"))],
)  # fmt: skip
def test_a_damaged_store_is_opened_empty_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, files: str, damage: Callable[[Path], object]
) -> None:
    path = filled(tmp_path / "0")
    for file in path.glob(files):
        damage(file)
    with caplog.at_level(logging.WARNING):
        store = RocksStore(path, 16 << 20)
    assert store.applied() is None and store.get(b"a\0x") is None
    assert caplog.text.count("are damaged") == 1
    store.write([(b"a\0x", b"2")], None, APPLIED)
    store.close()
    store = RocksStore(path, 16 << 20)
    assert store.get(b"a\0x") == b"2"
    store.close()


def test_a_store_that_cannot_be_opened_for_another_reason_keeps_its_rows(tmp_path: Path) -> None:
    path = filled(tmp_path / "0")
    current = (path / "CURRENT").read_bytes()
    (path / "CURRENT").unlink()
    (path / "CURRENT").mkdir()
    with pytest.raises(StoreUnavailable):
        RocksStore(path, 16 << 20)
    (path / "CURRENT").rmdir()
    (path / "CURRENT").write_bytes(current)
    store = RocksStore(path, 16 << 20)
    assert store.get(b"a\0x") == b"1"
    store.close()


def test_a_store_that_is_open_elsewhere_keeps_its_rows(
    store: RocksStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RocksStore, "LOCK_WAIT_S", 0.1)
    store.write([(b"a\0x", b"1")], None, APPLIED)
    with pytest.raises(StoreUnavailable, match="MINI_VISA_HOME"):
        RocksStore(store.path, 16 << 20)
    assert store.get(b"a\0x") == b"1" and (store.path / "CURRENT").exists()


def test_progress_of_a_newer_program_is_refused() -> None:
    with pytest.raises(ValueError, match="version 3"):
        decode_progress(encode_progress(Progress(3, 5, 6, IDENTITY)))


def test_progress_of_the_first_version_is_read() -> None:
    """Its transactions all carried the group's offset: what it says is next is what the group was told."""
    first = msgspec.msgpack.encode([1, 5, 6, IDENTITY])
    assert decode_progress(first) == Progress(2, 5, 6, IDENTITY, 5)
