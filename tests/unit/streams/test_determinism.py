"""What the determinism check catches."""

from __future__ import annotations

from pathlib import Path

import counting
import pytest
from counting import ITEMS, Item

from mini_visa.streams.determinism import NotDeterministic, assert_deterministic
from mini_visa.streams.processor import Record


def log_of(do: str = "") -> list[Record]:
    return [
        Record(number, 1_000 + number, b"key-%d" % (number % 5), ITEMS.encode(Item(number, do)))
        for number in range(60)
    ]


def test_a_handler_of_its_log_alone_passes() -> None:
    staged = assert_deterministic(counting.count, log_of())
    assert len(staged.outputs) == 60 and len(staged.rows) == 5


@pytest.mark.parametrize(
    ("do", "found"),
    [
        ("clock", "time.time"),
        ("today", "datetime.now"),
        ("random", "_random"),
        ("urandom", "urandom"),
        ("uuid1", "_uuid.generate_time_safe|time.time_ns"),
        ("uuid4", "urandom"),
        ("file", "io.open"),
        ("socket", "_socket.connect"),
        ("global", "the same batch again"),
        ("first in batch", "a record a batch"),
    ],
)
def test_a_handler_that_depends_on_anything_else_is_caught(do: str, found: str) -> None:
    counting.outside.clear()
    with pytest.raises(NotDeterministic, match=found):
        assert_deterministic(counting.count, log_of(do))


def test_an_order_that_changes_with_the_hash_seed_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    assert_deterministic(counting.count, log_of(), path="counting:count")
    with pytest.raises(NotDeterministic, match="PYTHONHASHSEED"):
        assert_deterministic(counting.count, log_of("set order"), path="counting:count")
