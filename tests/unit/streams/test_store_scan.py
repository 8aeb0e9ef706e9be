"""Scans of RocksDB end where they must, whatever happens to memory meanwhile."""

from __future__ import annotations

import gc
import os

from mini_visa.streams.store import Applied, Identity, RocksStore


def test_a_scan_ends_at_its_stop_also_after_much_memory_was_freed_and_used_again(tmp_path):
    store = RocksStore(tmp_path / "store", 8 << 20)
    rows = [(b"table\x00%06d" % n, b"row") for n in range(50)]
    store.write(
        [*rows, (b"table\x00~", b"beyond"), (b"tablf\x00", b"another table")],
        None,
        Applied(0, 0, Identity("c", b"s", b"l")),
    )
    for n in range(2_000):
        length = n % 7
        scan = store.scan(b"table\x00%06d" % 3, b"table\x00%06d" % (3 + length))
        rubbish = [os.urandom(20) for _ in range(20)]
        if n % 500 == 0:
            gc.collect()
        assert list(scan) == rows[3 : 3 + length], rubbish[:0]
    store.close()


def test_a_scan_shows_the_rows_as_they_were_when_it_began(tmp_path):
    store = RocksStore(tmp_path / "store", 8 << 20)
    applied = Applied(0, 0, Identity("c", b"s", b"l"))
    store.write([(b"a1", b"1"), (b"a2", b"2")], None, applied)
    scan = store.scan(b"a", b"b")
    store.write([(b"a1", None), (b"a3", b"3")], None, applied)
    assert list(scan) == [(b"a1", b"1"), (b"a2", b"2")]
    store.close()
