"""What a batch stages, keeps and undoes."""

from __future__ import annotations

import counting
import pytest
from counting import ITEMS, NOTES, REPLIES, ROWS, SEEN, Item, Row, count

from mini_visa.streams.processor import Context, Execution, Processor, Record
from mini_visa.streams.table import TableView, UnknownRowVersion, Writes, after, cache_rows, versioned
from mini_visa.streams.testing import Driver, MemoryStore
from mini_visa.streams.topic import partition_of


def records(*items: Item, key: bytes = b"k", start: int = 0) -> list[Record]:
    return [Record(start + place, 1_000 + place, key, ITEMS.encode(item)) for place, item in enumerate(items)]


def execution(store: MemoryStore | None = None) -> Execution:
    counts = {"items": 4, "seen": 4, "replies": 3}
    return Execution(count, 1, store or MemoryStore(), dead_letters="dead", partition_counts=counts)


def test_a_record_sees_what_records_before_it_in_the_batch_wrote() -> None:
    result = execution().run(records(Item(1), Item(2), Item(3)))
    assert [ITEMS.decode(output[3]).number for output in result.outputs] == [1, 2, 3]
    assert [change[0] for change in result.changes] == [b"rows\0k"], "a row is written once a batch"
    assert result.next_offset == 3 and result.partition_time == 1_002


def test_a_refused_record_leaves_neither_rows_nor_outputs_but_a_dead_letter() -> None:
    result = execution().run(records(Item(1), Item(2, "impossible"), Item(3)))
    kinds = [output[0] for output in result.outputs]
    assert kinds == ["seen", "dead", "seen"]
    assert ITEMS.decode(result.outputs[2][3]).number == 2, "the refused record was not counted"
    assert result.dead_letters == 1 and result.records == 3


def test_a_bug_passes_through_and_the_execution_is_not_used_again() -> None:
    broken = execution()
    with pytest.raises(KeyError):
        broken.run(records(Item(1), Item(2, "bug")))
    with pytest.raises(AssertionError, match="neither committed nor thrown away"):
        broken.run(records(Item(1)))


def test_time_never_goes_back_and_a_future_record_does_not_move_it() -> None:
    run = execution()
    result = run.run(
        [
            Record(0, 5_000, b"k", ITEMS.encode(Item(1))),
            Record(1, 4_000, b"k", ITEMS.encode(Item(2))),
            Record(2, 99_000, b"k", ITEMS.encode(Item(3))),
        ],
        timestamp_max=50_000,
    )
    assert [output[4] for output in result.outputs] == [5_000, 5_000, 5_000]
    assert result.outputs[2][0] == "dead" and result.partition_time == 5_000


def test_an_output_goes_where_its_sink_is_partitioned() -> None:
    def handler(_: Item, context: Context) -> None:
        context.emit(SEEN, Item(1))
        context.emit(SEEN, Item(2), key=b"another")
        context.emit(REPLIES, Item(3), partition=2)
        context.emit(REPLIES, Item(4))

    processor = Processor("send", ITEMS, handler, (), (SEEN, REPLIES))
    run = Execution(
        processor,
        1,
        MemoryStore(),
        dead_letters="dead",
        partition_counts={"items": 4, "seen": 4, "replies": 3},
    )
    outputs = run.run(records(Item(1))).outputs
    assert [output[1] for output in outputs] == [
        1,
        partition_of(b"another", 4),
        2,
        partition_of(b"k", 3),
    ]


def test_a_topic_that_is_no_sink_is_refused() -> None:
    def handler(_: Item, context: Context) -> None:
        context.emit(REPLIES, Item(1))

    with pytest.raises(AssertionError, match="not among this processor's sinks"):
        Driver(Processor("send", ITEMS, handler, (), (SEEN,))).send(Item(1))


def test_two_tables_of_one_name_are_refused() -> None:
    with pytest.raises(AssertionError, match="two tables of one name"):
        Processor("twice", ITEMS, counting._count, (ROWS, versioned("rows", Row)))


def test_a_deleted_row_is_gone_at_once_and_written_as_a_tombstone() -> None:
    driver = Driver(count)
    driver.send(Item(1), key=b"k")
    result = driver.run(records(Item(2, "delete"), start=1))
    assert result.changes == [(b"rows\0k", None)]
    assert driver.row(ROWS, b"k") is None and b"rows\0k" not in driver.store.rows


def a_view(**stored: str) -> TableView[str]:
    store = MemoryStore()
    store.write([(b"notes\0" + key.encode(), NOTES.encode(value)) for key, value in stored.items()])
    return TableView(NOTES, store, Writes())


def test_a_range_merges_the_store_the_batch_and_the_record() -> None:
    view = a_view(a="stored", b="stored", c="stored", e="stored")
    view["b"] = "batch"
    view["d"] = "batch"
    view._writes.clear()
    view["c"] = "record"
    del view["a"]
    assert list(view.range("a", "z")) == [
        ("b", "batch"),
        ("c", "record"),
        ("d", "batch"),
        ("e", "stored"),
    ]
    view._writes.undo()
    assert [value for _, value in view.range("a", "c")] == ["stored", "batch"]


def test_a_refused_record_leaves_every_row_as_it_was() -> None:
    """Also one that it wrote twice, one that only the store had, and one that the batch had deleted."""
    view = a_view(stored="stored", known="stored", gone="stored")
    assert view["known"] == "stored"
    view["batch"] = "batch"
    del view["gone"]
    view._writes.clear()
    for key in ("stored", "known", "batch", "gone", "new"):
        view[key] = "record"
        del view[key]
        view[key] = "record again"
    view._writes.undo()
    assert {key: view.get(key) for key in ("stored", "known", "batch", "gone", "new")} == {
        "stored": "stored",
        "known": "stored",
        "batch": "batch",
        "gone": None,
        "new": None,
    }
    assert view.changes() == [(b"notes\0batch", NOTES.encode("batch")), (b"notes\0gone", None)]


def test_a_range_does_not_see_writes_made_while_it_runs() -> None:
    view = a_view(a="1", b="2")
    seen = []
    for key, value in view.range("a", "z"):
        view[key + "x"] = "new"
        view["b"] = "changed"
        seen.append((key, value))
    assert seen == [("a", "1"), ("b", "2")]


def test_a_range_ends_with_its_prefix_and_with_its_table() -> None:
    view = a_view(**{"k:1": "1", "k:2": "2", "l": "3"})
    view._store.write([(b"notes2\0k:3", b"other table")])  # type: ignore[attr-defined]
    assert [key for key, _ in view.range("k:", after("k:"))] == ["k:1", "k:2"]
    assert [key for key, _ in view.range(b"", b"\xff")] == ["k:1", "k:2", "l"]


def test_rows_that_leave_the_cache_come_back_from_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mini_visa.streams.processor.cache_rows", lambda partitions: 10)
    driver = Driver(count)
    for turn in range(2):
        for number in range(40):
            driver.send(Item(number), key=b"key-%d" % number)
        assert len(driver.execution.view(ROWS)._rows) <= 11
        assert all(row.count == turn + 1 for row in driver.rows(ROWS).values())


def test_a_worker_with_many_partitions_keeps_few_rows_of_each() -> None:
    assert [cache_rows(partitions) for partitions in (1, 4, 24, 64)] == [10_000, 10_000, 1_666, 1_000]


def test_a_row_of_a_newer_program_is_refused_and_one_of_an_older_is_read() -> None:
    table = versioned("rows", Row, version=2, older={1: lambda data: Row(int(bytes(data)))})
    assert table.decode(b"\x017") == Row(7)
    with pytest.raises(UnknownRowVersion, match="row version 3"):
        table.decode(b"\x03rest")
