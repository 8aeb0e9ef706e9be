"""A restore is compared with what was there: every row, and every record of the changelog."""

from __future__ import annotations

from pathlib import Path

import pytest

from mini_visa.streams.store import PROGRESS_KEY, Applied, Change, Identity, RocksStore
from tests.bench.restore import MEMORY_BYTES, Tables, check, tables_in

IDENTITY = Identity("cluster", b"source", b"changelog")
ROWS: list[Change] = [(b"accounts\x00a", b"1"), (b"payments\x00b", b"22"), (PROGRESS_KEY, b"so far")]


def _tables(state: Path, rows: list[Change], *, written_ms: int = 0) -> Tables:
    store = RocksStore(state / "0", MEMORY_BYTES)
    store.write(rows, None, Applied(7, written_ms, IDENTITY))
    store.close()
    return tables_in(state)


def test_tables_with_the_same_rows_are_the_same_whenever_they_were_written(tmp_path: Path):
    one, other = _tables(tmp_path / "one", ROWS), _tables(tmp_path / "other", ROWS, written_ms=5)
    assert one == other
    assert one.rows == len(ROWS)


@pytest.mark.parametrize("place", range(len(ROWS)))
def test_one_other_value_is_seen(tmp_path: Path, place: int):
    others = list(ROWS)
    others[place] = (ROWS[place][0], b"other")
    one, other = _tables(tmp_path / "one", ROWS), _tables(tmp_path / "other", others)
    assert one != other
    with pytest.raises(RuntimeError, match="not those from before"):
        check(100, 100, 100, one, other)


@pytest.mark.parametrize("restored", [99, 101])
def test_each_record_of_the_changelog_must_be_restored(restored: int):
    with pytest.raises(RuntimeError, match=f"{restored} records restored"):
        check(restored, 100, 100, Tables(1, ""), Tables(1, ""))


def test_a_changelog_may_be_compacted_meanwhile():
    check(90, 100, 80, Tables(1, ""), Tables(1, ""))
